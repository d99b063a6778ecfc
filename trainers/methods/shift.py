"""Trainer `shift`: DeepShift. Its constraints do the work, the loop is as ever; here is told where the shifts lie."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.constraints import constrained_layers, weight_shape
from models.constraints.shift import ShiftWeight
from trainers.methods.base import Method
from utils.records.epoch_tables import Table, TableRow

if TYPE_CHECKING:
    from trainers.loop import Batches
    from utils.distributed.runtime import Runtime

LOOKS = 10  # of a run at where its shifts lie


class Shift(Method):
    """DeepShift-Q and -PS (Elhoushi et al., CVPR-W 2021): what gradient descent does with weights that are shifts."""

    def prepare(self, model: nn.Module) -> None:
        if not shift_layers(model):
            raise ValueError("trainer: it trains shifts, and no layer has any; conv_type ShiftQ or ShiftPS gives them")

    def tables(
        self,
        model: nn.Module,
        held_out: "Batches",  # noqa: ARG002
        runtime: "Runtime",  # noqa: ARG002
        epoch: int,
        epochs: int,
    ) -> dict[str, Table]:
        """`shifts`, of about `LOOKS` epochs, the last among them: which share of all shift weights is ± 2^exponent, by
        exponent; what is missing to 1 is zero."""
        if epoch % max(1, epochs // LOOKS) and epoch != epochs:
            return {}
        counts = exponent_counts(model)
        total = sum(weight_shape(layer).numel() for layer in shift_layers(model).values())
        rows: list[TableRow] = [{"exponent": float(p), "share": count / total} for p, count in counts.items()]
        return {"shifts": Table(rows, "exponent", "share")}


def shift_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> layer for every layer with shift weights."""
    return {n: m for n, m in constrained_layers(model).items() if isinstance(m.constraint, ShiftWeight)}


@torch.no_grad()
def exponent_counts(model: nn.Module) -> dict[int, int]:
    """Exponent p -> how many effective weights of a network in evaluation mode are ± 2^p, over the range of p and what
    lies beyond it, where shift_update crude clamps nothing."""
    layers = shift_layers(model).values()
    weights = torch.cat([layer.constraint(layer.weight).flatten() for layer in layers]).cpu()
    weights = weights[weights.isfinite() & (weights != 0)]
    exponents = torch.frexp(weights).exponent - 1  # 2^p is 1/2 · 2^(p + 1) there
    lowest = min(*(layer.constraint.lowest for layer in layers), *exponents.unique().tolist(), 0)
    counts = torch.bincount(exponents - lowest, minlength=1 - lowest)
    return {lowest + i: count for i, count in enumerate(counts.tolist())}
