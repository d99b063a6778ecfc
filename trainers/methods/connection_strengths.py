"""Strengths of the connections of a network, summed over the batches that trainer `sparse` counts."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from models.constraints.hebbian_stats import coactivation, correlation
from utils.distributed.runtime import Runtime


class ConnectionStrengths:
    """Sum the strength of every connection over chosen forward passes of all processes.

    `sums` maps the name of a layer to the sum since the last `sums.clear()`, in the shape of its weight. The strength
    is `correlation` if `correlated`, else `coactivation`. In Numenta's notebook each batch replaces the strengths of
    the one before instead.
    """

    def __init__(self, layers: Mapping[str, Any], *, correlated: bool) -> None:
        self.sums: dict[str, Tensor] = {}
        self._layers, self._correlated = layers, correlated
        self._hooks: list[RemovableHandle] = []

    def attach(self, runtime: Runtime) -> None:
        """Add the strengths of every forward pass until `detach`."""
        add = partial(self._add, runtime)
        self._hooks = [layer.register_forward_hook(partial(add, name)) for name, layer in self._layers.items()]

    def detach(self) -> None:
        """Stop adding."""
        while self._hooks:
            self._hooks.pop().remove()

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Set `sums`, on the device of the layers. Raises KeyError or RuntimeError if they belong to other layers."""
        for name, strengths in sums.items():
            weight = self._layers[name].weight
            self.sums[name] = strengths.to(weight.device).view_as(weight)

    def _add(self, runtime: Runtime, name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._correlated:  # not a sum over images: the correlation of a batch needs the whole batch
            strengths = correlation(layer, runtime.gather(inputs[0].detach()), runtime.gather(output.detach()))
        else:
            strengths = runtime.total(coactivation(layer, inputs[0], output))
        self.sums[name] = strengths + self.sums[name].to(strengths) if name in self.sums else strengths
