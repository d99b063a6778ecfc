"""Steps of scripts/prune.py: load a run, prune a copy of its network, evaluate and time the result."""

import copy
import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

import data
from args import Options
from data.device_batches import Batches
from models.constraints.attachment import bake
from models.pruning import channel_cut, channel_groups, criteria
from scripts.parts.prune_report import Row, sizes
from trainers.build import assemble, batches, load_set
from trainers.load_trained import check_classes, load_trained
from trainers.loop import Callbacks, evaluate, fit
from trainers.methods.base import Method
from trainers.summary import kept_in_words
from trainers.training_state import TrainingState
from utils.console import say, warn
from utils.distributed.runtime import Runtime
from utils.records.run import Run
from utils.run_paths import locate
from utils.timing import measure, timed
from utils.torch_compat import AnyBatchNorm

TAYLOR_BATCHES = 10  # training batches over which the criterion taylor sums the saliencies
Masks = list[Tensor]  # per hidden layer: True for the weights or units to keep


class PrunedTraining(Method):
    """Training method that sets the pruned weights back to zero after every step."""

    def __init__(self, zero: Callable[[nn.Module], None], options: Options) -> None:
        o = options.optim
        smoothing = o.label_smoothing or 0.0
        super().__init__(label_smoothing=smoothing, weight_decay=o.weight_decay, no_bn_decay=o.no_bn_decay)
        self._zero = zero

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        self._zero(model)


@dataclass
class Trained:
    """Trained network of a run, as a plain network in evaluation mode, with the run's options and data set.

    The network is on the device of `runtime`.
    """

    options: Options
    model: nn.Module
    method: Method
    runtime: Runtime
    image_set: data.ImageSet

    @property
    def test(self) -> Batches:
        """Batches of the test set."""
        return batches(self.options, self.runtime, self.image_set, self.image_set.test)

    @property
    def train(self) -> Batches:
        """Batches of the training set."""
        return batches(self.options, self.runtime, self.image_set, self.image_set.train)


def opened(run: str, data_folder: Path | None, runtime: Runtime) -> Trained:
    """Load a trained network and its data set from `run`, a run directory (newest checkpoint) or a checkpoint.

    data_folder: Folder of the data set; None for the folder in the run's options.

    The checkpoint may be outside of a run. Raises UsageError if `run` is neither, if the checkpoint is damaged, or if
    the data set has other classes.
    """
    trained = load_trained(run, data=str(data_folder)) if data_folder else load_trained(run)
    options, paths = trained.options, locate(Path(run))[0]
    record = Run(paths.path) if paths is not None and paths.exists else None
    if record and record.status().get("status") != "done":
        status = f"{record.path} is not finished, says its status.json"
        warn(f"{status}: {trained.path} is from epoch {trained.epoch} of {options.optim.epochs}")
    if data_folder and data.SETS[options.data.set].bundled:
        warn(f"--data: {data_folder} has no effect, because the images of {options.data.set} are bundled")
    plain, image_set = bake(trained.model), load_set(options)
    check_classes(trained, image_set.spec)
    runtime.put(plain)
    kept = kept_in_words(trained.model)
    say(f"{trained.path} (epoch {trained.epoch}): {options.model.arch} on {options.data.set}, {kept}")
    return Trained(options, plain, trained.method, runtime, image_set)


@dataclass
class Pruner:
    """Pruning method for one network: the scores to prune by, and the functions that apply masks to a network.

    scores: Per hidden layer, one score per weight or unit. The lowest are pruned.
    zero: Sets the weights or units outside the masks to zero, in place.
    cut: Returns a copy of the network without the units outside the masks; None for single weights.
    """

    name: str
    scores: list[Tensor]
    zero: Callable[[nn.Module, Masks], None]
    cut: Callable[[nn.Module, Masks], nn.Module] | None = None


def weight_pruner(trained: Trained, criterion: str | None) -> Pruner:
    """Return the pruner that removes single weights. The default criterion is magnitude."""
    images, _ = next(iter(trained.test.epoch(0)))
    weights = criteria.hidden_weights(trained.model, images[:2])
    scores = criteria.weight_scores(weights, criterion or "magnitude", _saliencies(trained, criterion))
    return Pruner(
        "weight", scores, lambda model, kept: criteria.zero_weights(model, dict(zip(weights, kept, strict=True)))
    )


