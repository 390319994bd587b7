"""What stands between a data set and a run: `python -m data.check`, and --check_data at training. Reads, never changes."""
