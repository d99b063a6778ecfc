"""The records of a run on disk: its directory, checkpoints, tables, event files and results."""
