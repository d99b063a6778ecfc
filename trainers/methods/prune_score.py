"""Trainers of tickets: `prune_score`, which is BIPROP's `default`, and its `lottery` and `ss` as they were meant."""

from typing import Any

import torch
from torch import Tensor, nn

from models.constraints import constrained_layers, weight_layers
from trainers import schedules
from trainers.methods.base import Method
from trainers.optimizers import Groups


class PruneScore(Method):
    """Multi-prize tickets (Diffenderfer & Kailkhura, ICLR 2021): the constraint does the work, the loop is as ever.

    Layers that select together (GlobalSubnetConv) come to their density over the first `prune_rate_epoch` epochs.
    """

    takes: tuple[str, ...] = ("prune_rate_epoch",)

    def __init__(self, *, prune_rate_epoch: int = 0, **usual: Any) -> None:
        super().__init__(**usual)
        self._length = prune_rate_epoch
        self._scored: list[Any] = []
        self._scheduled: list[tuple[Any, float]] = []

    @property
    def _asked_for(self) -> int:
        """The epoch from which the network is the one that was asked for."""
        return self._length if any(final < schedules.DENSITY_START for _, final in self._scheduled) else 0

    def prepare(self, model: nn.Module) -> None:
        constraints = [layer.constraint for layer in constrained_layers(model).values()]
        self._scored = [c for c in constraints if "scores" in dict(c.named_parameters())]
        if not self._scored:
            raise ValueError("trainer: it trains scores, and no layer has any; conv_type SubnetConv gives them")
        selections = {id(c.selection): c.selection for c in constraints if hasattr(c, "selection")}
        self._scheduled = [(selection, selection.density) for selection in selections.values()]

    def resets_best(self, epoch: int) -> bool:
        return 0 < epoch == self._asked_for

    def before_epoch(self, model: nn.Module, epoch: int) -> None:  # noqa: ARG002
        for selection, final in self._scheduled:
            selection.density = schedules.density(epoch, final, self._length)


class Lottery(PruneScore):
    """A ticket in a trained network: for `dense_epochs` the weights and biases of every layer train, whatever else is
    frozen; then they are frozen, the scores train, and layers that select together begin to come to their density.

    What BIPROP's trainer of that name was meant to do: there the first phase kept nothing, and its weights were not in
    the optimizer.
    """

    takes = (*PruneScore.takes, "dense_epochs")

    def __init__(self, *, dense_epochs: int = 6, **usual: Any) -> None:
        super().__init__(**usual)
        self._dense_epochs = dense_epochs

    def parameter_groups(self, model: nn.Module) -> Groups:
        """Weights and scores: those frozen at the time have no gradient, and the optimizer passes them by."""
        self._open(model, weights=True, scores=True)
        return super().parameter_groups(model)

    @property
    def _asked_for(self) -> int:
        return self._dense_epochs + super()._asked_for

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        super().before_epoch(model, max(0, epoch - self._dense_epochs))
        dense = epoch < self._dense_epochs
        self._open(model, weights=dense, scores=not dense)
        for constraint in self._scored:
            constraint.bypassed = dense

    def _open(self, model: nn.Module, *, weights: bool, scores: bool) -> None:
        for layer in weight_layers(model).values():
            layer.requires_grad_(weights)
        for layer in constrained_layers(model).values():
            layer.constraint.requires_grad_(scores)


class SparseScores(PruneScore):
    """Cross-entropy and, in training, `score_l1` times the sum of sigmoid(scores): what BIPROP's trainer `ss` was meant
    to minimise (there the cross-entropy was never differentiated)."""

    takes = (*PruneScore.takes, "score_l1")

    def __init__(self, *, score_l1: float = 1e-8, **usual: Any) -> None:
        super().__init__(**usual)
        self._score_l1 = score_l1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().loss(logits, labels)
        if not torch.is_grad_enabled():
            return loss
        return loss + self._score_l1 * torch.stack([torch.sigmoid(c.scores).sum() for c in self._scored]).sum()
