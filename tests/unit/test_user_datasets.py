"""A pair of torch Datasets becomes a data set, in memory where possible."""

import random
import re

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

import data
from data import user_datasets, user_items
from data.types import DatasetSplit, Split
from data.user_datasets import read_datasets
from utils.errors import RunFailed, UsageError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = [row % 3 for row in range(12)]
PAIRS = list(zip(IMAGES, LABELS, strict=True))


class Noisy(Dataset):
    """Images with noise from one of three generators, as random transforms of a user are."""

    classes = ("ant", "bee", "cow")

    def __init__(self, draw, targets=None):
        self.draw, self.read = draw, 0
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, row):
        self.read += 1
        return np.roll(IMAGES[row], self.draw(), axis=0), LABELS[row]


DRAWS = {
    "torch": lambda: int(torch.randint(0, 6, ())),
    "numpy": lambda: np.random.randint(0, 6),
    "python": lambda: random.randrange(6),
}
OPTIONS = {"device": "cpu", "batch_size": 5, "seed": 3, "train": True}


def epoch_of(split, spec, epoch, **changed):
    batches = data.make_batches(split, spec, **OPTIONS | changed)
    images, labels = zip(*batches.uint8_batches(epoch, 0), strict=True)
    return torch.cat([batch.clone() for batch in images]), torch.cat(labels)


def test_images_of_one_size_are_held_in_memory():
    found = read_datasets(PAIRS, PAIRS[:5])
    assert isinstance(found.train, Split) and isinstance(found.test, Split) and found.spec.classes == ()
    assert np.array_equal(found.train.images, IMAGES) and found.train.labels.tolist() == LABELS
    assert np.array_equal(found.test.images, IMAGES[:5])
    assert (found.spec.in_shape, found.spec.num_classes, found.spec.margin) == ((3, 6, 5), 3, None)
    assert not found.spec.augment


def test_mean_and_deviation_are_those_of_the_training_images():
    spec = read_datasets(PAIRS[:7], PAIRS).spec
    pixels = IMAGES[:7] / 255
    assert np.allclose(spec.mean, pixels.mean((0, 1, 2))) and np.allclose(spec.std, pixels.std((0, 1, 2)))
    black = [(np.zeros((4, 4), np.uint8), 0)]
    assert read_datasets(black, black).spec.std == (1 / 255,)
    assert read_datasets(PAIRS, PAIRS, pixels="signed").spec.mean == (0.5,) * 3


@pytest.mark.parametrize("label", [2, np.int64(2), torch.tensor(2), np.array(2)])
def test_labels_may_be_ints_of_any_library(label):
    assert read_datasets([(IMAGES[0], label)], PAIRS).train.labels.tolist() == [2]


@pytest.mark.parametrize("draw", DRAWS)
def test_random_images_are_read_in_every_epoch(draw):
    found = read_datasets(Noisy(DRAWS[draw]), PAIRS)
    assert isinstance(found.train, DatasetSplit) and isinstance(found.test, Split)
    assert found.spec.mean == data.SETS["ImageNet"].mean
    first, second = (epoch_of(found.train, found.spec, epoch) for epoch in (0, 1))
    assert not torch.equal(first[0].sort(0).values, second[0].sort(0).values)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    again = epoch_of(found.train, found.spec, 0)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    with_workers = epoch_of(found.train, found.spec, 0, workers=2)
    assert torch.equal(first[0], with_workers[0])
    evaluated = [epoch_of(found.train, found.spec, 0, train=False)[0] for _ in range(2)]
    assert torch.equal(*evaluated)


def test_reading_restores_the_generators_in_an_epoch():
    found = read_datasets(Noisy(DRAWS["numpy"]), PAIRS)
    state = np.random.get_state()[1].tolist()
    epoch_of(found.train, found.spec, 0)
    assert np.random.get_state()[1].tolist() == state


def test_large_datasets_are_read_in_every_epoch(monkeypatch):
    monkeypatch.setattr(user_datasets, "MOST_BYTES", IMAGES.nbytes - 1)
    found = read_datasets(PAIRS, PAIRS[:11])
    assert isinstance(found.train, DatasetSplit) and isinstance(found.test, Split)
    images, labels = epoch_of(found.train, found.spec, 0, train=False)
    assert np.array_equal(images.numpy(), IMAGES) and labels.tolist() == LABELS
    part = data.divided(found, val_split=0.5)
    assert sorted([*part.train.rows, *part.val.rows]) == list(range(12)) and len(part.val) == 6
    held_out = epoch_of(part.val, part.spec, 0, train=False)[0].numpy()
    assert np.array_equal(held_out, IMAGES[part.val.rows])


def test_declared_targets_spare_a_reading_if_they_are_the_labels():
    right, wrong = (Noisy(DRAWS["torch"], targets) for targets in (LABELS, LABELS[::-1]))
    for dataset in (right, wrong):
        assert read_datasets(dataset, PAIRS).train.labels.tolist() == LABELS
    assert right.read < wrong.read


def test_class_names_come_from_the_training_dataset():
    noisy = Noisy(lambda: 0)
    assert read_datasets(noisy, PAIRS).spec.classes == ("ant", "bee", "cow")
    assert read_datasets(Subset(noisy, [0, 1]), PAIRS).spec.classes == ("ant", "bee", "cow")
    assert read_datasets(Subset(noisy, [0]), PAIRS[:1]).spec.num_classes == 3