def unit_pruner(trained: Trained, criterion: str | None) -> Pruner:
    """Return the pruner that removes units (output channels) with their incoming and outgoing weights.

    The default criterion is l2, the norm of the incoming weights.
    """
    images, _ = next(iter(trained.test.epoch(0)))
    groups = channel_groups.unit_groups(trained.model, images[:2])
    weights = criteria.layer_weights(trained.model)
    scores = criteria.unit_scores(weights, groups, criterion or "l2", _saliencies(trained, criterion))
    return Pruner(
        "unit",
        scores,
        lambda model, kept: channel_cut.zero_units(model, groups, kept),
        lambda model, kept: channel_cut.compacted(model, groups, kept),
    )


METHODS: dict[str, Callable[[Trained, str | None], Pruner]] = {"weight": weight_pruner, "unit": unit_pruner}


def _saliencies(trained: Trained, criterion: str | None) -> dict[str, Tensor] | None:
    """Return the Taylor saliencies on the first training batches, or None if the criterion does not need them."""
    if criterion != "taylor":
        return None
    first = islice(trained.train.epoch(0), TAYLOR_BATCHES)
    losses = (trained.method.loss(trained.model(images).float(), labels) for images, labels in first)
    return criteria.taylor_saliencies(trained.model, losses)


def pruned(
    trained: Trained, pruner: Pruner, percent: float, *, scope: str, epochs: int = 0, bn_batches: int = 0
) -> tuple[nn.Module, Masks]:
    """Return a copy of the trained network with the pruned weights set to zero, and the masks of the kept weights.

    percent: Percentage to prune, per hidden layer or of all together (`scope`).
    epochs: Epochs of fine-tuning, during which the pruned weights stay zero.
    bn_batches: Training batches from which the running statistics of batch norms are recomputed; 0 keeps them.
    """
    kept = criteria.keep_masks(pruner.scores, percent, scope)
    model = copy.deepcopy(trained.model)
    pruner.zero(model, kept)
    if epochs:
        options = trained.options.replace(epochs=epochs, start_epoch=None)
        method = PrunedTraining(lambda network: pruner.zero(network, kept), options)
        setup = assemble(options, trained.runtime, model, method, trained.image_set)
        fit(setup, TrainingState(), epochs, Callbacks())
    if bn_batches:
        torch.optim.swa_utils.update_bn(islice(trained.train.epoch(0), bn_batches), model)
    return model.eval(), kept


def has_norms(model: nn.Module) -> bool:
    """Return True if the model has batch norms that use running statistics in evaluation mode.

    The batch norms of binary networks always use the statistics of the current batch.
    """
    return any(isinstance(m, AnyBatchNorm) and not getattr(m, "uses_batch_statistics", False) for m in model.modules())


def row(trained: Trained, method: str, percent: float, model: nn.Module, smaller: nn.Module) -> Row:
    """Evaluate `model` on the test set. Return its report row, with the sizes of the equivalent network `smaller`."""
    score = evaluate(model, trained.test, trained.method, trained.runtime)
    return Row(method, percent, score.top1, score.loss, *sizes(smaller))


@torch.no_grad()
def add_times(rows: Sequence[Row], networks: Sequence[nn.Module], trained: Trained, repeat: int) -> None:
    """Time each network on one test batch, and set `ms_per_image` of its row to the median of `repeat` timings.

    The timings of the networks are interleaved.
    """
    images, _ = next(iter(trained.test.epoch(0)))
    different = {id(network): network for network in networks}
    samplers = {
        key: timed(functools.partial(network, images), wait=trained.runtime.wait) for key, network in different.items()
    }
    samples = measure(samplers, repeat)
    for row, network in zip(rows, networks, strict=True):
        row.ms_per_image = 1e3 * statistics.median(samples[id(network)]) / len(images)


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, images: Iterable[Tensor]) -> float:
    """Return the largest absolute difference of the two networks' logits over the batches; NaN if a logit is NaN."""
    return float(torch.stack([(one(batch) - other(batch)).abs().max() for batch in images]).max())
