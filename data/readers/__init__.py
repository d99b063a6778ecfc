"""Readers of data sets: one file per format, and what all readers share in set_files.py."""
