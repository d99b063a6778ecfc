"""What scripts/prune.py does between its command line and its tables: open a run, prune a copy of it, test it."""

import copy
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import data
from args import Options
from models.constraints import bake
from models.pruning import channel_groups, compact, criteria
from scripts.benchmarks.contenders import NullCallbacks, measure, timed
from scripts.parts.prune_report import Row, sizes
from trainers.build import assemble, batches, load_set
from trainers.load_trained import check_classes, load_trained
from trainers.loop import Batches, TrainingState, evaluate, fit
from trainers.methods.base import Method
from trainers.summary import kept_in_words
from utils.console import say, warn
from utils.distributed.runtime import Runtime
from utils.records.run import Run
from utils.run_paths import locate_run

TAYLOR_BATCHES = 10  # of training data, for the criterion taylor
Masks = list[Tensor]


class Held(Method):
    """Plain training in which what has been pruned stays zero."""

    def __init__(self, zero: Callable[[nn.Module], None], options: Options) -> None:
        o = options.optim
        smoothing = o.label_smoothing or 0.0
        super().__init__(label_smoothing=smoothing, weight_decay=o.weight_decay, no_bn_decay=o.no_bn_decay)
        self._zero = zero

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        self._zero(model)


@dataclass
class Trained:
    """A run's network with its constraint baked in, on the device, in evaluation mode, and what it was trained on."""

    options: Options
    model: nn.Module
    method: Method
    runtime: Runtime
    image_set: data.ImageSet
    path: Path  # of the run

    @property
    def test(self) -> Batches:
        return batches(self.options, self.runtime, self.image_set, self.image_set.test)

    @property
    def train(self) -> Batches:
        return batches(self.options, self.runtime, self.image_set, self.image_set.train)


def opened(run: str, data_folder: Path | None, runtime: Runtime) -> Trained:
    """Load the newest checkpoint of the run directory `run`, or the checkpoint of that path, and the run's data set.

    data_folder: where the data set is now, if not where the run had it.

    Raises UsageError if `run` is neither, if the checkpoint is damaged, or if the data set has other classes.
    """
    record = Run(locate_run(Path(run))[0].path)
    trained = load_trained(run, data=str(data_folder)) if data_folder else load_trained(run)
    options = trained.options
    if record.status().get("status") != "done":
        warn(f"{record.path} is not finished: {trained.path} is from epoch {trained.epoch} of {options.optim.epochs}")
    plain, image_set = bake(trained.model), load_set(options)
    check_classes(trained, image_set.spec)
    runtime.put(plain)
    kept = kept_in_words(trained.model)
    say(f"{trained.path} (epoch {trained.epoch}): {options.model.arch} on {options.data.set}, {kept}")
    return Trained(options, plain, trained.method, runtime, image_set, record.path)


@dataclass
class Pruner:
    """One way to prune: `scores` decide, `zero` sets to 0 what is not in the masks, `cut` leaves it out of a copy."""

    name: str
    scores: list[Tensor]
    zero: Callable[[nn.Module, Masks], None]
    cut: Callable[[nn.Module, Masks], nn.Module] | None = None


def weight_pruner(trained: Trained, criterion: str | None) -> Pruner:
    """Single weights, by magnitude where no `criterion` is given."""
    weights = criteria.hidden_weights(trained.model)
    scores = criteria.weight_scores(weights, criterion or "magnitude", _effects(trained, criterion))
    return Pruner(
        "weight", scores, lambda model, kept: criteria.zero_weights(model, dict(zip(weights, kept, strict=True)))
    )


def unit_pruner(trained: Trained, criterion: str | None) -> Pruner:
    """Units with all that reads them, by the norm of their incoming weights where no `criterion` is given."""
    images, _ = next(iter(trained.test.epoch(0)))
    groups = channel_groups.unit_groups(trained.model, images[:2])
    weights = criteria.hidden_weights(trained.model)
    scores = criteria.unit_scores(weights, groups, criterion or "l2", _effects(trained, criterion))
    return Pruner(
        "unit",
        scores,
        lambda model, kept: channel_groups.zero_units(model, groups, kept),
        lambda model, kept: compact.compacted(model, groups, kept),
    )


METHODS: dict[str, Callable[[Trained, str | None], Pruner]] = {"weight": weight_pruner, "unit": unit_pruner}


def _effects(trained: Trained, criterion: str | None) -> dict[str, Tensor] | None:
    if criterion != "taylor":
        return None
    first = islice(trained.train.epoch(0), TAYLOR_BATCHES)
    losses = (trained.method.loss(trained.model(images).float(), labels) for images, labels in first)
    return criteria.effects(trained.model, losses)


def pruned(
    trained: Trained, pruner: Pruner, percent: float, *, scope: str, epochs: int = 0, bn_batches: int = 0
) -> tuple[nn.Module, Masks]:
    """(copy of the network with zeros, masks of what is kept), trained further for `epochs` epochs with the zeros held
    and its batch-norm statistics taken anew from `bn_batches` batches of training data."""
    kept = criteria.survivors(pruner.scores, percent, scope)
    model = copy.deepcopy(trained.model)
    pruner.zero(model, kept)
    if epochs:
        options = trained.options.replace(epochs=epochs, start_epoch=None)
        held = Held(lambda network: pruner.zero(network, kept), options)
        fit(
            assemble(options, trained.runtime, model, held, trained.image_set), TrainingState(), epochs, NullCallbacks()
        )
    if bn_batches:
        torch.optim.swa_utils.update_bn(islice(trained.train.epoch(0), bn_batches), model)
    return model.eval(), kept


def has_norms(model: nn.Module) -> bool:
    """Whether there are batch norms whose running statistics count; binary networks' use each batch's own."""
    return any(isinstance(m, _BatchNorm) and not getattr(m, "by_batch", False) for m in model.modules())


def row(trained: Trained, method: str, percent: float, model: nn.Module, smaller: nn.Module) -> Row:
    """`model` tested, and the sizes of `smaller`, which computes the same."""
    score = evaluate(model, trained.test, trained.method, trained.runtime)
    return Row(method, percent, score.top1, score.loss, *sizes(smaller))


@torch.no_grad()
def add_times(rows: Sequence[Row], networks: Sequence[nn.Module], trained: Trained, repeat: int) -> None:
    """Give each row the milliseconds an image of its network: a batch of the test set, the median of `repeat` rounds
    in which every network has its turn."""
    images, _ = next(iter(trained.test.epoch(0)))
    different = {id(network): network for network in networks}
    works: dict[Any, Any] = {
        key: timed(lambda network=network: network(images), 1, trained.runtime.wait)  # type: ignore[misc]
        for key, network in different.items()
    }
    samples = measure(works, repeat)
    for of, network in zip(rows, networks, strict=True):
        of.ms_per_image = 1e3 * statistics.median(samples[id(network)]) / len(images)  # type: ignore[index]


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, images: Iterable[Tensor]) -> float:
    """The largest absolute difference of the two networks' logits; NaN where one of them is."""
    return float(torch.stack([(one(batch) - other(batch)).abs().max() for batch in images]).max())
