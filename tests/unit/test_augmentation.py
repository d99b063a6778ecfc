"""Gaussian noise, AugMix and the three views for the Jensen-Shannon loss."""

import numpy as np
import PIL.Image
import pytest
import torch

import data
from data import SETS, Augmentation, Split, make_batches
from data.device_batches import DeviceBatches, epoch_generator
from data.image_views import crop_transform
from data.transforms import add_noise, crop_flip, draw_crops
from tests.folders import pictures
from utils.errors import UsageError

CIFAR, MNIST = SETS["CIFAR10"], SETS["MNIST"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batches_of(spec=CIFAR, count=30, *, train=True, batch_size=30, **changed):
    """Return batches over the pictures, cut to the set's size and channels. The label of each image is its index."""
    channels, height, width = spec.in_shape
    images = np.ascontiguousarray(pictures()[:count, :height, :width, :channels])
    arguments = {"device": "cpu", "batch_size": batch_size, "seed": 4, "train": train}
    return make_batches(Split(images, np.arange(count)), spec, augmentation=Augmentation(**changed), **arguments)


def pixels(batches, epoch=0):
    """Return (images in 0..255 (n, height, width, channels), labels) of the epoch's first batch."""
    images, labels = next(batches.epoch(epoch))
    mean, std = (torch.tensor(v) for v in (batches.spec.mean, batches.spec.std))
    return (images.permute(0, 2, 3, 1) * std + mean).mul(255).numpy(), labels.numpy()


def cropped(batches, epoch=0):
    """Return the images of `pixels`, only cropped and flipped."""
    plain = DeviceBatches(Split(batches.images.numpy(), np.arange(30)), CIFAR, **PLAIN)
    return pixels(plain, epoch)[0]


PLAIN = {"device": "cpu", "batch_size": 30, "seed": 4, "train": True}


# --- noise


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_noise_is_normal_with_the_given_standard_deviation(std):
    grey = torch.full((40, 16, 16, 3), 128, dtype=torch.uint8)
    noise = (add_noise(grey, std=std, p_clean=0, generator=generator()) - 128) / 255
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.02 * std and abs(noise.std() / std - 1) < 0.02
    assert abs((noise.abs() < std).float().mean() - 0.6827) < 0.01
    assert len(noise.unique()) > 10_000  # not rounded


def test_noise_is_clamped_to_the_range_of_pixels():
    ends = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(500).view(2, 500, 1, 1)
    noisy = add_noise(ends, std=0.1, p_clean=0, generator=generator())
    assert noisy.min() == 0 and noisy.max() == 255
    assert abs((noisy[0] == 0).float().mean() - 0.5) < 0.1 and abs((noisy[1] == 255).float().mean() - 0.5) < 0.1


@pytest.mark.parametrize(("p_clean", "share"), [(0.0, 0), (0.3, 0.3), (1.0, 1)])
def test_each_image_is_clean_with_probability_p_clean(p_clean, share):
    grey = torch.full((2000, 2, 2, 1), 128, dtype=torch.uint8)
    noisy = add_noise(grey, std=0.1, p_clean=p_clean, generator=generator())
    clean = (noisy == 128).flatten(1)
    assert torch.equal(clean.all(1), clean.any(1))
    assert abs(clean.all(1).float().mean() - share) < 0.03


def test_adding_noise_does_not_change_the_input():
    grey = torch.full((2, 2, 2, 1), 128, dtype=torch.uint8)
    add_noise(grey, std=0.1, p_clean=0, generator=generator())
    assert (grey == 128).all()


def test_noisy_batches_are_the_cropped_images_plus_noise():
    """Images are cropped once. BIPROP crops them twice."""
    batches = batches_of(gaussian=True, std_gauss=0.05, p_clean=0)
    difference = pixels(batches)[0] - cropped(batches)
    inner = np.abs(cropped(batches) - 127) < 80  # far enough from 0 and 255 to avoid clamping
    assert abs(difference[inner].std() / 255 / 0.05 - 1) < 0.05
    assert np.array_equal(pixels(batches)[1], pixels(batches_of())[1])


def test_the_default_p_clean_adds_no_noise():
    plain, noisy = batches_of(), batches_of(gaussian=True)
    assert np.abs(pixels(plain)[0] - pixels(noisy)[0]).max() < 1e-3


def test_noise_differs_between_images_batches_and_epochs():
    noisy = batches_of(MNIST, gaussian=True, p_clean=0, batch_size=15)
    plain = batches_of(MNIST, batch_size=15)
    noise = [
        (a - b)[i, 0, 8:20, 8:20].flatten()
        for epoch in (0, 1)
        for (a, _), (b, _) in zip(noisy.epoch(epoch), plain.epoch(epoch), strict=True)
        for i in (0, 1)
    ]
    strongest = np.abs(np.corrcoef(torch.stack(noise).numpy()) - np.eye(8)).max()
    assert strongest < 0.7  # clamping correlates the noise with the image


@pytest.mark.parametrize("changed", [{"gaussian": True, "p_clean": 0.0}, {"augmix": True}])
@pytest.mark.parametrize("jsd", [False, True])
def test_evaluation_images_are_not_augmented(changed, jsd):
    images, labels = pixels(batches_of(train=False, jsd=jsd, **changed))
    assert len(images) == 30 and labels.tolist() == list(range(30))
    assert np.abs(images - pictures()).max() < 1e-3


# --- views


def test_gaussian_views_are_one_crop_clean_and_with_two_noises():
    batches = batches_of(gaussian=True, std_gauss=0.1, p_clean=0, jsd=True)
    images, labels = pixels(batches)
    assert len(images) == 90 and len(labels) == 30
    clean, first, second = np.split(images, 3)
    assert np.abs(clean - cropped(batches)).max() < 1e-3
    for one, other in ((clean, first), (clean, second), (first, second)):
        assert np.abs(one - other).mean() > 8
    inner = np.abs(clean - 127) < 40
    assert abs(np.corrcoef((first - clean)[inner], (second - clean)[inner])[0, 1]) < 0.03


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "MNIST", "digits"])
def test_augmix_views_are_one_clean_and_two_mixed_images(name):
    """The sets include images with one channel and images of 8x8 pixels."""
    spec = SETS[name]
    images, labels = pixels(batches_of(spec, augmix=True, all_ops=True, jsd=True))
    clean, first, second = np.split(images, 3)
    assert len(labels) == 30 and images.min() > -1e-3 and images.max() < 255.001
    for one, other in ((clean, first), (clean, second), (first, second)):
        assert 0.5 < np.abs(one - other).mean() < 80
    for image, label in zip(clean, labels, strict=True):
        source = pictures()[label, : image.shape[0], : image.shape[1], : image.shape[2]]
        assert any(np.abs(image - candidate).max() < 1e-3 for candidate in candidates(source, spec.augment))


