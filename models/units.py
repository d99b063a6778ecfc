"""The published name of `models.pruning.channel_groups`."""

from models.pruning.channel_groups import Units, unit_groups, zero_units

__all__ = ["Units", "unit_groups", "zero_units"]
