"""Declaration, reading and checking of options."""
