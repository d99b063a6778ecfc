"""Base class of every training method: the hooks by which a method changes training.

The order of the hooks, with the steps of the loop in parentheses:

    prepare, density_note, parameter_groups
    before_epoch, load_state_dict                              when a run is resumed
    before_fit
    every epoch:
        before_epoch, resets_best
        every batch:
            before_step, (forward), loss, (backward), (optimizer step), after_step
        after_epoch
        before_evaluation, (forward) and loss per held-out batch
        tables, metrics, histograms, state_dict

With --evaluate: prepare, before_epoch, before_evaluation, (forward) and loss per test batch.

To write a method, subclass `Method`, override the hooks it needs, and add its row to `trainers/registry.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from data.device_batches import Batches
from models.constraints.counts import layer_counts
from trainers.losses import cross_entropy
from trainers.optimizers import Groups, parameter_groups
from utils.distributed.runtime import Runtime
from utils.records.epoch_tables import Table


class Method:
    """Ordinary training. Every hook has a default; a subclass overrides the hooks it needs.

    The constructor takes options by their names. The ones below are common to all methods. A subclass declares its own
    as required keyword-only arguments, because their defaults stand in `args.py` alone.

    With several processes, every process calls the hooks at the same time, with its own replica of the model and its
    own slice of the batch. A hook must make the same change on all replicas. Sum or gather whatever depends on the
    batch with `runtime.total` or `runtime.gather` first. Draws from torch's generators are equal on all processes.
    `metrics`, `histograms` and `state_dict` run on the first process alone, so they must not communicate.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.0,
        no_bn_decay: bool = False,
        histograms: bool = False,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self.no_bn_decay = no_bn_decay
        self.collects_histograms = histograms

    def prepare(self, model: nn.Module) -> None:
        """Check and initialise `model`, in place. Called once, on the CPU, before the optimizer is made.

        Raises ValueError if the method cannot train `model`.
        """

    def density_note(self) -> str:
        """Return how the density changes during training, for the log; "" if it does not. Called after `prepare`."""
        return ""

    def parameter_groups(self, model: nn.Module) -> Groups:
        """Return the optimizer's parameter groups, which include parameters that are frozen for some epochs.

        Called once or twice before the optimizer is made. Raises ValueError if no parameter would train.
        """
        return parameter_groups(model, weight_decay=self.weight_decay, no_bn_decay=self.no_bn_decay)

    def before_fit(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int, runtime: Runtime
    ) -> None:
        """Store what later hooks need of the optimizer, the length of the run and its runtime.

        Called once per process, before its first step. In a resumed run the checkpoint is loaded by then.
        """

    def resets_best(self, epoch: int) -> bool:
        """Return True if no epoch before `epoch` (from 0) may count as the best, such as epochs of a denser network.

        The answer may depend on `epoch` and on what `prepare` and `before_fit` were given, not on training.
        """
        return False

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Bring `model` into the state of `epoch` (from 0): densities, frozen parameters.

        The state may depend on `epoch` alone, not on earlier calls: a resumed run calls this within an epoch, and
        --evaluate calls it for the epoch of the checkpoint.
        """

    def before_step(self, model: nn.Module, step: int) -> None:
        """Prepare the forward pass of batch `step` (from 0 in every epoch)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch: a scalar, the mean over the batch. Called in training and in evaluation.

        `logits` is (B, classes) in float32, or (3 B, classes) for three augmented views; `labels` is (B,) in int64.
        Gradients are disabled in evaluation.
        """
        return cross_entropy(logits, labels, self.label_smoothing)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change weights, masks or optimizer state after the optimizer's step on batch `step` (from 0)."""

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Change `model` after the last step of `epoch` (from 0), before the held-out split is evaluated."""

    def before_evaluation(self, model: nn.Module) -> None:
        """Undo on `model`, which is in evaluation mode, what `before_step` sets for training alone.

        Called before every evaluation: of the held-out split, of the test set and in a weight sweep.
        """

    def tables(
        self, model: nn.Module, held_out: Batches, runtime: Runtime, epoch: int, epochs: int
    ) -> dict[str, Table]:
        """Return tables to record after `epoch` (from 1) of `epochs`, by file name. Must not change `model`.

        `model` is in evaluation mode. Every process calls this hook, so that it may evaluate `model` on `held_out`.
        """
        return {}

    def metrics(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return metrics to log after an epoch besides loss and accuracy: split -> name -> value.

        By default the density of every constrained layer and of the network. Must not change `model`, which is in
        evaluation mode.
        """
        counts = layer_counts(model)
        layers = {f"density_{c.name}": c.kept / c.total for c in counts if c.constraint != "dense"}
        kept = sum(c.kept for c in counts) / sum(c.total for c in counts)
        return {"weights": layers, "train": {"kept": kept}} if layers else {}

    def histograms(self) -> list[tuple[str, Tensor]]:
        """Return (name, values) collected since the last call, for TensorBoard.

        A method collects them only if `self.collects_histograms`, which --histograms sets.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to resume to the bit: tensors and plain types, by name.

        Called for every checkpoint, also within an epoch. Weights and optimizer state are stored without it.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on every process. Called after `prepare` and before `before_fit`."""
