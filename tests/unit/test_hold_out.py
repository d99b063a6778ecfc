"""val_split and low_data: stratified, reproducible and without a second copy of the images."""

import math

import numpy as np
import pytest

from data import FileSplit, Split, load
from data.splits import hold_out, reduced
from data.types import compact
from utils.errors import UsageError


def numbered(labels):
    """Return a split in which the one pixel of each image is its index."""
    labels = np.array(labels, np.int64)  # a copy, because hold_out works in place
    return Split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).copy(), labels)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_hold_out_is_stratified_disjoint_and_complete(fraction):
    labels = np.repeat(np.arange(10), 20)
    train, val = hold_out(numbered(labels), fraction)
    assert len(val) == round(fraction * 200)
    assert np.bincount(val.labels, minlength=10).tolist() == [len(val) // 10] * 10
    indices = np.concatenate([train.images.ravel(), val.images.ravel()])
    assert np.array_equal(np.sort(indices), np.arange(200))
    for part in (train, val):
        assert np.array_equal(part.labels, labels[part.images.ravel()])


def test_hold_out_keeps_rare_classes_in_training():
    train, val = hold_out(numbered([0] * 90 + [1] * 2 + [2]), 0.1)
    assert len(val) == 9 and np.bincount(val.labels).tolist() == [8, 1]
    assert np.bincount(train.labels).tolist() == [82, 1, 1]


def test_hold_out_is_random_but_independent_of_the_global_generator():
    _, first = hold_out(numbered([0] * 100), 0.2)
    np.random.seed(0)
    _, second = hold_out(numbered([0] * 100), 0.2)
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images.ravel(), np.arange(20))


@pytest.mark.parametrize("fraction", [0.001, 0.999, 1.0, -0.1, 1.5, math.nan])
def test_a_val_split_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(UsageError, match="val_split"):
        hold_out(numbered([0] * 100), fraction)


def test_load_holds_out_val_split(tmp_path):
    loaded = load("digits", tmp_path, val_split=0.1)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (1293, 144, 360)
    assert set(loaded.val.labels.tolist()) == set(range(10))


def test_compact_equals_indexing_across_chunks():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (1000, 3))
    rows = np.sort(rng.permutation(1000)[:700])
    assert np.array_equal(compact(array.copy(), rows, chunk=64), array[rows])


# --- low_data


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
def test_low_data_keeps_the_class_proportions(fraction):
    labels = np.repeat(np.arange(10), 20)
    kept = reduced(numbered(labels), fraction)
    assert np.bincount(kept.labels, minlength=10).tolist() == [round(20 * fraction)] * 10
    assert np.array_equal(kept.labels, labels[kept.images.ravel()])


def test_a_smaller_low_data_selects_a_subset_of_a_larger_one():
    small, large = (set(reduced(numbered([0] * 100), share).images.ravel().tolist()) for share in (0.1, 0.3))
    assert len(small) == 10 and small < large and small != set(range(10))


def test_low_data_of_1_returns_the_split_itself():
    split = numbered([0, 1, 2])
    assert reduced(split, 1.0) is split


def test_low_data_reuses_the_memory_of_the_split():
    split = numbered([0] * 100)
    assert np.shares_memory(reduced(split, 0.5).images, split.images)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, math.nan, 0.004])
def test_low_data_that_leaves_no_image_is_refused(fraction):
    with pytest.raises(UsageError, match=r"low_data: .* of 100 training images leaves none; > 0 and <= 1 expected"):
        reduced(numbered([0] * 100), fraction)


def test_low_data_applies_after_val_split(tmp_path):
    whole, low = load("digits", tmp_path, val_split=0.1), load("digits", tmp_path, val_split=0.1, low_data=0.5)
    assert len(low.train) == round(len(whole.train) / 2)
    assert np.array_equal(low.val.images, whole.val.images) and len(low.test) == 360


def test_lists_of_files_are_split_like_arrays():
    labels = np.repeat(np.arange(3), 20)
    names = np.array([f"{i:02}" for i in range(60)], "S")
    train, val = hold_out(FileSplit(names, labels), 0.25)
    arrays, val_arrays = hold_out(numbered(labels), 0.25)
    copied = Split(arrays.images.copy(), arrays.labels.copy())
    for files, images in ((train, arrays), (val, val_arrays), (reduced(train, 0.4), reduced(copied, 0.4))):
        assert [int(files.path(i)) for i in range(len(files))] == images.images.ravel().tolist()
        assert np.array_equal(files.labels, images.labels)
