"""Published names for the units of a network: how they are grouped, and how they are set to zero."""

from models.pruning.channel_cut import UnitGroup, zero_units
from models.pruning.channel_groups import unit_groups

__all__ = ["UnitGroup", "unit_groups", "zero_units"]
