"""How strong the connections of a network are, added up over the batches that are counted."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.constraints.hebbian_stats import coactivation, correlation

if TYPE_CHECKING:
    from utils.distributed.runtime import Runtime


class Strengths:
    """Of every layer by name, over the batches of all processes: the sum since the last `clear`.

    In Numenta's notebook the strengths of a counted batch replace those of the one before.
    """

    def __init__(self, layers: Mapping[str, Any], *, correlated: bool) -> None:
        self.found: dict[str, Tensor] = {}
        self._layers, self._correlated = layers, correlated
        self._hooks: list[Any] = []

    def watch(self, runtime: "Runtime") -> None:
        """Count the forward passes from here on, until `rest`."""
        count = partial(self._count, runtime)
        self._hooks = [layer.register_forward_hook(partial(count, name)) for name, layer in self._layers.items()]

    def rest(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def restore(self, found: Mapping[str, Tensor]) -> None:
        """Put `found` back. Raises KeyError or RuntimeError where it is of other layers."""
        for name, strengths in found.items():
            weight = self._layers[name].weight
            self.found[name] = strengths.to(weight.device).view_as(weight)

    def _count(self, runtime: "Runtime", name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._correlated:  # what the processes would find by themselves does not add up to it
            found = correlation(layer, runtime.gather(inputs[0].detach()), runtime.gather(output.detach()))
        else:
            found = runtime.total(coactivation(layer, inputs[0], output))
        self.found[name] = found + self.found[name].to(found) if name in self.found else found
