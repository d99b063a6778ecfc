"""Trainer `shift`: DeepShift. The constraints compute the shifts; the method only records their distribution."""

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
    """Train DeepShift-Q and DeepShift-PS networks, whose weights are powers of two (Elhoushi et al., CVPR-W 2021)."""

    def prepare(self, model: nn.Module) -> None:
        if not shift_layers(model):
            raise ValueError("trainer: it trains shifts, and no layer has any; conv_type ShiftQ or ShiftPS gives them")

    def tables(
        self, model: nn.Module, held_out: Batches, runtime: Runtime, epoch: int, epochs: int
    ) -> dict[str, Table]:
        """Return the table `shifts`: the share of all shift weights that are ±2^exponent, per exponent.

        The shares add up to 1 − the share of zeros. About `TABLES_PER_RUN` epochs have a table, and the last one has.
        """
        if epoch % max(1, epochs // TABLES_PER_RUN) and epoch != epochs:
            return {}
        counts = exponent_counts(model)
        total = sum(weight_shape(layer).numel() for layer in shift_layers(model).values())
        rows: list[TableRow] = [{"exponent": float(p), "share": count / total} for p, count in counts.items()]
        return {"shifts": Table(rows, "exponent", "share")}


def shift_layers(model: nn.Module) -> dict[str, Any]:
    """Return every layer with shift weights, by name."""
    return {n: m for n, m in constrained_layers(model).items() if isinstance(m.constraint, ShiftWeight)}


@torch.no_grad()
def exponent_counts(model: nn.Module) -> dict[int, int]:
    """Return the number of effective weights that are ±2^p, by exponent p; `model` is in evaluation mode.

    The exponents run from the lowest that the constraints allow up to 0, further if weights lie outside, which happens
    under shift_update crude because it clamps nothing.
    """
    layers = shift_layers(model).values()
    weights = torch.cat([layer.constraint(layer.weight).flatten() for layer in layers]).cpu()
    weights = weights[weights.isfinite() & (weights != 0)]
    exponents = torch.frexp(weights).exponent - 1  # frexp has mantissas in [0.5, 1): 2^p = 0.5 · 2^(p + 1)
    lowest = min(*(layer.constraint.lowest for layer in layers), *exponents.unique().tolist(), 0)
    counts = torch.bincount(exponents - lowest, minlength=1 - lowest)
    return {lowest + i: count for i, count in enumerate(counts.tolist())}
