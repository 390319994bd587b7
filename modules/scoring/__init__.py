"""From the predictions file to scores, tables and comparisons."""
