"""Pruning of trained plain networks: criteria for weights and units, and removal of units from the layers."""
