"""The miniature data set: chest X-rays that are drawn here, and their reports. `python -m data.miniature_set`."""
