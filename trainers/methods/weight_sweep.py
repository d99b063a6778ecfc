"""Weight sweep of a binary network: loss and accuracy for several values `on` of its ones, without training.

Weights and biases of a binary layer are 0 or `on`, so its output is `on` times its output for ones of 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.device_batches import Batches
from models.constraints.attachment import constrained_layers
from models.constraints.binary import BinaryWeight
from models.constraints.forward_order import layers_in_forward_order
from trainers.methods.base import Method
from trainers.metrics import add_batch, metrics_of
from utils.records.epoch_tables import TableRow

if TYPE_CHECKING:
    from utils.distributed.runtime import Runtime


class Sweep:
    """The value of all ones in a weight sweep, and the output that does not depend on it."""

    def __init__(self) -> None:
        self.on = 1.0
        self.first_output: Tensor | None = None  # of the first binary layer, for ones of 1 and the current batch


class ScaledLayer(nn.Module):
    """A binary layer whose output is multiplied by `sweep.on`.

    The input of the first binary layer does not depend on `on`: that layer is computed once per batch.
    """

    def __init__(self, layer: nn.Module, sweep: Sweep, *, is_first: bool) -> None:
        super().__init__()
        self.layer, self.sweep, self.is_first = layer, sweep, is_first

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output times `sweep.on`."""
        output: Tensor | None = self.sweep.first_output if self.is_first else None
        if output is None:
            output = self.layer(input)
        if self.is_first:
            self.sweep.first_output = output
        return output * self.sweep.on


@contextmanager
def scaled(model: nn.Module) -> Iterator[Sweep]:
    """Replace each binary layer of `model` by a `ScaledLayer` within the context, and yield their `Sweep`."""
    sweep, layers = Sweep(), binary_layers(model)
    first = _first(model, layers)
    for name, layer in layers.items():
        model.set_submodule(name, ScaledLayer(layer, sweep, is_first=name == first))
    try:
        yield sweep
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _first(model: nn.Module, layers: Mapping[str, nn.Module]) -> str | None:
    """Return the binary layer that is used first, or None if the layers have no known order."""
    try:
        return next((name for name in layers_in_forward_order(model) if name in layers), None)
    except ValueError:
        return None


def binary_layers(model: nn.Module) -> dict[str, Any]:
    """Return name -> layer for every layer with the constraint BinaryConv."""
    layers = constrained_layers(model).items()
    return {name: layer for name, layer in layers if isinstance(layer.constraint, BinaryWeight)}


@torch.no_grad()
def weight_sweep(
    model: nn.Module, batches: Batches, method: Method, runtime: "Runtime", values: Sequence[float]
) -> list[TableRow]:
    """Return one row per value of `on`: accuracy (%) and mean loss over all images of `batches`.

    The batches are read once. `model` is left in evaluation mode.
    """
    model.eval()
    method.before_evaluation(model)
    sums = torch.zeros(len(values), 4, dtype=torch.float64, device=runtime.device)
    with runtime.preserve_generators(), scaled(model) as sweep:
        for images, labels in batches.epoch(0):
            sweep.first_output = None
            for row, sweep.on in zip(sums, values, strict=True):
                with runtime.precision():
                    logits = model(images)
                logits = logits.float()
                add_batch(row, method.loss(logits, labels), logits, labels)
    scores = [metrics_of(row) for row in runtime.total(sums).tolist()]
    return [{"on": on, "acc@1": score.top1, "loss": score.loss} for on, score in zip(values, scores, strict=True)]
