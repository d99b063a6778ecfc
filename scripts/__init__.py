"""Commands that a user runs besides training, each as `python scripts/NAME.py`. Nothing imports a command."""
