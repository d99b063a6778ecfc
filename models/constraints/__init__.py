"""Constraints on the weights of layers. Importing this package does not import torch, but a published name does."""

from importlib import import_module
from typing import Any

_PUBLISHED = {  # name -> the module that defines it
    "CONV_TYPES": "models.constraints.registry",
    "Constraint": "models.constraints.base",
    "attach": "models.constraints.attachment",
    "bake": "models.constraints.attachment",
    "constrained_layers": "models.constraints.attachment",
    "weight_layers": "models.constraints.attachment",
    "layers_in_forward_order": "models.constraints.forward_order",
    "weight_shape": "models.constraints.attachment",
    "constrain": "models.constraints.apply",
    "layer_counts": "models.constraints.counts",
    "parameter_counts": "models.constraints.counts",
    "biprop_state_dict": "models.biprop_keys",
    "load_biprop_state_dict": "models.biprop_keys",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLISHED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLISHED[name]), name)
