"""Properties of DeviceBatches, WorkerBatches and their transforms for any size, seed and epoch."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import SETS, Augmentation, SetSpec, Split
from data.device_batches import DeviceBatches
from data.splits import hold_out
from data.transforms import CROP_PAD, crop_flip, normalise, scale_and_shift
from data.worker_batches import WorkerBatches

COUNTS, SIZES = st.integers(1, 70), st.integers(1, 80)
SEEDS, EPOCHS = st.integers(0, 2**64 - 1), st.integers(0, 10_000)
SMALL = SetSpec((3, 5, 6), 10, (0.3, 0.6, 0.5), (0.2, 0.4, 0.3), True, SETS["CIFAR10"].reader)
FAST, MIXED = (settings(deadline=None, max_examples=count) for count in (60, 25))
NOISE = Augmentation(gaussian=True, std_gauss=0.2, p_clean=0.3, jsd=True)
KINDS = {  # (class, augmentation, margin of the spec): every different way to prepare a batch
    "device": (DeviceBatches, Augmentation(), None),
    "device, noise and views": (DeviceBatches, NOISE, None),
    "workers": (WorkerBatches, Augmentation(), None),
    "workers, resized": (WorkerBatches, Augmentation(), 1.5),
    "workers, noise and views": (WorkerBatches, NOISE, None),
    "workers, mixed": (WorkerBatches, Augmentation(augmix=True), None),
    "workers, mixed views": (WorkerBatches, Augmentation(augmix=True, all_ops=True, width=2, depth=1, jsd=True), None),
}
ANY, NOISELESS = st.sampled_from([*KINDS]), st.sampled_from([kind for kind in KINDS if "noise" not in kind])


def batches_of(kind, count, size, seed=0, **changed):
    channels, height, width = SMALL.in_shape
    images = np.random.default_rng(count).integers(0, 256, (count, height, width, channels), np.uint8)
    batches_class, augmentation, margin = KINDS[kind]
    arguments = {"device": "cpu", "batch_size": size, "seed": seed, "train": True, "augmentation": augmentation}
    spec = replace(SMALL, margin=margin)
    return batches_class(Split(images, np.arange(count)), spec, **arguments | changed)


def order(batches, epoch):
    return [int(label) for _, labels in batches.epoch(epoch) for label in labels]


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


@MIXED
@given(ANY, COUNTS, SIZES, SEEDS, EPOCHS, st.booleans())
def test_every_image_comes_exactly_once_per_epoch(kind, count, size, seed, epoch, train):
    batches = batches_of(kind, count, size, seed, train=train)
    found = order(batches, epoch)
    assert sorted(found) == list(range(count)) and batches.samples == count
    assert len(batches) == len(list(batches.epoch(epoch))) == -(-count // size)


@MIXED
@given(ANY, COUNTS, SIZES, SEEDS, EPOCHS, st.integers(0, 12), st.booleans())
def test_a_later_start_yields_the_remaining_batches_of_the_epoch(kind, count, size, seed, epoch, start, train):
    batches = batches_of(kind, count, size, seed, train=train)
    assert_same(batches.epoch(epoch, start), list(batches.epoch(epoch))[start:])


@MIXED
@given(ANY, COUNTS, SIZES, SEEDS, EPOCHS, st.integers(0, 2**31))
def test_batches_of_an_epoch_depend_only_on_seed_and_epoch(kind, count, size, seed, epoch, disturbance):
    fresh, used = batches_of(kind, count, size, seed), batches_of(kind, count, size, seed)
    list(used.epoch(epoch + 1))
    torch.manual_seed(disturbance)
    np.random.seed(disturbance)
    assert_same(fresh.epoch(epoch), used.epoch(epoch))


@MIXED
@given(NOISELESS, COUNTS, SIZES, SIZES, SEEDS, EPOCHS)
def test_the_batch_size_does_not_change_order_or_images(kind, count, size, other, seed, epoch):
    first, second = (list(batches_of(kind, count, s, seed).epoch(epoch)) for s in (size, other))
    for i in (0, 1):
        assert torch.equal(concatenated(first, i), concatenated(second, i))


def concatenated(batches, i):
    """Return the images (i = 0, with the views of each image adjacent) or the labels (i = 1) of all batches."""
    parts = [batch[i] if i else batch[0].unflatten(0, (-1, len(batch[1]))).transpose(0, 1) for batch in batches]
    return torch.cat(parts)


@MIXED
@given(ANY, st.integers(40, 70), SEEDS, SEEDS, EPOCHS, EPOCHS)
def test_different_epochs_and_seeds_give_different_orders(kind, count, seed, other_seed, epoch, other_epoch):
    assume((seed, epoch) != (other_seed, other_epoch))
    assert order(batches_of(kind, count, 16, seed), epoch) != order(
        batches_of(kind, count, 16, other_seed), other_epoch
    )


@MIXED
@given(ANY, COUNTS, SIZES, SEEDS, EPOCHS)
def test_all_kinds_of_batches_have_the_same_order(kind, count, size, seed, epoch):
    assert order(batches_of(kind, count, size, seed), epoch) == order(batches_of("device", count, size, seed), epoch)


@MIXED
@given(ANY, COUNTS, SIZES, SEEDS, EPOCHS, st.integers(1, 3))
def test_one_batch_has_the_first_images_of_epoch_0_in_every_epoch(kind, count, size, seed, epoch, limit):
    batches = batches_of(kind, count, size, seed, one_batch=True, limit=limit)
    first = order(batches_of(kind, count, size, seed), 0)[:size]
    assert len(batches) == 1 and batches.samples == len(first)
    assert order(batches, 0) == order(batches, epoch) == first


@settings(deadline=None, max_examples=6)
@given(ANY.filter(lambda kind: "workers" in kind), st.integers(1, 30), st.integers(1, 12), SEEDS, st.booleans())
def test_the_number_of_workers_changes_nothing(kind, count, size, seed, train):
    alone = batches_of(kind, count, size, seed, train=train)
    for workers in (1, 2):
        helped = batches_of(kind, count, size, seed, train=train, workers=workers)
        assert_same(alone.epoch(0), helped.epoch(0))
        assert_same(alone.epoch(3, 1), helped.epoch(3, 1))


@FAST
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 4), st.data())
def test_crop_flip_equals_padding_cropping_and_mirroring(count, height, width, channels, pad, data):
    images = np.random.default_rng(height).integers(0, 256, (count, height, width, channels), np.uint8)
    offset = st.integers(0, 2 * pad)
    offsets = data.draw(st.lists(st.tuples(offset, offset), min_size=count, max_size=count))
    flips = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    found = crop_flip(torch.from_numpy(images), torch.tensor(offsets), torch.tensor(flips), pad)
    for image, (top, left), flip, result in zip(images, offsets, flips, found.numpy(), strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        cropped = padded[top : top + height, left : left + width]
        assert np.array_equal(result, cropped[:, ::-1] if flip else cropped)


@FAST
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_the_centre_crop_without_flip_is_the_image(count, height, width, seed):
    images = torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(seed)).byte()
    middle = torch.full((count, 2), CROP_PAD)
    assert torch.equal(crop_flip(images, middle, torch.zeros(count, dtype=torch.bool)), images)


@FAST
@given(st.sampled_from(list(SETS)), st.integers(1, 4), st.integers(0, 2**31))
def test_normalise_equals_the_formula(name, count, seed):
    spec = SETS[name]
    channels, height, width = spec.in_shape
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)
    images.ravel()[:256] = np.resize(np.arange(256), min(256, images.size))
    found = normalise(torch.from_numpy(images), *scale_and_shift(spec.mean, spec.std, width))
    expected = (images / 255 - np.array(spec.mean)) / np.array(spec.std)
    assert found.shape == (count, channels, height, width) and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(found.permute(0, 2, 3, 1).double().numpy() - expected).max() < 1e-6


@FAST
@given(st.lists(st.integers(0, 5), min_size=4, max_size=200), st.floats(0.05, 0.95))
def test_hold_out_is_a_partition_that_keeps_class_proportions(labels, fraction):
    count = round(fraction * len(labels))
    assume(0 < count < len(labels))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).copy()
    train, val = hold_out(Split(images, np.array(labels)), fraction)
    held = val.images.ravel()
    assert len(val) == count and np.array_equal(val.labels, np.array(labels)[held])
    assert sorted([*train.images.ravel(), *held]) == list(range(len(labels)))
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs((val.labels == label).sum() - fraction * size) < 3
