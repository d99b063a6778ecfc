"""What every run needs and no method knows: runtime, run directory, records, results."""
