"""Weight sweep of a binary network: its loss and accuracy if its weights of 1 get other values, without training.

With weights and biases of 0 and `on_value`, the output of a binary layer is `on_value` times its output with weights
and biases of 0 and 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.device_batches import Batches
from models.constraints.attachment import constrained_layers
from models.constraints.binary import BinaryWeight
from models.constraints.forward_order import layers_in_forward_order
from trainers.loop import forward
from trainers.methods.base import Method
from trainers.metrics import add_batch, metrics_of
from utils.distributed.runtime import Runtime
from utils.records.epoch_tables import TableRow


@dataclass
class Sweep:
    """State that all binary layers of a network share during `weight_sweep`.

    The sweep evaluates the network with its weights of 1 replaced by another value, `on_value`. `first_output` is the
    output of the first binary layer for the current batch with weights of 0 and 1.
    """

    on_value: float = 1.0
    first_output: Tensor | None = None


class ScaledLayer(nn.Module):
    """Wrapper of a binary layer that multiplies the layer's output by `sweep.on_value`.

    The output is then the one for weights of 0 and `on_value`, instead of 0 and 1. The input of the first binary layer
    does not depend on `on_value`, so this layer is computed only once per batch.
    """

    def __init__(self, layer: nn.Module, sweep: Sweep, *, is_first: bool) -> None:
        super().__init__()
        self.layer, self.sweep, self.is_first = layer, sweep, is_first

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the binary layer with its weights of 1 replaced by `sweep.on_value`."""
        if not self.is_first:
            return torch.mul(self.layer(input), self.sweep.on_value)
        if self.sweep.first_output is None:
            self.sweep.first_output = self.layer(input)
        return self.sweep.first_output * self.sweep.on_value


@contextmanager
def scaled(model: nn.Module) -> Iterator[Sweep]:
    """Context manager in which the weights of 1 in all binary layers count as another value.

    It wraps each binary layer of `model` in a ScaledLayer, and finally removes the wrappers. It yields the Sweep, whose
    `on_value` is the other value.
    """
    sweep, layers = Sweep(), constrained_layers(model, BinaryWeight)
    first = _first_layer(model, layers)
    for name, layer in layers.items():
        model.set_submodule(name, ScaledLayer(layer, sweep, is_first=name == first))
    try:
        yield sweep
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _first_layer(model: nn.Module, layers: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the first of `layers` in the forward pass, or None if their order is unknown."""
    try:
        return next((name for name in layers_in_forward_order(model) if name in layers), None)
    except ValueError:
        return None


@torch.no_grad()
def weight_sweep(
    model: nn.Module, batches: Batches, method: Method, runtime: Runtime, values: Sequence[float]
) -> list[TableRow]:
    """Evaluate a binary network with its weights of 1 replaced by each of `values`.

    Return one table row per value, with the accuracy (%) and the mean loss over all images of `batches`. The batches
    are read once. `model` remains in evaluation mode.
    """
    model.eval()
    method.before_evaluation(model)
    sums = torch.zeros(len(values), 4, dtype=torch.float64, device=runtime.device)
    with runtime.preserve_generators(), scaled(model) as sweep:
        for images, labels in batches.epoch(0):
            sweep.first_output = None
            for row, sweep.on_value in zip(sums, values, strict=True):
                logits = forward(model, images, runtime)
                add_batch(row, method.loss(logits, labels), logits, labels)
    scores = [metrics_of(row) for row in runtime.total(sums).tolist()]
    return [{"on": on, "acc@1": score.top1, "loss": score.loss} for on, score in zip(values, scores, strict=True)]