def candidates(image, augment):
    """Return every crop and flip of an image."""
    if not augment:
        return [image]
    torch_image = torch.from_numpy(np.ascontiguousarray(image))[None]
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9)).repeat(2, 1)
    flips = torch.arange(2).repeat_interleave(81).bool()
    return crop_flip(torch_image.expand(162, -1, -1, -1).contiguous(), offsets, flips).numpy()


def test_augmix_without_jsd_yields_the_first_mixed_view():
    alone, views = batches_of(augmix=True), batches_of(augmix=True, jsd=True)
    assert np.array_equal(pixels(alone)[0], pixels(views)[0][30:60])


@pytest.mark.parametrize(
    ("changed", "option", "value"),
    [
        ({}, "severity", 3),
        ({"severity": 7}, "severity", 7),
        ({"width": 5}, "mixture_width", 5),
        ({}, "chain_depth", -1),
        ({"depth": 2}, "chain_depth", 2),
        ({"all_ops": True}, "all_ops", True),
        ({}, "all_ops", False),
        ({}, "alpha", 1.0),
    ],
)
def test_augmix_options_reach_torchvision(monkeypatch, changed, option, value):
    from torchvision.transforms import v2

    from data.image_views import augmix_transform

    assert getattr(augmix_transform(Augmentation(augmix=True, **changed)), option) == value
    assert isinstance(augmix_transform(Augmentation()), v2.AugMix)


def test_a_higher_severity_changes_images_more():
    changes = []
    for severity in (1, 3, 10):
        clean, mixed, _ = np.split(pixels(batches_of(augmix=True, jsd=True, severity=severity))[0], 3)
        changes.append(np.abs(clean - mixed).mean())
    assert changes == sorted(changes) and changes[2] > 1.3 * changes[0]


# --- options


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"jsd": True}, "^jsd: .*it needs gaussian_aug or augmix"),
        ({"gaussian": True, "augmix": True}, "^augmix: it contradicts gaussian_aug"),
        ({"severity": 0}, "^aug_severity: 0 given, 1 to 10 expected"),
        ({"severity": 11}, "^aug_severity: 11 given"),
        ({"width": 0}, "^mixture_width: 0 given, at least 1"),
    ],
)
def test_contradicting_or_invalid_augmentation_options_are_refused(changed, message):
    with pytest.raises(UsageError, match=message):
        Augmentation(**changed)


def test_device_batches_refuse_augmix():
    with pytest.raises(ValueError, match="augmix: WorkerBatches transforms images one by one"):
        DeviceBatches(Split(pictures(), np.arange(30)), CIFAR, augmentation=Augmentation(augmix=True), **PLAIN)


def test_one_batch_keeps_its_images_and_draws_new_crops():
    split = Split(pictures().copy(), np.arange(30))
    batches = DeviceBatches(split, CIFAR, one_batch=True, **(PLAIN | {"batch_size": 8}))
    (first, labels), (second, again) = (next(batches.epoch(epoch)) for epoch in (0, 5))
    assert torch.equal(labels, again) and not torch.equal(first, second)
    assert len(list(batches.epoch(3))) == 1 and list(batches.epoch(3, start=1)) == []
    drawn = epoch_generator(4, 0)
    assert labels.tolist() == torch.randperm(30, generator=drawn)[:8].tolist()
    offsets, flips = draw_crops(30, drawn)
    expected = crop_flip(torch.from_numpy(pictures())[labels], offsets[:8], flips[:8])
    assert torch.allclose(first, next(normalised(expected)), atol=1e-6)


def normalised(images):
    plain = {"device": "cpu", "batch_size": 30, "seed": None, "train": False}
    return (images for images, _ in DeviceBatches(Split(images.numpy(), np.arange(8)), CIFAR, **plain).epoch(0))


def test_one_batch_does_not_limit_evaluation():
    plain = {"device": "cpu", "batch_size": 7, "seed": 0, "train": False, "one_batch": True}
    assert make_batches(Split(pictures(), np.arange(30)), CIFAR, **plain).samples == 30


@pytest.mark.parametrize("name", ["CIFAR10", "ImageNet"])
def test_without_augment_training_images_are_prepared_as_in_evaluation(name):
    spec = data.spec(name, "", image_size=32, augment=False)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8))
    train, test = (crop_transform(spec, train=mode)(image) for mode in (True, False))
    assert torch.equal(train, test) and data.spec(name, "", image_size=32).augment