def test_images_of_different_sizes_need_an_image_size():
    mixed = [(IMAGES[0], 0), (IMAGES[1][:4], 1)]
    with pytest.raises(
        UsageError, match=r"^data: the images have different sizes \(4x5, 6x5\); pass image_size=…, to "
    ):
        read_datasets(mixed, PAIRS)
    found = read_datasets(mixed, PAIRS, image_size=8)
    assert isinstance(found.train, DatasetSplit) and isinstance(found.test, Split)
    assert (found.spec.in_shape, found.spec.margin) == ((3, 8, 8), 256 / 224)
    for split in (found.train, found.test):
        assert epoch_of(split, found.spec, 0)[0].shape[1:] == (8, 8, 3)
    square = [(image[:5], label) for image, label in PAIRS]
    assert read_datasets(square, square, image_size=5).spec.margin is None


def test_an_odd_size_is_found_beyond_the_probes(monkeypatch):
    monkeypatch.setattr(user_items, "PROBES", 2)
    mixed = [PAIRS[0], (IMAGES[1][:4], 1), PAIRS[2]]
    with pytest.raises(UsageError, match="different sizes"):
        read_datasets(mixed, PAIRS)
    assert isinstance(read_datasets(mixed, PAIRS, image_size=8).train, DatasetSplit)


def test_grey_and_coloured_images_together_are_rgb():
    mixed = [(PIL.Image.fromarray(IMAGES[0]), 0), (PIL.Image.fromarray(IMAGES[1][:, :, 0]), 1)]
    found = read_datasets(mixed, mixed[1:])
    assert np.array_equal(found.train.images[1], np.dstack([IMAGES[1][:, :, 0]] * 3))
    assert found.test.images.shape == (1, 6, 5, 3) and len(found.spec.mean) == 3
    with_alpha = [(np.dstack([IMAGES[0], IMAGES[0][:, :, 0]]), 0), mixed[1]]
    assert np.array_equal(read_datasets(with_alpha, with_alpha).train.images[0], IMAGES[0])


def test_images_may_have_any_number_of_channels_in_memory(monkeypatch):
    deep = [(torch.rand(5, 4, 4), 0), (torch.rand(5, 4, 4), 1)]
    spec = read_datasets(deep, deep).spec
    assert spec.in_shape == (5, 4, 4) and len(spec.mean) == 5
    monkeypatch.setattr(user_datasets, "MOST_BYTES", 0)
    with pytest.raises(UsageError, match="images of 5 channels must have one size, stay the same"):
        read_datasets(deep, deep)


def test_a_registered_set_lends_its_statistics_and_augmentation():
    found = read_datasets(PAIRS, PAIRS, described_as="CIFAR10")
    cifar = data.SETS["CIFAR10"]
    assert (found.spec.mean, found.spec.std, found.spec.augment) == (cifar.mean, cifar.std, True)
    assert (found.spec.in_shape, found.spec.num_classes, found.spec.classes) == ((3, 6, 5), 3, ())
    ten = [(image, row % 10) for row, image in enumerate(IMAGES)]
    assert read_datasets(ten, ten, described_as="CIFAR10").spec.classes[0] == "airplane"
    with pytest.raises(UsageError, match="set: MNIST has 1 channels, the images passed have 3; leave out set"):
        read_datasets(PAIRS, PAIRS, described_as="MNIST")
    sized = read_datasets(PAIRS, PAIRS, described_as="TinyImageNet").spec
    assert (sized.in_shape, sized.margin) == ((3, 64, 64), 256 / 224)


class Endless(Dataset):
    def __getitem__(self, row):
        return PAIRS[0]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "data: the training Dataset has no items"),
        (Endless(), "data: the training Dataset is a Endless, which lacks __len__ or __getitem__; a map-style "),
        (DataLoader(PAIRS), "data: the training Dataset is a DataLoader, which lacks __len__ or __getitem__"),
        ([IMAGES[0]], "data: item 0 of the training Dataset is a ndarray; an (image, label) pair expected"),
        ([(IMAGES[0], 0, 1)], "data: item 0 of the training Dataset is a tuple; an (image, label) pair"),
        ([(torch.rand(3, 4, 4) * 2, 0)], "data: item 0 of the training Dataset: a float tensor has values from "),
        ([(IMAGES[0], -1)], "data: item 0 of the training Dataset: its label is -1; an int from 0 on expected"),
        ([(IMAGES[0], 0.5)], "its label is 0.5;"),
        ([(IMAGES[0], True)], "its label is True;"),
        ([(IMAGES[0], "cat")], "its label is cat;"),
    ],
)
def test_what_is_no_dataset_of_labelled_images_is_refused(dataset, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        read_datasets(dataset, PAIRS)


def test_a_label_without_a_name_is_refused():
    with pytest.raises(UsageError, match="data: the test Dataset has the label 7, but only 3 classes"):
        read_datasets(Noisy(lambda: 0), [(IMAGES[0], 7)])


def test_loader_processes_need_a_dataset_that_can_be_pickled(monkeypatch):
    monkeypatch.setattr(user_datasets, "START_METHOD", "spawn")
    dataset = Noisy(lambda: random.randrange(6))
    with pytest.raises(UsageError, match=r"^workers: loader processes copy the training Dataset, .*pickle.*workers=0$"):
        read_datasets(dataset, PAIRS, workers=2)
    assert isinstance(read_datasets(dataset, PAIRS, workers=0).train, DatasetSplit)
    assert read_datasets(PAIRS, PAIRS, workers=2)


def test_an_image_that_changes_its_size_later_ends_the_run():
    found = read_datasets(Noisy(DRAWS["torch"]), PAIRS)
    shrunk = DatasetSplit([(IMAGES[0][:4], 0)] * 12, found.train.rows, found.train.labels)
    with pytest.raises(RunFailed, match=r"item \d+ of a Dataset: it has 4x5 pixels, others 6x5; pass image_size=…"):
        epoch_of(shrunk, found.spec, 0)
