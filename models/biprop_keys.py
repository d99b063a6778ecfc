"""Conversion of state dicts between this program's keys and shapes and those of BIPROP's checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def biprop_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `model` with BIPROP's keys and shapes.

    Scores are stored as `NAME.scores` beside `NAME.weight`, and Linear layers as 1×1 convolutions.
    """
    return to_biprop(model.state_dict())


def load_biprop_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with BIPROP's keys and shapes, with or without DataParallel's prefix `module.`, into `model`.

    Raises ValueError, which names the tensors, if one is missing, unexpected or of another shape.
    """
    match = match_biprop(model, state)
    faults = [f"{key} is missing" for key in match.missing] + match.reshaped
    faults += [f"{key} is unexpected" for key in match.unused]
    if faults:
        listed = "; ".join(faults[:5]) + (" ..." if len(faults) > 5 else "")
        raise ValueError(f"the state does not fit this network: {listed}")
    model.load_state_dict(match.merged)


@dataclass(frozen=True)
class BipropMatch:
    """Comparison of a stored state with the state of a network.

    `merged` is the network's state, updated with every stored tensor that fits. `loaded`, `missing` and `unused` are
    BIPROP's keys. `reshaped` has one message with both shapes per tensor of another shape.
    """

    merged: dict[str, Tensor]
    loaded: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    @property
    def complete(self) -> bool:
        """True if network and stored state have the same tensors."""
        return not (self.missing or self.reshaped or self.unused)


def match_biprop(model: nn.Module, state: Mapping[str, Tensor]) -> BipropMatch:
    """Compare `state`, with our keys and shapes or BIPROP's, with or without `module.`, with the state of `model`.

    An absent num_batches_tracked does not count as missing, because torch < 0.4.1 does not store it.
    """
    theirs = to_biprop(state)
    match = BipropMatch(dict(model.state_dict()), [], [], [], [])
    for key, value in model.state_dict().items():
        name, shape = biprop_key(key), _biprop_shape(value)
        stored = theirs.pop(name, None)
        if stored is None:
            if not name.endswith(".num_batches_tracked"):
                match.missing.append(name)
        elif stored.shape != shape:
            match.reshaped.append(f"{name} is {list(stored.shape)} there and {list(shape)} here")
        else:
            match.loaded.append(name)
            match.merged[key] = stored.reshape(value.shape)
    match.unused.extend(theirs)
    return match


def to_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with BIPROP's keys and shapes and without `module.`. BIPROP's own states keep theirs."""
    return {biprop_key(key): value.reshape(_biprop_shape(value)) for key, value in state.items()}


def from_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with our keys and shapes: the inverse of `to_biprop`.

    The 1×1 convolutions in `linear` and `fc` of BIPROP's networks are Linear layers here.
    """
    ours = {}
    for key, value in to_biprop(state).items():
        linear = key.startswith(("linear.", "fc.")) and value.shape[2:] == (1, 1)
        layer, _, tensor = key.rpartition(".")
        ours[f"{layer}.constraint.scores" if tensor == "scores" else key] = value.flatten(1) if linear else value
    return ours


def biprop_key(key: str) -> str:
    """Return BIPROP's name for one of our state-dict keys."""
    return key.removeprefix("module.").replace(".constraint.", ".")


def _biprop_shape(value: Tensor) -> torch.Size:
    """Return the shape in BIPROP: two axes, which only tensors of Linear layers have, become those of a 1×1 kernel."""
    return torch.Size((*value.shape, 1, 1)) if value.dim() == 2 else value.shape
