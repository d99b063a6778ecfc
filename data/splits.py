"""Parts of a split that keep the proportions of the classes."""

import numpy as np
from numpy.typing import NDArray

from data.types import AnySplit
from utils.errors import UsageError

HOLD_OUT_SEED = 20_210_317  # fixed, so that runs of different seeds are compared on the same images


def hold_out(split: AnySplit, fraction: float) -> tuple[AnySplit, AnySplit]:
    """Hold out a random share of the images, and return (remaining images, held-out images).

    Of the n images of `split`, round(fraction * n) are held out. Both parts have the class proportions of `split`. The
    arrays of `split` are reused, so `split` must not be used afterwards. Raises UsageError if one of the parts would be
    empty.
    """
    count = round(fraction * len(split)) if 0 <= fraction <= 1 else -1
    if not 0 < count < len(split):
        raise UsageError(
            f"val_split: {fraction} of {len(split)} training images leaves none for training or none for validation"
        )
    chosen = stratified(split.labels, count, HOLD_OUT_SEED)
    val = split.copied(chosen)
    return split.kept(np.setdiff1d(np.arange(len(split)), chosen)), val


def reduced(split: AnySplit, fraction: float) -> AnySplit:
    """Return a split with a random share of the images, in the same class proportions.

    Of the n images of `split`, round(fraction * n) are kept. The images of a smaller fraction are a subset of the
    images of a larger one. The arrays of `split` are reused, so `split` must not be used afterwards. Raises UsageError
    if no image remains.
    """
    count = round(fraction * len(split)) if 0 < fraction <= 1 else 0
    if not count:
        raise UsageError(f"low_data: {fraction} of {len(split)} training images leaves none; > 0 and <= 1 expected")
    return split if count == len(split) else split.kept(stratified(split.labels, count, HOLD_OUT_SEED))


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.intp]:
    """Select `count` random images with the class proportions of `labels`, and return their sorted indices.

    Each image gets a random rank within its class, scaled to 0..1. The images of the lowest ranks are selected. Every
    class of two or more images therefore contributes its first image before any class contributes its second.
    """
    # RandomState, because numpy guarantees that its stream never changes (NEP 19).
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members)) / (len(members) - 1) if len(members) > 1 else 1.0
    return np.sort(np.argsort(rank, kind="stable")[:count])
