"""Strengths of the connections of a network, summed over training batches for trainer `sparse`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from models.constraints.hebbian_stats import coactivation, correlation
from utils.distributed.runtime import Runtime


class ConnectionStrengths:
    """Strength of every connection (weight) of some layers, summed over forward passes.

    The strength is how often, or how strongly, the input and output of a connection are active together. Selected
    forward passes on all processes count.

    `sums` maps the name of a layer to the sum since the last `sums.clear()`, in the shape of the layer's weight. The
    strength is `correlation` if `correlated` is True, else `coactivation`. In Numenta's notebook the strengths of a
    batch replace the strengths of the batch before. Here they are added.
    """

    def __init__(self, layers: Mapping[str, Any], *, correlated: bool) -> None:
        self.sums: dict[str, Tensor] = {}
        self._layers, self._correlated = layers, correlated
        self._hooks: list[RemovableHandle] = []

    def attach(self, runtime: Runtime) -> None:
        """Add the strengths of connections in every forward pass to `sums`, until `detach` is called.

        Forward hooks on the layers do so. `runtime` combines the batches of all processes.
        """
        add = partial(self._add, runtime)
        self._hooks = [layer.register_forward_hook(partial(add, name)) for name, layer in self._layers.items()]

    def detach(self) -> None:
        """Remove the forward hooks, so that forward passes no longer change `sums`."""
        while self._hooks:
            self._hooks.pop().remove()

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Restore the sums of connection strengths that a checkpoint stores.

        `sums` maps layer name to tensor. Each tensor moves to the device of its layer. Raises KeyError or RuntimeError
        if `sums` belong to other layers.
        """
        for name, strengths in sums.items():
            weight = self._layers[name].weight
            self.sums[name] = strengths.to(weight.device).view_as(weight)

    def _add(self, runtime: Runtime, name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._correlated:  # a correlation is no sum over images, so it needs the whole batch
            strengths = correlation(layer, runtime.gather(inputs[0].detach()), runtime.gather(output.detach()))
        else:
            strengths = runtime.total(coactivation(layer, inputs[0], output))
        self.sums[name] = strengths + self.sums[name].to(strengths) if name in self.sums else strengths
