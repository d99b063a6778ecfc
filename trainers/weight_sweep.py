"""How a network of zeros and ones does when its ones are worth something else: accuracy over `on`, without training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.constraints import constrained_layers
from models.constraints.binary import BinaryWeight
from trainers.loop import Batches, add_batch, score_of
from trainers.methods.base import Method
from utils.records.epoch_tables import TableRow

if TYPE_CHECKING:
    from utils.distributed.runtime import Runtime


class Scale:
    """`on`, by which every binary layer multiplies what it gives; the first one's product is computed once a batch."""

    def __init__(self) -> None:
        self.on = 1.0
        self._product: Tensor | None = None

    def next_batch(self) -> None:
        """Another input comes: the product with the last one is of no more use."""
        self._product = None

    def first(self, plain: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
        if self._product is None:
            self._product = plain(input)
        return self._product * self.on

    def later(self, plain: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
        return plain(input) * self.on


@contextmanager
def scaled(model: nn.Module) -> Iterator[Scale]:
    """While it lasts, the binary layers of `model` give `on` times what they give at 1: as if their ones were worth
    `on`, for weights and biases are all multiples of it. What the first of them is given does not depend on `on`."""
    scale, layers = Scale(), binary_layers(model)
    for layer, forward in zip(layers, [scale.first, *[scale.later] * len(layers)], strict=False):
        layer.forward = _instead(forward, layer.forward)
    try:
        yield scale
    finally:
        for layer in layers:
            del layer.forward  # that of its class comes to light again


def _instead(forward: Callable[..., Tensor], plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda input: forward(plain, input)


def binary_layers(model: nn.Module) -> list[Any]:
    """The layers under BinaryConv, in the order of the forward pass."""
    return [layer for layer in constrained_layers(model).values() if isinstance(layer.constraint, BinaryWeight)]


@torch.no_grad()
def weight_sweep(
    model: nn.Module, batches: Batches, method: Method, runtime: "Runtime", values: Sequence[float]
) -> list[TableRow]:
    """Accuracy (%) and mean loss over every image of `batches` for each value of on, in one go over the batches."""
    model.eval()
    method.before_evaluation(model)
    sums = torch.zeros(len(values), 4, dtype=torch.float64, device=runtime.device)
    with runtime.generators_kept(), scaled(model) as scale:
        for images, labels in batches.epoch(0):
            scale.next_batch()
            for row, scale.on in zip(sums, values, strict=True):
                with runtime.precision():
                    logits = model(images)
                logits = logits.float()
                add_batch(row, method.loss(logits, labels), logits, labels)
    scores = [score_of(row) for row in runtime.total(sums).tolist()]
    return [{"on": on, "acc@1": score.top1, "loss": score.loss} for on, score in zip(values, scores, strict=True)]
