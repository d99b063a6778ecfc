"""The table of data sets, and `load`: from a name and a folder to verified uint8 splits. Torch is not imported here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from args import UsageError
from data import sources
from data.sources import Split
from utils.choose import pick

HOLD_OUT_SEED = 20_210_317  # fixed, so that runs of different seeds are compared on the same images


@dataclass(frozen=True)
class SetSpec:
    """Static facts of a set. in_shape: (channels, height, width); mean and std: per channel, of pixels in [0, 1];
    augment: crop and flip in training; load: (root, download) -> (train, test)."""

    in_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    load: Callable[[Path, bool], tuple[Split, Split]]


@dataclass(frozen=True)
class ImageSet:
    spec: SetSpec
    train: Split
    test: Split
    val: Split | None = None


SPECS: dict[str, SetSpec] = {
    # digits: mean and std of the training part, over pixels
    "digits": SetSpec((1, 8, 8), 10, (0.30588,), (0.37622,), False, sources.read_digits),
    "MNIST": SetSpec((1, 28, 28), 10, (0.1307,), (0.3081,), False, partial(sources.read_idx_set, "MNIST")),
    "FashionMNIST": SetSpec(
        (1, 28, 28), 10, (0.2860,), (0.3530,), False, partial(sources.read_idx_set, "FashionMNIST")
    ),
    "CIFAR10": SetSpec((3, 32, 32), 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True, sources.read_cifar10),
}


def load(name: str, root: str | Path, *, download: bool = False, val_split: float = 0.0) -> ImageSet:
    """Read and verify the set `name` from under `root`, holding out the share `val_split` of its training images.

    Raises UsageError for a missing or damaged file, ValueError for an unknown name.
    """
    spec = pick(SPECS, name, "set")
    try:
        train, test = spec.load(Path(root).expanduser(), download)
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is nobody's
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"data: {name} cannot be read under {str(root)[:200]}: {reason}") from error
    if not val_split:
        return ImageSet(spec, train, test)
    train, val = hold_out(train, val_split)
    return ImageSet(spec, train, test, val)


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """(kept, held out): round(fraction n) images, by class in proportion. Reuses the arrays of `split`."""
    count = round(fraction * len(split)) if 0 <= fraction <= 1 else -1
    if not 0 < count < len(split):
        raise UsageError(
            f"val_split: {fraction} of {len(split)} training images must leave at least one image on both sides"
        )
    chosen = stratified(split.labels, count, HOLD_OUT_SEED)
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    val = Split(split.images[chosen], split.labels[chosen])
    return Split(compact(split.images, rest), compact(split.labels, rest)), val


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.intp]:
    """Indices, ascending, of `count` random images that keep the classes' proportions.

    Each image gets its class-wise random rank scaled to 0..1, and the lowest win: every class of two or more gives its
    first image before any gives its second, and its last one last. RandomState: numpy froze its stream (NEP 19).
    """
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members)) / (len(members) - 1) if len(members) > 1 else 1.0
    return np.sort(np.argsort(rank, kind="stable")[:count])


def compact(array: NDArray[Any], rows: NDArray[np.intp], chunk: int = 4096) -> NDArray[Any]:
    """array[rows] for ascending rows, in place: a training set is too large to be held twice."""
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]  # part[i] >= start + i: reading never falls behind writing
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]
