"""Trainer `binary`: self-pruning networks with weights of 0 and 1, whose accuracy does not depend on the value of 1.

Agrawal & Karlupia, "Learning Digital Circuits", 2019, arXiv 1909.00052.
"""

from typing import Any

import torch
from torch import Tensor, nn

from data.device_batches import Batches
from models.constraints import constrained_layers
from models.constraints.binary import BinaryWeight
from models.layers import use_batch_statistics
from trainers.methods.base import Method
from trainers.methods.network_stats import OutputSampler, parameter_statistics
from trainers.methods.weight_sweep import weight_sweep
from utils.distributed.runtime import Runtime
from utils.records.epoch_tables import Table
from utils.steps import stepped

SAMPLING_INTERVAL = 100  # batches between two samples of the activations


class Binary(Method):
    """Train networks whose weights are rounded to 0 and 1.

    Their constraint, BinaryConv, rounds real weights in [0, 1]. Every step clamps the real weights to [0, 1]. With
    probability `epsilon` the weights of 1 have the value 1 + U(0, `random_mag`) in a step, so that the network learns
    not to depend on this value. Batch norms use the statistics of the batch in evaluation too, because running
    statistics fit only one value. Every `sweep_every` epochs, and after the last epoch, the network is evaluated with
    its weights of 1 replaced by each value of `sweep_on`.
    """

    def __init__(self, *, epsilon: float, random_mag: float, sweep_on: str, sweep_every: int, **common: Any) -> None:
        super().__init__(**common)
        self._epsilon, self._random_mag = epsilon, random_mag
        self._sweep_values, self._sweep_every = stepped(sweep_on), sweep_every
        self._sampler = OutputSampler()
        self._restored_samples: list[tuple[str, Tensor]] = []  # from the checkpoint, of the epoch that is resumed
        self._layers: list[Any] = []

    def prepare(self, model: nn.Module) -> None:
        self._layers = list(constrained_layers(model, BinaryWeight).values())
        if not self._layers:
            raise ValueError("trainer: it trains binary weights, but no layer has them; use conv_type BinaryConv")
        use_batch_statistics(model)
        with torch.no_grad():
            for layer in self._layers:
                if layer.bias is not None:
                    layer.bias.zero_()

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        self._sampler, self._restored_samples = OutputSampler(self._restored_samples), []

    def before_step(self, model: nn.Module, step: int) -> None:
        if self._random_mag:
            chance, share = torch.rand(2).tolist()
            self._set_ones(1 + (chance < self._epsilon) * share * self._random_mag)
        if self.collects_histograms and step % SAMPLING_INTERVAL == 0:
            self._sampler.attach(model, step)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        self._sampler.detach()
        for layer in self._layers:
            layer.constraint.clamp_weight(layer.weight)
            if layer.bias is not None:
                layer.bias.clamp_(0, 1)

    def before_evaluation(self, model: nn.Module) -> None:
        self._set_ones(1.0)

    def tables(
        self, model: nn.Module, held_out: Batches, runtime: Runtime, epoch: int, epochs: int
    ) -> dict[str, Table]:
        """Return the tables of the weight sweep and of parameter statistics, if due after `epoch`.

        The table `weight_sweep` is due every `sweep_every` epochs and after the last epoch. It has the accuracy for
        several values in place of the weights of 1. The table `statistics` is due after the last epoch.
        """
        tables = {}
        if self._sweep_values and (epoch % self._sweep_every == 0 or epoch == epochs):
            rows = weight_sweep(model, held_out, self, runtime, self._sweep_values)
            tables["weight_sweep"] = Table(rows, x="on", y="acc@1")
        if epoch == epochs:
            tables["statistics"] = Table(parameter_statistics(model))
        return tables

    def histograms(self) -> list[tuple[str, Tensor]]:
        samples, self._sampler = self._sampler.samples, OutputSampler()
        return samples

    def state_dict(self) -> dict[str, Any]:
        return {"outputs": dict(self._sampler.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored_samples = [(name, values.float()) for name, values in state.get("outputs", {}).items()]

    def _set_ones(self, value: float) -> None:
        for layer in self._layers:
            layer.constraint.on_value = value
