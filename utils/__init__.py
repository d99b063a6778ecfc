"""Infrastructure of every run: options, processes, run directories, records and console output."""
