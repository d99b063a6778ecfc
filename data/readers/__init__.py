"""Readers of data sets: one module per format, and set_files.py with the functions that all readers share."""
