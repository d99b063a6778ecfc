"""Trainers of scores: `prune_score` (BIPROP's `default`), and BIPROP's `lottery` and `ss` without their bugs."""

from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.attachment import constrained_layers, weight_layers
from trainers import schedules
from trainers.methods.base import Method
from trainers.optimizers import Groups


class PruneScore(Method):
    """Train the scores of multi-prize tickets (Diffenderfer & Kailkhura, ICLR 2021). The constraints prune by them.

    The density of GlobalSubnetConv layers, which share one selection, falls from 0.5 to its final value over the first
    `prune_rate_epoch` epochs. Other densities are constant.
    """

    def __init__(self, *, prune_rate_epoch: int, **common: Any) -> None:
        super().__init__(**common)
        self._schedule_epochs = prune_rate_epoch
        self._scored_constraints: list[Any] = []
        self._final_densities: list[tuple[Any, float]] = []  # (selection, density)

    def prepare(self, model: nn.Module) -> None:
        constraints = [layer.constraint for layer in constrained_layers(model).values()]
        self._scored_constraints = [c for c in constraints if "scores" in dict(c.named_parameters())]
        if not self._scored_constraints:
            raise ValueError("trainer: it trains scores, and no layer has any; conv_type SubnetConv gives them")
        selections = {id(c.selection): c.selection for c in constraints if hasattr(c, "selection")}
        self._final_densities = [(selection, selection.density) for selection in selections.values()]

    @property
    def _falling_epochs(self) -> int:
        """Number of epochs in which the density is above its final value; 0 if no density falls."""
        falls = any(final < schedules.DENSITY_START for _, final in self._final_densities)
        return self._schedule_epochs if falls else 0

    def density_note(self) -> str:
        epochs = self._falling_epochs
        return f"the density of GlobalSubnetConv falls to that from 50 % in {epochs} epochs" if epochs else ""

    def resets_best(self, epoch: int) -> bool:
        return 0 < epoch == self._falling_epochs

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        for selection, final in self._final_densities:
            selection.density = schedules.density(epoch, final, self._schedule_epochs)


class Lottery(PruneScore):
    """Find a ticket in a trained network: train the dense network first, then freeze its weights and train scores.

    For `dense_epochs` the weights and biases of every layer train, also those that freeze_weights freezes. The density
    schedule begins after that. BIPROP's trainer `lottery` keeps no weight in its first phase, and its optimizer does
    not have the weights.
    """

    def __init__(self, *, dense_epochs: int, **options: Any) -> None:
        super().__init__(**options)
        self._dense_epochs = dense_epochs

    def resets_best(self, epoch: int) -> bool:
        return 0 < epoch == self._dense_epochs + self._falling_epochs

    def density_note(self) -> str:
        dense, falling = f"all of them in the first {self._dense_epochs} epochs", super().density_note()
        return f"{dense}; then {falling}" if falling else dense

    def parameter_groups(self, model: nn.Module) -> Groups:
        # The optimizer owns weights and scores from the start. It skips the frozen ones, which have no gradient.
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
    """Train scores on cross-entropy + `score_l1` · Σ sigmoid(scores). In evaluation the loss is cross-entropy alone.

    BIPROP's trainer `ss` adds the same penalty, but never differentiates the cross-entropy.
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
