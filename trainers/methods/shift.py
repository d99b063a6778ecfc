"""Trainer `shift` for DeepShift networks. It records the distribution of the shifts, which the constraints compute."""

from typing import Any

import torch
from torch import nn

from data.device_batches import Batches
from models.constraints.attachment import constrained_layers, weight_shape
from models.constraints.shift import ShiftWeight
from trainers.methods.base import Method
from utils.distributed.runtime import Runtime
from utils.records.epoch_tables import Table, TableRow

TABLES_PER_RUN = 10


class Shift(Method):
    """Train DeepShift networks, whose weights are zero or signed powers of two (Elhoushi et al., CVPR-W 2021)."""

    def prepare(self, model: nn.Module) -> None:
        if not shift_layers(model):
            raise ValueError("trainer: it trains shifts, but no layer has shifts; use conv_type ShiftQ or ShiftPS")

    def tables(
        self, model: nn.Module, held_out: Batches, runtime: Runtime, epoch: int, epochs: int
    ) -> dict[str, Table]:
        """Return the share of the weights with each exponent, about ten times per run.

        The table `shifts` has the share of the shift weights that are ±2^p, for each exponent p. It is returned after
        about every tenth of the run, and after the last epoch. After other epochs no table is returned. The shares and
        the share of zeros add up to 1. `TABLES_PER_RUN` is the approximate number of tables.
        """
        if epoch % max(1, epochs // TABLES_PER_RUN) and epoch != epochs:
            return {}
        counts = exponent_counts(model)
        total = sum(weight_shape(layer).numel() for layer in shift_layers(model).values())
        rows: list[TableRow] = [{"exponent": float(p), "share": count / total} for p, count in counts.items()]
        return {"shifts": Table(rows, "exponent", "share")}


def shift_layers(model: nn.Module) -> dict[str, Any]:
    """Return the DeepShift layers of `model` by name.

    Their constraint is ShiftQ or ShiftPS.
    """
    return constrained_layers(model, ShiftWeight)


@torch.no_grad()
def exponent_counts(model: nn.Module) -> dict[int, int]:
    """Count the effective weights that are ±2^p, for each exponent p.

    `model` is in evaluation mode. The exponents range from the lowest exponent of the constraints to 0. The range is
    wider if weights are outside, because shift_update=crude does not clamp weights.
    """
    layers = shift_layers(model).values()
    weights = torch.cat([layer.constraint(layer.weight).flatten() for layer in layers]).cpu()
    weights = weights[weights.isfinite() & (weights != 0)]
    exponents = torch.frexp(weights).exponent - 1  # frexp has mantissas in [0.5, 1): 2^p = 0.5 · 2^(p + 1)
    lowest = min(*(layer.constraint.lowest for layer in layers), *exponents.unique().tolist(), 0)
    counts = torch.bincount(exponents - lowest, minlength=1 - lowest)
    return {lowest + i: count for i, count in enumerate(counts.tolist())}
