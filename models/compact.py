"""Published names for networks without their pruned units."""

from models.pruning.channel_cut import compacted
from models.pruning.compact import load_compact

__all__ = ["compacted", "load_compact"]
