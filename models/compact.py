"""The published name of `models.pruning.compact`."""

from models.pruning.compact import compacted, load_compact

__all__ = ["compacted", "load_compact"]
