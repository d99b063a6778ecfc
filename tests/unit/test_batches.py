"""Batches of a split: shapes, order, limits, dependence on seed and epoch, and division among ranks."""

import itertools

import numpy as np
import pytest
import torch

from data import SETS, Augmentation, SetSpec, Split
from data.device_batches import DeviceBatches, epoch_generator
from data.transforms import crop_flip, draw_crops, normalise, scale_and_shift

CIFAR, MNIST = SETS["CIFAR10"], SETS["MNIST"]


def split_of(count, spec=MNIST):
    """Return a split of random images. The label of each image is its index."""
    channels, height, width = spec.in_shape
    images = np.random.default_rng(count).integers(0, 256, (count, height, width, channels), np.uint8)
    return Split(images, np.arange(count, dtype=np.int64))


def batches_of(count=10, spec=MNIST, **changed):
    arguments = {"device": "cpu", "batch_size": 4, "seed": 0, "train": True} | changed
    return DeviceBatches(split_of(count, spec), spec, **arguments)


def order(batches, epoch=0, start=0):
    return [int(label) for _, labels in batches.epoch(epoch, start) for label in labels]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("train", [True, False])
def test_batches_have_the_documented_shapes_and_layout(name, train):
    spec = SETS[name]
    for images, labels in batches_of(10, spec, train=train).epoch(0):
        assert images.shape == (len(labels), *spec.in_shape)
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.stride(1) == 1 and images.stride(3) == spec.in_shape[0]
        assert images.is_contiguous() == (spec.in_shape[0] == 1)


def test_the_smaller_last_batch_is_counted():
    batches = batches_of(10)
    assert len(batches) == 3 and batches.samples == 10
    assert [len(labels) for _, labels in batches.epoch(0)] == [4, 4, 2]


def test_no_batch_is_empty_if_the_batch_size_divides_the_set():
    batches = batches_of(8)
    assert len(batches) == 2 and [len(labels) for _, labels in batches.epoch(0)] == [4, 4]


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_size_above_the_set_size_gives_one_smaller_batch(train):
    batches = batches_of(3, batch_size=100, train=train)
    assert len(batches) == 1 and batches.samples == 3
    assert sorted(order(batches)) == [0, 1, 2]


def test_sets_and_batches_of_one_image_keep_the_batch_dimension():
    assert [tuple(images.shape) for images, _ in batches_of(1, CIFAR).epoch(0)] == [(1, 3, 32, 32)]
    assert len(list(batches_of(3, CIFAR, batch_size=1).epoch(0))) == 3


@pytest.mark.parametrize(("limit", "count", "samples"), [(1, 1, 4), (2, 2, 8), (3, 3, 10), (9, 3, 10)])
@pytest.mark.parametrize("train", [True, False])
def test_limit_keeps_the_first_batches_of_the_epoch(limit, count, samples, train):
    limited, full = batches_of(limit=limit, train=train), batches_of(train=train)
    assert len(limited) == count and limited.samples == samples
    assert order(limited) == order(full)[:samples]


def test_start_with_limit_ends_at_the_limit():
    limited = batches_of(limit=2)
    assert order(limited, start=1) == order(limited)[4:]
    assert order(limited, start=2) == []


def test_evaluation_needs_no_seed_and_keeps_order_and_images():
    batches = batches_of(10, CIFAR, train=False, seed=None)
    assert order(batches, epoch=0) == order(batches, epoch=5) == list(range(10))
    found = torch.cat([images for images, _ in batches.epoch(3)]).permute(0, 2, 3, 1).double().numpy()
    expected = (split_of(10, CIFAR).images / 255 - np.array(CIFAR.mean)) / np.array(CIFAR.std)
    assert np.abs(found - expected).max() < 1e-6


def test_each_image_keeps_its_label_in_training():
    images = split_of(10).images
    for found, labels in batches_of(10).epoch(0):
        expected = (images[labels.numpy()] / 255 - 0.1307) / 0.3081
        assert np.abs(found.permute(0, 2, 3, 1).double().numpy() - expected).max() < 1e-6


def test_training_applies_the_draws_of_the_epoch():
    """One generator draws the order, then the crops of the whole epoch. The image at position i gets crop i."""
    generator = epoch_generator(7, 2)
    index = torch.randperm(10, generator=generator)
    offsets, flips = draw_crops(10, generator)
    source = torch.from_numpy(split_of(10, CIFAR).images)
    expected = normalise(crop_flip(source[index], offsets, flips), *scale_and_shift(CIFAR.mean, CIFAR.std, 32))
    found = torch.cat([images for images, _ in batches_of(10, CIFAR, seed=7).epoch(2)])
    assert torch.equal(found, expected)
    assert order(batches_of(10, CIFAR, seed=7), epoch=2) == index.tolist()


