"""Conversion of state dicts between the keys and shapes of this program and the keys and shapes of BIPROP.

BIPROP is the published code of Diffenderfer & Kailkhura, ICLR 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def biprop_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network in the format of the BIPROP repository.

    Keys and shapes are those of BIPROP's checkpoints. The scores of layer NAME have the key `NAME.scores`. The tensors
    of Linear layers have the shapes of 1×1 convolutions.
    """
    return to_biprop(model.state_dict())


def load_biprop_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict in the format of the BIPROP repository into a network.

    `state` has the keys and shapes of BIPROP's checkpoints. Keys may have DataParallel's prefix `module.`. Raises
    ValueError if a tensor is missing, unexpected or of another shape. The message names these tensors.
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
    """Result of comparing the tensors of a BIPROP checkpoint with those of a network.

    merged: the network's state dict, with every stored tensor that fits in place of the network's own.
    loaded, missing, unused: BIPROP's keys of the tensors that fit, that are not stored, and that the network lacks.
    reshaped: one message per tensor whose shape differs, with both shapes.
    """

    merged: dict[str, Tensor]
    loaded: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    @property
    def complete(self) -> bool:
        """True if the network and the stored state dict have the same tensors with the same shapes."""
        return not (self.missing or self.reshaped or self.unused)


def match_biprop(model: nn.Module, state: Mapping[str, Tensor]) -> BipropMatch:
    """Compare the tensors of a stored state dict with those of a network.

    The result lists which tensors fit, are missing, are unused or differ in shape. `state` may have the keys and shapes
    of this program or of BIPROP, with or without the prefix `module.`. An absent num_batches_tracked does not count as
    missing, because torch < 0.4.1 does not store it.
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
            match.reshaped.append(f"{name} has shape {list(stored.shape)}, not {list(shape)}")
        else:
            match.loaded.append(name)
            match.merged[key] = stored.reshape(value.shape)
    match.unused.extend(theirs)
    return match


def to_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of this program to the format of the BIPROP repository.

    Keys and shapes change, and the prefix `module.` is dropped. A state dict that already has BIPROP's keys and shapes
    only loses the prefix.
    """
    return {biprop_key(key): value.reshape(_biprop_shape(value)) for key, value in state.items()}


def from_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict in the format of the BIPROP repository to this program's format.

    Keys and shapes change. The 1×1 convolutions in the modules `linear` and `fc` of BIPROP's networks become Linear
    layers.
    """
    ours = {}
    for key, value in to_biprop(state).items():
        linear = key.startswith(("linear.", "fc.")) and value.shape[2:] == (1, 1)
        layer, _, tensor = key.rpartition(".")
        ours[f"{layer}.constraint.scores" if tensor == "scores" else key] = value.flatten(1) if linear else value
    return ours


def biprop_key(key: str) -> str:
    """Convert a state-dict key to the BIPROP repository's key.

    For example, "conv1.constraint.scores" becomes "conv1.scores".
    """
    return key.removeprefix("module.").replace(".constraint.", ".")


def _biprop_shape(value: Tensor) -> torch.Size:
    """Return the shape of a state-dict tensor in checkpoints of the BIPROP repository.

    BIPROP has 1×1 convolutions for Linear layers, so a matrix (out, in) gets the shape (out, in, 1, 1).
    """
    return torch.Size((*value.shape, 1, 1)) if value.dim() == 2 else value.shape
