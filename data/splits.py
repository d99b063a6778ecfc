"""Parts of a split that keep the proportions of the classes."""

import numpy as np
from numpy.typing import NDArray

from data.types import AnySplit
from utils.errors import UsageError

HOLD_OUT_SEED = 20_210_317  # fixed, so that runs of different seeds are compared on the same images


def hold_out(split: AnySplit, fraction: float) -> tuple[AnySplit, AnySplit]:
    """(kept, held out): round(fraction n) images, by class in proportion. Reuses the arrays of `split`."""
    count = round(fraction * len(split)) if 0 <= fraction <= 1 else -1
    if not 0 < count < len(split):
        raise UsageError(
            f"val_split: {fraction} of {len(split)} training images must leave at least one image on both sides"
        )
    chosen = stratified(split.labels, count, HOLD_OUT_SEED)
    val = split.copied(chosen)
    return split.kept(np.setdiff1d(np.arange(len(split)), chosen)), val


def reduced(split: AnySplit, fraction: float) -> AnySplit:
    """round(fraction n) of the images, by class in proportion; a smaller share is part of every larger one."""
    count = round(fraction * len(split)) if 0 < fraction <= 1 else 0
    if not count:
        raise UsageError(f"low_data: {fraction} of {len(split)} training images leaves none; > 0 and <= 1 expected")
    return split if count == len(split) else split.kept(stratified(split.labels, count, HOLD_OUT_SEED))


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
