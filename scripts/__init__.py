"""Programs a user runs besides training; each is run as `python scripts/<name>.py` from the repository's root."""
