"""Trainer `sparse`: rewire a sparse network while it trains (Hebbian sparse CNN, SET, RigL)."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.attachment import constrained_layers
from models.constraints.connection_update import Rewiring
from models.constraints.registry import DENSITY_START, REWIRE_EVERY, REWIRE_UNTIL
from models.constraints.rewiring_rules import RewiringRules
from models.constraints.sparse import SparseWeight
from trainers import schedules
from trainers.methods.base import Method
from trainers.methods.connection_strengths import ConnectionStrengths
from utils.console import warn
from utils.distributed.runtime import ALONE, Runtime


class Sparse(Method):
    """Train a sparse network, and rewire it every `progress_interval` steps.

    A rewiring drops some connections (weights) of the SparseConv layers and grows others, by the rules in the options.
    The strengths of connections are summed over every `update_interval`-th training step since the last rewiring,
    beginning with the first step. The batch before a rewiring is trained on like any other. Growing by gradient (RigL)
    uses the dense gradient of this batch.
    """

    def __init__(self, **options: Any) -> None:
        own = {field.name: options.pop(field.name) for field in fields(RewiringRules) if field.name in options}
        super().__init__(**options)
        self._rules, self._runtime = RewiringRules(**own), ALONE
        self._layers: dict[str, Any] = {}
        self._strengths = ConnectionStrengths(self._layers, correlated=self._rules.drop == "correlation")
        self._optimizer: torch.optim.Optimizer | None = None
        self._epoch, self._steps_per_epoch = 0, 1
        self._interval, self._end = 1, 0  # training steps between two rewirings, and after which none takes place

    def prepare(self, model: nn.Module) -> None:
        self._layers.update(constrained_layers(model, SparseWeight))
        if not self._layers:
            raise ValueError("trainer: it rewires connections, but no layer has a mask; use conv_type SparseConv")
        for layer, count in zip(self._layers.values(), self._connection_counts(0), strict=True):
            layer.constraint.draw_mask(count)
            with torch.no_grad():
                # Keeps the variance of a unit's input. Without it LeNet5 and Conv4 at 5 % density stayed at chance.
                layer.weight.mul_((layer.weight.numel() / count) ** 0.5)

    def density_note(self) -> str:
        final = f"to {100 * (self._rules.prune_rate or 1.0):g} %"
        falls = "at the first rewiring" if self._rules.by_filter else final
        return f"the density of SparseConv falls {falls}" if self._rules.reduces_density else ""

    def before_fit(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int, runtime: Runtime
    ) -> None:
        rules, self._optimizer, self._steps_per_epoch, self._runtime = self._rules, optimizer, steps_per_epoch, runtime
        self._interval = rules.progress_interval or (steps_per_epoch if rules.by_filter else REWIRE_EVERY)
        self._end = int((rules.progress_until or (1.0 if rules.by_filter else REWIRE_UNTIL)) * steps_per_epoch * epochs)
        if self._interval > self._end:
            stays = f"; the density stays at {100 * DENSITY_START:g} %" if rules.density_schedule == "cubic" else ""
            warn(f"no rewiring takes place: the first is due at step {self._interval}, the last at {self._end}{stays}")
        with torch.no_grad():
            for layer in self._layers.values():
                layer.weight.mul_(layer.constraint.mask)

    @property
    def _last(self) -> int:
        """Number of training steps until the last rewiring of the run, or 0 if there is none."""
        return self._end // self._interval * self._interval

    def resets_best(self, epoch: int) -> bool:
        """Return True if the best epoch is reset, because the density reaches its final value in `epoch`."""
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

    def _connection_counts(self, steps: int) -> list[int]:
        """Return the number of connections (unmasked weights) of each layer after `steps` training steps."""
        start, final = DENSITY_START, self._rules.prune_rate or 1.0
        now = schedules.density(steps, final, self._last) if steps else max(start, final)
        left = (now - final) / (start - final) if final < start else 0.0
        return self._rules.target_counts([layer.weight.shape for layer in self._layers.values()], start, left)

    def _rewire(self, layer: Any, rewiring: Rewiring) -> None:
        """Drop and grow connections of a SparseConv layer, by the masks in `rewiring`."""
        hold = self._rules.sparse_hold
        layer.constraint.rewire(layer.weight, rewiring, hold=hold)
        for value in self._optimizer.state[layer.weight].values() if self._optimizer and hold else ():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.mul_(rewiring.kept)  # the state of dropped and of grown connections restarts at 0

    def state_dict(self) -> dict[str, Any]:
        return {"strengths": dict(self._strengths.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._strengths.restore(state["strengths"])
