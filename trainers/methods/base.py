"""What a method may add to the loop, and nothing else.

fit:   prepare · begin
       each epoch:  before_epoch
                    each batch:  before_step · forward · loss · backward · optimizer · after_step
                    after_epoch · before_evaluation, evaluation · tables · measures
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.constraints import layer_counts
from trainers.losses import cross_entropy
from trainers.optimizers import Groups, parameter_groups
from utils.records.epoch_tables import Table

if TYPE_CHECKING:
    from trainers.loop import Batches
    from utils.distributed.runtime import Runtime


class Method:
    """A training method: every hook does nothing but the usual; a method overrides those it needs.

    `takes` are the options of its own, which its constructor is given by their names.
    """

    takes: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.0,
        no_bn_decay: bool = False,
        histograms: bool = False,  # noqa: ARG002
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self.no_bn_decay = no_bn_decay

    def prepare(self, model: nn.Module) -> None:
        """Once, before the optimizer is made. Raises ValueError where `model` is not what the method trains."""

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, epochs: int, runtime: "Runtime"
    ) -> None:
        """Before the first step of this process, a resumed run's too: the optimizer, steps an epoch, epochs in all.

        What a method finds out about a batch is of this process's share of it: `runtime.total` and `runtime.gather`
        bring together what all have. Random decisions come out the same on all: their generators are equal.
        """

    def parameter_groups(self, model: nn.Module) -> Groups:
        """What the optimizer trains."""
        return parameter_groups(model, weight_decay=self.weight_decay, no_bn_decay=self.no_bn_decay)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch: (B, classes) float32 logits, (B,) int64 labels; (3 B, classes) for three views."""
        return cross_entropy(logits, labels, self.label_smoothing)

    def resets_best(self, epoch: int) -> bool:  # noqa: ARG002
        """Whether the network is another one from this epoch on, so that an earlier best is no best of this run."""
        return False

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Put `model` into the state of `epoch`, whatever it was before: also called on resuming within an epoch."""

    def before_step(self, model: nn.Module, step: int) -> None: ...

    def after_step(self, model: nn.Module, step: int) -> None: ...

    def after_epoch(self, model: nn.Module, epoch: int) -> None: ...

    def before_evaluation(self, model: nn.Module) -> None:
        """`model` is in evaluation mode: what this method evaluates otherwise."""

    def tables(
        self,
        model: nn.Module,  # noqa: ARG002
        held_out: "Batches",  # noqa: ARG002
        runtime: "Runtime",  # noqa: ARG002
        epoch: int,  # noqa: ARG002
        epochs: int,  # noqa: ARG002
    ) -> dict[str, Table]:
        """What there is to tell in tables after `epoch` (from 1) of `epochs`, by file name."""
        return {}

    def histograms(self) -> list[tuple[str, Tensor]]:
        """(name, values) gathered in the epoch for TensorBoard, where --histograms asks for them."""
        return []

    def measures(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """What to record after an epoch besides loss and accuracy, split -> name -> value: what is kept of each
        constrained layer, and of the network."""
        counts = layer_counts(model)
        layers = {f"density_{c.name}": c.kept / c.total for c in counts if c.constraint != "dense"}
        kept = sum(c.kept for c in counts) / sum(c.total for c in counts)
        return {"weights": layers, "train": {"kept": kept}} if layers else {}

    def state_dict(self) -> dict[str, Any]:
        """What the method must have back on resumption: tensors and plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
