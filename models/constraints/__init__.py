"""Constraints on the weights of layers. Importing this package does not import torch, but a published name does."""

from importlib import import_module
from typing import Any

_PUBLISHED = {  # module -> names that it defines
    "models.constraints.registry": ("CONV_TYPES",),
    "models.constraints.base": ("Constraint",),
    "models.constraints.attachment": ("attach", "bake", "constrained_layers", "weight_layers", "weight_shape"),
    "models.constraints.forward_order": ("layers_in_forward_order",),
    "models.constraints.apply": ("constrain",),
    "models.constraints.counts": ("layer_counts", "parameter_counts"),
    "models.biprop_keys": ("biprop_state_dict", "load_biprop_state_dict"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PUBLISHED.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
