"""Trainer `binary`: weight-invariant, self-pruning networks of zeros and ones ("Learning Digital Circuits",
Agrawal & Karlupia 2019, arXiv 1909.00052)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.layers import use_batch_statistics
from trainers.methods.base import Method
from trainers.parameter_stats import Outputs, statistics
from trainers.weight_sweep import binary_layers, weight_sweep
from utils.config.fields import stepped
from utils.records.epoch_tables import Table

if TYPE_CHECKING:
    from trainers.loop import Batches
    from utils.distributed.runtime import Runtime

EVERY = 100  # batches between two looks at the activations


class Binary(Method):
    """Weights of zeros and ones (BinaryConv) over real ones that every step leaves in [0, 1].

    With probability `epsilon` the ones of a step are worth 1 + U(0, `random_mag`). Batch norms use a batch's own
    statistics in evaluation, since those of training fit one value of the ones alone. Every `sweep_every` epochs and in
    the end the network is tested for every value of `sweep_on`.
    """

    takes = ("epsilon", "random_mag", "sweep_on", "sweep_every", "histograms")

    def __init__(
        self,
        *,
        epsilon: float = 1.0,
        random_mag: float = 0.0,
        sweep_on: str = "none",
        sweep_every: int = 10,
        histograms: bool = False,
        **usual: Any,
    ) -> None:
        super().__init__(**usual)
        self._epsilon, self._random_mag = epsilon, random_mag
        self._sweep, self._sweep_every = stepped(sweep_on), sweep_every
        self._watches = histograms
        self._outputs = Outputs()
        self._restored: list[tuple[str, Tensor]] = []  # of the epoch within which the run goes on
        self._layers: list[Any] = []

    def prepare(self, model: nn.Module) -> None:
        self._layers = list(binary_layers(model).values())
        if not self._layers:
            raise ValueError("trainer: binary trains weights of zeros and ones; conv_type BinaryConv gives them")
        use_batch_statistics(model)
        with torch.no_grad():
            for layer in self._layers:
                if layer.bias is not None:
                    layer.bias.zero_()

    def before_epoch(self, model: nn.Module, epoch: int) -> None:  # noqa: ARG002
        self._outputs, self._restored = Outputs(self._restored), []

    def before_step(self, model: nn.Module, step: int) -> None:
        if self._random_mag:
            chance, share = torch.rand(2).tolist()
            self._set_on(1 + (chance < self._epsilon) * share * self._random_mag)
        if self._watches and step % EVERY == 0:
            self._outputs.watch(model, step)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        self._outputs.rest()
        for layer in self._layers:
            layer.constraint.clamp_weight(layer.weight)
            if layer.bias is not None:
                layer.bias.clamp_(0, 1)

    def before_evaluation(self, model: nn.Module) -> None:  # noqa: ARG002
        self._set_on(1.0)

    def tables(
        self, model: nn.Module, held_out: "Batches", runtime: "Runtime", epoch: int, epochs: int
    ) -> dict[str, Table]:
        tables = {}
        if self._sweep and (epoch % self._sweep_every == 0 or epoch == epochs):
            rows = weight_sweep(model, held_out, self, runtime, self._sweep)
            tables["weight_sweep"] = Table(rows, x="on", y="acc@1")
        if epoch == epochs:
            tables["statistics"] = Table(statistics(model))
        return tables

    def histograms(self) -> list[tuple[str, Tensor]]:
        seen, self._outputs = self._outputs.seen, Outputs()
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {"outputs": dict(self._outputs.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = [(name, values.float()) for name, values in state.get("outputs", {}).items()]

    def _set_on(self, on: float) -> None:
        for layer in self._layers:
            layer.constraint.on_value = on
