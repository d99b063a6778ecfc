"""Pruning of trained plain networks: which weights and units, and networks without them."""
