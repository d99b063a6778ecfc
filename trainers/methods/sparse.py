"""Trainer `sparse`: few connections, which move while the network trains (Hebbian sparse CNN, SET, RigL)."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints import constrained_layers
from models.constraints.connection_update import Rewiring
from models.constraints.rewiring_rules import RewiringRules
from models.constraints.sparse import SparseWeight
from trainers import schedules
from trainers.connection_strengths import Strengths
from trainers.methods.base import Method
from utils.console import warn
from utils.distributed.runtime import ALONE, Runtime


class Sparse(Method):
    """Connections are dropped and grown every `progress_interval` steps, by the rules in its options.

    Strengths are added up on every `update_interval`-th step after the last change, the first included, in training
    alone. A batch after which connections move is trained on as any other; its dense gradient is what RigL grows by.
    With a density initial weights are larger by 1/√(the layer's), so that a unit's input varies as in the dense layer.
    """

    takes: tuple[str, ...] = tuple(field.name for field in fields(RewiringRules))

    def __init__(self, **options: Any) -> None:
        own = {name: options.pop(name) for name in self.takes if name in options}
        super().__init__(**options)
        self._rules, self._runtime = RewiringRules(**own), ALONE
        self._layers: dict[str, Any] = {}
        self._strengths = Strengths(self._layers, correlated=self._rules.drop == "correlation")
        self._optimizer: torch.optim.Optimizer | None = None
        self._epoch, self._steps, self._every, self._end = 0, 1, 1, 0

    def prepare(self, model: nn.Module) -> None:
        layers = constrained_layers(model).items()
        self._layers.update({name: layer for name, layer in layers if isinstance(layer.constraint, SparseWeight)})
        if not self._layers:
            raise ValueError("trainer: it moves connections, and no layer has a mask; conv_type SparseConv gives one")
        for layer, count in zip(self._layers.values(), self._targets(0), strict=True):
            layer.constraint.draw_mask(count)
            with torch.no_grad():  # else the signal dies out: LeNet5 and Conv4 at 5 % stayed at chance
                layer.weight.mul_((layer.weight.numel() / count) ** 0.5)

    def begin(
        self,
        model: nn.Module,  # noqa: ARG002
        optimizer: torch.optim.Optimizer,
        steps: int,
        epochs: int,
        runtime: Runtime,
    ) -> None:
        rules, self._optimizer, self._steps, self._runtime = self._rules, optimizer, steps, runtime
        self._every = rules.progress_interval or (steps if rules.by_filter else 100)
        until = rules.progress_until or (1.0 if rules.by_filter else 0.75)
        self._end = int(until * steps * epochs)
        if self._every > self._end:
            stays = f"; {100 * schedules.DENSITY_START:g} % stay" * (rules.density_schedule == "cubic")
            warn(f"no connection will move: updates come every {self._every} steps, and end after {self._end}{stays}")
        with torch.no_grad():
            for layer in self._layers.values():
                layer.weight.mul_(layer.constraint.mask)

    @property
    def _last(self) -> int:
        """The number of steps after which connections move for the last time."""
        return self._end // self._every * self._every

    def resets_best(self, epoch: int) -> bool:
        """Where the density that was asked for is first reached."""
        first = (self._every if self._rules.by_filter else self._last) * (
            self._rules.reduces_density and self._last > 0
        )
        return 0 < epoch == -(-first // self._steps) - 1

    def before_epoch(self, model: nn.Module, epoch: int) -> None:  # noqa: ARG002
        self._epoch = epoch

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        done = self._epoch * self._steps + step
        if done >= self._last:
            return
        if self._rules.records_strengths(done % self._every, self._strengths.found):
            self._strengths.watch(self._runtime)
        for layer in self._layers.values():
            layer.constraint.records_gradient = self._rules.grow == "gradient" and (done + 1) % self._every == 0

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        self._strengths.rest()
        done = self._epoch * self._steps + step + 1
        if done % self._every == 0 and done <= self._last:
            fraction = self._rules.drop_fraction * schedules.cosine(done, self._end, 0, 1, 1.0)
            for (name, layer), target in zip(self._layers.items(), self._targets(done), strict=True):
                total = None if (slope := layer.constraint.dense_gradient) is None else self._runtime.total(slope)
                given = layer.weight.detach(), layer.constraint.mask, self._strengths.found.get(name), total
                self._move(layer, self._rules.rewiring(*given, target=target, fraction=fraction))
            self._strengths.found.clear()

    def _targets(self, done: int) -> list[int]:
        """How many connections each layer has after `done` steps."""
        start, final = schedules.DENSITY_START, self._rules.prune_rate or 1.0
        now = schedules.density(done, final, self._last) if done else max(start, final)
        left = (now - final) / (start - final) if final < start else 0.0
        return self._rules.target_counts([layer.weight.shape for layer in self._layers.values()], start, left)

    def _move(self, layer: Any, rewiring: Rewiring) -> None:
        """Into weight, mask and optimizer, whose memory of whatever does not stay as it is becomes 0."""
        hold = self._rules.sparse_hold
        layer.constraint.rewire(layer.weight, rewiring, hold=hold)
        for value in self._optimizer.state[layer.weight].values() if self._optimizer and hold else ():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.mul_(rewiring.kept)

    def state_dict(self) -> dict[str, Any]:
        return {"strengths": dict(self._strengths.found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._strengths.restore(state["strengths"])
