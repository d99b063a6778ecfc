"""Parts of the commands. A file is named for its command; pages.py belongs to readme.py and scaling.py."""
