"""What a run leaves on disk: its directory, checkpoints, tables, curves and results."""
