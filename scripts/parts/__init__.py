"""Parts of the commands in scripts/."""
