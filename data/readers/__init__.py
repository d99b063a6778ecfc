"""Readers of data sets: a file per format."""