def test_a_set_is_augmented_only_if_its_spec_says_so():
    plain = SetSpec(CIFAR.in_shape, 10, CIFAR.mean, CIFAR.std, False, CIFAR.reader)
    augmented, unchanged = batches_of(50, CIFAR), batches_of(50, plain)
    assert order(augmented) == order(unchanged)
    for batch, expect_equal in ((unchanged, True), (augmented, False)):
        found = torch.cat([images for images, _ in batch.epoch(0)])
        in_order = batches_of(50, CIFAR, train=False)
        unchanged_images = torch.cat([images for images, _ in in_order.epoch(0)])[order(batch)]
        assert torch.equal(found, unchanged_images) == expect_equal


def test_global_generators_are_neither_read_nor_advanced():
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = [images.clone() for images, _ in batches_of(10, CIFAR).epoch(0)]
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(2)
    second = [images for images, _ in batches_of(10, CIFAR).epoch(0)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_different_pairs_of_seed_and_epoch_give_different_streams():
    """A seed of more than 32 bits differs from a small seed in a later epoch, and (1, 2) differs from (2, 1)."""
    pairs = [(0, 0), (0, 1), (1, 0), (2**32, 0), (2**32, 1), (1, 2), (2, 1), (2**63, 0), (2**64 - 1, 10**6)]
    assert len({epoch_generator(seed, epoch).initial_seed() for seed, epoch in pairs}) == len(pairs)


def test_streams_of_seed_and_epoch_never_change():
    """A change would make resumed runs differ from uninterrupted runs and invalidate recorded seeds."""
    golden = {(0, 0): 8668861027912758289, (0, 1): 4881901421217228719, (42, 9): 6134032994440706937}
    assert {pair: epoch_generator(*pair).initial_seed() for pair in golden} == golden


def test_crop_offsets_and_flips_are_uniform():
    offsets, flips = draw_crops(20_000, torch.Generator().manual_seed(0))
    assert offsets.shape == (20_000, 2) and flips.dtype == torch.bool
    for axis in (0, 1):
        assert torch.bincount(offsets[:, axis], minlength=9).sub(20_000 / 9).abs().max() < 200
    assert abs(flips.float().mean() - 0.5) < 0.015
    assert abs(np.corrcoef(offsets.T.numpy())[0, 1]) < 0.03


def test_padding_of_a_crop_is_black():
    """The pixels are zero before normalisation, since torchvision's RandomCrop pads the image, not the tensor."""
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    cropped = crop_flip(white, torch.tensor([[0, 8]]), torch.tensor([False]))[0, :, :, 0]
    assert (cropped[:4] == 0).all() and (cropped[:, 28:] == 0).all() and (cropped[4:, :28] == 255).all()
    flipped = crop_flip(white, torch.tensor([[0, 8]]), torch.tensor([True]))[0, :, :, 0]
    assert (flipped[:, :4] == 0).all() and (flipped[4:, 4:] == 255).all()


def test_the_split_is_neither_copied_nor_changed():
    split = split_of(10, CIFAR)
    before = split.images.copy()
    batches = DeviceBatches(split, CIFAR, device="cpu", batch_size=4, seed=0, train=True)
    assert batches.images.data_ptr() == split.images.ctypes.data
    for images, _ in batches.epoch(0):
        images.zero_()
    assert np.array_equal(split.images, before)


@pytest.mark.parametrize("changed", [{"batch_size": 0}, {"batch_size": -1}, {"limit": 0}, {"seed": None}])
def test_invalid_arguments_are_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        batches_of(**changed)


@pytest.mark.parametrize("parts", [2, 3])
def test_slices_of_all_ranks_join_to_the_global_training_batch(parts):
    noise = {"augmentation": Augmentation(gaussian=True, p_clean=0.5)}
    for spec, more in ((CIFAR, {}), (MNIST, noise)):
        alone = list(batches_of(10, spec, **more).epoch(1, 1))
        each = [list(batches_of(10, spec, part=(number, parts), **more).epoch(1, 1)) for number in range(parts)]
        for batch, shares in zip(alone, zip(*each, strict=True), strict=True):
            assert all(len(labels) >= len(batch[1]) // parts for _, labels in shares)
            for whole, pieces in zip(batch, zip(*shares, strict=True), strict=True):
                assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_ranks_evaluate_whole_batches_in_turn_and_every_image_once(parts):
    seen = [order(batches_of(10, train=False, part=(number, parts))) for number in range(parts)]
    assert sorted(itertools.chain(*seen)) == [*range(10)]
    assert seen[0][:4] == [0, 1, 2, 3] and seen[1] == [4, 5, 6, 7]
