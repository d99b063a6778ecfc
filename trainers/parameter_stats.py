"""What a network looks like inside: numbers of its parameters, samples of what its blocks give."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from models.activations import ACTIVATIONS
from models.layers import HardInvert, SoftInvert
from utils.records.epoch_tables import TableRow

VALUES = 65_536  # of an output at most so many are kept
WATCHED: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    HardInvert,
    SoftInvert,
    *(type(make()) for make in ACTIVATIONS.values()),
)


class Outputs:
    """Samples of what every activation and every normalisation gives in the forward passes that are watched."""

    def __init__(self, seen: Iterable[tuple[str, Tensor]] = ()) -> None:
        self.seen = [*seen]
        self._hooks: list[RemovableHandle] = []

    def watch(self, model: nn.Module, batch: int) -> None:
        """From here on, until `rest`; `batch` is the number of the batch within its epoch."""
        watched = {name: module for name, module in model.named_modules() if isinstance(module, WATCHED)}
        for name, module in watched.items():
            self._hooks.append(module.register_forward_hook(self._keeper(f"{name}.output/batch_{batch}")))

    def rest(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _keeper(self, name: str) -> Any:
        def keep(_module: nn.Module, _input: object, out: Tensor) -> None:
            values = out.detach().flatten()
            self.seen.append((name, values[:: -(-len(values) // VALUES)].clone()))

        return keep


@torch.no_grad()
def statistics(model: nn.Module) -> list[TableRow]:
    """A row for every parameter tensor: how many numbers, their mean, deviation, number and share of those ≥ ½; of a
    soft inverter v."""
    rows: list[TableRow] = []
    for name, parameter in model.named_parameters():
        values = parameter.double()
        ones = int((values >= 0.5).sum())
        of = model.get_submodule(name.rpartition(".")[0])
        rows.append(
            {
                "tensor": name,
                "units": values.numel(),
                "mean": float(values.mean()),
                "std": float(values.std(unbiased=False)),
                "ones": ones,
                "share_of_ones": ones / values.numel(),
                "v": float(values.clamp(0, 1)) if isinstance(of, SoftInvert) else "",
            }
        )
    return rows
