"""The keys and shapes of BIPROP's checkpoints, and the state dicts of this program in them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def biprop_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under BIPROP's keys and shapes: `….scores` beside `….weight`, linear layers as 1×1."""
    return to_biprop(model.state_dict())


def load_biprop_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load BIPROP's keys and shapes (with or without the `module.` of DataParallel) into `model`, strictly.

    Raises ValueError that names what is missing, unexpected or of another shape.
    """
    match = match_biprop(model, state)
    faults = [f"{key} is missing" for key in match.missing] + match.reshaped
    faults += [f"{key} is unexpected" for key in match.unused]
    if faults:
        raise ValueError(f"the state does not fit this network: {'; '.join(faults[:5])}" + " ..." * (len(faults) > 5))
    model.load_state_dict(match.merged)


@dataclass(frozen=True)
class BipropMatch:
    """How a stored state meets a network: `merged` is the network's own state with all that fits.

    BIPROP's keys of those `taken`, those `missing` in what is stored, those `unused` here; `reshaped` has both shapes.
    """

    merged: dict[str, Tensor]
    taken: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    @property
    def whole(self) -> bool:
        """Whether network and state have the same tensors."""
        return not (self.missing or self.reshaped or self.unused)


def match_biprop(model: nn.Module, state: Mapping[str, Tensor]) -> BipropMatch:
    """Compare `state`, under our keys and shapes or BIPROP's, with or without `module.`, with that of `model`.

    A counter num_batches_tracked that is not stored, as by torch < 0.4.1, is not missed.
    """
    theirs = to_biprop(state)
    match = BipropMatch(dict(model.state_dict()), [], [], [], [])
    for key, value in model.state_dict().items():
        name, shape = biprop_key(key), _biprop_shape(value)
        given = theirs.pop(name, None)
        if given is None:
            match.missing.extend([name] * (not name.endswith(".num_batches_tracked")))
        elif given.shape != shape:
            match.reshaped.append(f"{name} is {list(given.shape)} there and {list(shape)} here")
        else:
            match.taken.append(name)
            match.merged[key] = given.reshape(value.shape)
    match.unused.extend(theirs)
    return match


def to_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours under BIPROP's keys and shapes; one that has them already stays, without `module.`."""
    return {biprop_key(key): value.reshape(_biprop_shape(value)) for key, value in state.items()}


def from_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_biprop`. In BIPROP's networks `linear` and `fc` hold what are Linear layers here."""
    ours = {}
    for key, value in to_biprop(state).items():
        linear = key.startswith(("linear.", "fc.")) and value.shape[2:] == (1, 1)
        layer, _, of = key.rpartition(".")
        ours[f"{layer}.constraint.scores" if of == "scores" else key] = value.flatten(1) if linear else value
    return ours


def biprop_key(key: str) -> str:
    """BIPROP's name of one of our state-dict keys."""
    return key.removeprefix("module.").replace(".constraint.", ".")


def _biprop_shape(value: Tensor) -> torch.Size:
    """Only the weight, mask or scores of a Linear layer have two axes: there a 1×1 convolution."""
    return torch.Size((*value.shape, 1, 1)) if value.dim() == 2 else value.shape
