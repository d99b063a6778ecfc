"""Trainers of scores: `prune_score` (BIPROP's `default`), and BIPROP's `lottery` and `ss` without their bugs."""

from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.attachment import constrained_layers, weight_layers
from models.constraints.registry import DENSITY_START
from trainers import schedules
from trainers.methods.base import Method
from trainers.optimizers import Groups


class PruneScore(Method):
    """Train a score for every weight, which decides whether the weight is kept.

    The constraints of the layers select by these scores which weights to keep (multi-prize tickets, Diffenderfer &
    Kailkhura, ICLR 2021).

    The density of GlobalSubnetConv layers falls from 0.5 to its final value over the first `prune_rate_epoch` epochs.
    The density of other layers is constant.
    """

    def __init__(self, *, prune_rate_epoch: int, **common: Any) -> None:
        super().__init__(**common)
        self._schedule_epochs = prune_rate_epoch
        self._scored_constraints: list[Any] = []
        self._final_densities: list[tuple[Any, float]] = []  # (GlobalSelection, its final density)

    def prepare(self, model: nn.Module) -> None:
        constraints = [layer.constraint for layer in constrained_layers(model).values()]
        self._scored_constraints = [c for c in constraints if "scores" in dict(c.named_parameters())]
        if not self._scored_constraints:
            raise ValueError("trainer: it trains scores, but no layer has scores; use conv_type SubnetConv")
        selections = {id(c.selection): c.selection for c in constraints if hasattr(c, "selection")}
        self._final_densities = [(selection, selection.density) for selection in selections.values()]

    @property
    def _falling_epochs(self) -> int:
        """Number of epochs in which the density is above its final value, or 0 if no density falls."""
        falls = any(final < DENSITY_START for _, final in self._final_densities)
        return self._schedule_epochs if falls else 0

    def density_note(self) -> str:
        epochs = self._falling_epochs
        start = f"{100 * DENSITY_START:g} %"
        return f"the density of GlobalSubnetConv falls from {start} to this value in {epochs} epochs" if epochs else ""

    def resets_best(self, epoch: int) -> bool:
        return 0 < epoch == self._falling_epochs

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        for selection, final in self._final_densities:
            selection.density = schedules.density(epoch, final, self._schedule_epochs)


class Lottery(PruneScore):
    """Find a lottery ticket, by training first the dense network and then scores.

    The weights are frozen while the scores train. The scores select the weights to keep.

    In the first `dense_epochs` epochs the weights and biases of every layer train, also if freeze_weights freezes them.
    The density schedule begins after these epochs. BIPROP's own `lottery` has two bugs: its first phase keeps no
    weight, and its optimizer does not get the weights.
    """

    def __init__(self, *, dense_epochs: int, **options: Any) -> None:
        super().__init__(**options)
        self._dense_epochs = dense_epochs

    def resets_best(self, epoch: int) -> bool:
        return 0 < epoch == self._dense_epochs + self._falling_epochs

    def density_note(self) -> str:
        dense, falling = f"all weights are kept in the first {self._dense_epochs} epochs", super().density_note()
        return f"{dense}; then {falling}" if falling else dense

    def parameter_groups(self, model: nn.Module) -> Groups:
        # The optimizer gets weights and scores from the start. It skips frozen parameters, which have no gradient.
        self._set_trainable(model, weights=True, scores=True)
        return super().parameter_groups(model)

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        super().before_epoch(model, max(0, epoch - self._dense_epochs))
        dense = epoch < self._dense_epochs
        self._set_trainable(model, weights=dense, scores=not dense)
        for constraint in self._scored_constraints:
            constraint.bypassed = dense

    def _set_trainable(self, model: nn.Module, *, weights: bool, scores: bool) -> None:
        for layer in weight_layers(model).values():
            layer.requires_grad_(weights)
        for layer in constrained_layers(model).values():
            layer.constraint.requires_grad_(scores)


class SparseScores(PruneScore):
    """Train scores that select the weights to keep, with a penalty on the scores.

    The loss is cross-entropy + `score_l1` · Σ sigmoid(scores). In evaluation the loss is the cross-entropy only.
    BIPROP's trainer `ss` has the same penalty, but by a bug it never differentiates the cross-entropy.
    """

    def __init__(self, *, score_l1: float, **options: Any) -> None:
        super().__init__(**options)
        self._score_l1 = score_l1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().loss(logits, labels)
        if not torch.is_grad_enabled():
            return loss
        penalties = [torch.sigmoid(constraint.scores).sum() for constraint in self._scored_constraints]
        return loss + self._score_l1 * torch.stack(penalties).sum()
