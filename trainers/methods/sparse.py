"""Trainer `sparse`: rewire a sparse network while it trains (Hebbian sparse CNN, SET, RigL)."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.attachment import constrained_layers
from models.constraints.connection_update import Rewiring
from models.constraints.rewiring_rules import RewiringRules
from models.constraints.sparse import SparseWeight
from trainers import schedules
from trainers.methods.base import Method
from trainers.methods.connection_strengths import ConnectionStrengths
from utils.console import warn
from utils.distributed.runtime import ALONE, Runtime


class Sparse(Method):
    """Drop and grow connections of SparseConv layers every `progress_interval` steps, by the rules in the options.

    Strengths are summed over every `update_interval`-th training step since the last rewiring, the first step included.
    A batch after which connections move is trained on like any other, and RigL grows by its dense gradient.
    """

    def __init__(self, **options: Any) -> None:
        own = {field.name: options.pop(field.name) for field in fields(RewiringRules) if field.name in options}
        super().__init__(**options)
        self._rules, self._runtime = RewiringRules(**own), ALONE
        self._layers: dict[str, Any] = {}
        self._strengths = ConnectionStrengths(self._layers, correlated=self._rules.drop == "correlation")
        self._optimizer: torch.optim.Optimizer | None = None
        self._epoch, self._steps_per_epoch, self._interval, self._end = 0, 1, 1, 0  # rewire every interval until end

    def prepare(self, model: nn.Module) -> None:
        layers = constrained_layers(model).items()
        self._layers.update({name: layer for name, layer in layers if isinstance(layer.constraint, SparseWeight)})
        if not self._layers:
            raise ValueError("trainer: it moves connections, and no layer has a mask; conv_type SparseConv gives one")
        for layer, count in zip(self._layers.values(), self._connection_counts(0), strict=True):
            layer.constraint.draw_mask(count)
            with torch.no_grad():
                # keeps the variance of a unit's input; without it LeNet5 and Conv4 at 5 % stayed at chance
                layer.weight.mul_((layer.weight.numel() / count) ** 0.5)

    def density_note(self) -> str:
        final = f"to {100 * (self._rules.prune_rate or 1.0):g} %"
        falls = "at the first rewiring" if self._rules.by_filter else final
        return f"the density of SparseConv falls {falls}" if self._rules.reduces_density else ""

    def before_fit(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int, runtime: Runtime
    ) -> None:
        rules, self._optimizer, self._steps_per_epoch, self._runtime = self._rules, optimizer, steps_per_epoch, runtime
        self._interval = rules.progress_interval or (steps_per_epoch if rules.by_filter else 100)
        self._end = int((rules.progress_until or (1.0 if rules.by_filter else 0.75)) * steps_per_epoch * epochs)
        if self._interval > self._end:
            stays = f"; {100 * schedules.DENSITY_START:g} % stay" if rules.density_schedule == "cubic" else ""
            when = f"every {self._interval} steps, and end after {self._end}"
            warn(f"no connection will move: updates come {when}{stays}")
        with torch.no_grad():
            for layer in self._layers.values():
                layer.weight.mul_(layer.constraint.mask)

    @property
    def _last(self) -> int:
        """The number of steps after which connections move for the last time."""
        return self._end // self._interval * self._interval

    def resets_best(self, epoch: int) -> bool:
        """Return True for the epoch in which the final density is reached."""
        reached = self._interval if self._rules.by_filter else self._last
        return self._rules.reduces_density and self._last > 0 and 0 < epoch == -(-reached // self._steps_per_epoch) - 1

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        self._epoch = epoch

    def before_step(self, model: nn.Module, step: int) -> None:
        done = self._epoch * self._steps_per_epoch + step
        if done >= self._last:
            return
        if self._rules.records_strengths(done % self._interval, self._strengths.sums):
            self._strengths.attach(self._runtime)
        for layer in self._layers.values():
            layer.constraint.records_gradient = self._rules.grow == "gradient" and (done + 1) % self._interval == 0

    def after_step(self, model: nn.Module, step: int) -> None:
        self._strengths.detach()
        done = self._epoch * self._steps_per_epoch + step + 1
        if done % self._interval == 0 and done <= self._last:
            fraction = self._rules.drop_fraction * schedules.cosine(done, self._end, 0, 1, 1.0)
            for (name, layer), target in zip(self._layers.items(), self._connection_counts(done), strict=True):
                gradient = None if (own := layer.constraint.dense_gradient) is None else self._runtime.total(own)
                inputs = layer.weight.detach(), layer.constraint.mask, self._strengths.sums.get(name), gradient
                self._rewire(layer, self._rules.rewiring(*inputs, target=target, fraction=fraction))
            self._strengths.sums.clear()

    def _connection_counts(self, done: int) -> list[int]:
        """Return the number of connections of every layer after `done` steps."""
        start, final = schedules.DENSITY_START, self._rules.prune_rate or 1.0
        now = schedules.density(done, final, self._last) if done else max(start, final)
        left = (now - final) / (start - final) if final < start else 0.0
        return self._rules.target_counts([layer.weight.shape for layer in self._layers.values()], start, left)

    def _rewire(self, layer: Any, rewiring: Rewiring) -> None:
        """Apply `rewiring` to weight and mask, and zero the optimizer's state of every connection that is not kept."""
        hold = self._rules.sparse_hold
        layer.constraint.rewire(layer.weight, rewiring, hold=hold)
        for value in self._optimizer.state[layer.weight].values() if self._optimizer and hold else ():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.mul_(rewiring.kept)

    def state_dict(self) -> dict[str, Any]:
        return {"strengths": dict(self._strengths.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._strengths.restore(state["strengths"])
