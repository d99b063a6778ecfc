"""Base class of all training methods. A method changes the training loop by its hooks.

The loop calls the hooks in this order (its own steps are in parentheses):

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
    """Ordinary training, and base class of all training methods.

    A subclass overrides the hooks that it needs. The arguments of the constructor are options of the command line. The
    options below are common to all methods. A subclass declares its own options as required keyword-only arguments,
    because only the command line's options have defaults.

    In distributed training every process calls the hooks at the same time, with its own replica of the model and its
    own slice of the batch. A hook must change all replicas in the same way. Therefore sum or gather a value that
    depends on the batch, with `runtime.total` or `runtime.gather`, before it changes the model. Random numbers from
    torch's generators are equal on all processes. `metrics`, `histograms` and `state_dict` run on the first process
    only, so they must not communicate.
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
        """Check and initialise `model` in place, before the optimizer is made.

        Called once, on the CPU. Raises ValueError if the method cannot train `model`.
        """

    def density_note(self) -> str:
        """Return a sentence about the change of the density during training, for the log.

        Return "" if the density is constant. Called after `prepare`.
        """
        return ""

    def parameter_groups(self, model: nn.Module) -> Groups:
        """Return the parameter groups of the optimizer, including parameters that are frozen in some epochs.

        Called once or twice before the optimizer is made. Raises ValueError if no parameter would train.
        """
        return parameter_groups(model, weight_decay=self.weight_decay, no_bn_decay=self.no_bn_decay)

    def before_fit(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int, runtime: Runtime
    ) -> None:
        """Store the arguments that later hooks need, before the first training step.

        Called once per process. In a resumed run the checkpoint is already loaded.
        """

    def resets_best(self, epoch: int) -> bool:
        """Return True if the search for the best epoch restarts at `epoch`.

        `epoch` is counted from 0. Earlier epochs then do not count, for example because the network was denser. The
        result may depend on `epoch` and on the arguments of `prepare` and `before_fit`, but not on the course of
        training.
        """
        return False

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Set the densities and the frozen parameters of `model` for `epoch` (from 0).

        The result must depend on `epoch` only, not on earlier calls. A resumed run calls this hook within an epoch, and
        --evaluate calls it for the epoch of the checkpoint.
        """

    def before_step(self, model: nn.Module, step: int) -> None:
        """Prepare the model for the forward pass on batch `step`, counted from 0 in every epoch."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, in training and in evaluation.

        The loss is a scalar. `logits` is (B, classes) in float32, or (3 B, classes) for three augmented views of each
        image. `labels` is (B,) in int64. Gradients are disabled in evaluation.
        """
        return cross_entropy(logits, labels, self.label_smoothing)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change weights, masks or optimizer state after an optimizer step.

        `step` is the number of the batch, counted from 0 in every epoch.
        """

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Change `model` after the last step of an epoch, before the evaluation.

        The evaluation is on the held-out split. `epoch` is counted from 0.
        """

    def before_evaluation(self, model: nn.Module) -> None:
        """Undo the changes of `before_step` that are for training only.

        `model` is in evaluation mode. Called before every evaluation: on the held-out split, on the test set and in a
        weight sweep.
        """

    def tables(
        self, model: nn.Module, held_out: Batches, runtime: Runtime, epoch: int, epochs: int
    ) -> dict[str, Table]:
        """Return the tables to write as CSV files after an epoch, by file name.

        `epoch` is counted from 1 to `epochs`. The hook may evaluate `model` on the `held_out` split, because every
        process calls it. The hook must not change `model`, which is in evaluation mode.
        """
        return {}

    def metrics(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return the metrics to log after an epoch, besides loss and accuracy.

        The result maps split to metrics by name. By default these are the density of every constrained layer and of the
        network. The hook must not change `model`, which is in evaluation mode.
        """
        counts = layer_counts(model)
        layers = {f"density_{c.name}": c.kept / c.total for c in counts if c.constraint != "dense"}
        kept = sum(c.kept for c in counts) / sum(c.total for c in counts)
        return {"weights": layers, "train": {"kept": kept}} if layers else {}

    def histograms(self) -> list[tuple[str, Tensor]]:
        """Return the values collected since the last call, for histograms in TensorBoard.

        They are (name, values) pairs. A method collects values only if `self.collects_histograms` is True, which the
        option --histograms sets.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the method's own state, which checkpoints store besides weights and optimizer.

        It maps names to tensors or plain values. With this state a resumed run must be bit-exact. Called for every
        checkpoint, also within an epoch.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the `state` that `state_dict` returned.

        Called on every process, after `prepare` and before `before_fit`.
        """
