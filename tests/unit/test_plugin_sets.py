"""Data sets of plug-ins: what their readers may return, and the messages about what they may not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

import data
from data.types import DatasetSplit, Split
from utils.config import plugins
from utils.errors import UsageError

pytestmark = pytest.mark.usefixtures("registries")
IMAGES = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5, 1)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def register(parts: Any, **changes: Any) -> None:
    def read() -> Any:
        return parts

    read.__module__ = __name__
    plugins.register_set("own", **{"in_shape": (1, 4, 5), "classes": 3} | changes)(read)


class Items(Dataset):
    def __init__(self, images=IMAGES, labels=LABELS, noise=False):
        self.images, self.labels, self.noise = images, labels, noise

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        noise = np.random.randint(99, size=self.images[row].shape) if self.noise else 0
        return (self.images[row] + noise).astype(np.uint8), int(self.labels[row])


@pytest.mark.parametrize("part", [(IMAGES, LABELS), [IMAGES, LABELS.astype(np.uint8)], Items(), Split(IMAGES, LABELS)])
def test_a_part_may_be_arrays_a_dataset_or_a_split(part: Any) -> None:
    register((part, part), classes=["a", "b", "c"])
    found = data.load("own", ".")
    assert np.array_equal(found.train.images, IMAGES) and found.test.labels.tolist() == LABELS.tolist()
    assert found.train.labels.dtype == np.int64 and found.spec.classes == ("a", "b", "c")


def test_mean_and_deviation_are_measured_on_the_training_images_unless_they_are_given() -> None:
    register(((IMAGES, LABELS), (IMAGES * 0, LABELS)))
    spec = data.load("own", ".").spec
    assert np.allclose((spec.mean, spec.std), ([(IMAGES / 255).mean()], [(IMAGES / 255).std()]))
    register(((IMAGES, LABELS), (IMAGES, LABELS)), mean=[0.25], std=[0.5])
    assert (data.load("own", ".").spec.mean, data.load("own", ".").spec.std) == ((0.25,), (0.5,))
    assert data.load("own", ".", pixels="unit").spec.mean == (0.0,)


def test_a_dataset_with_random_transforms_is_read_in_every_epoch() -> None:
    register((Items(noise=True), Items()))
    found = data.load("own", ".")
    assert isinstance(found.train, DatasetSplit) and isinstance(found.test, Split)


def test_a_reader_gets_the_folder_and_whether_to_download(tmp_path: Path) -> None:
    calls = []

    @plugins.register_set("own", in_shape=(1, 4, 5), classes=3)
    def read(root: Path, download: bool) -> Any:
        calls.append((root, download))
        return (IMAGES, LABELS), (IMAGES, LABELS)

    data.load("own", tmp_path, download=True)
    assert calls == [(tmp_path, True)] and data.SETS["own"].downloads


FAULTS = [
    (7, "its reader returned a int; a training and a test part expected"),
    (((IMAGES[..., 0], LABELS),) * 2, "training part: the images have the shape (6, 4, 5); (n, 4, 5, 1) expected"),
    (((IMAGES[:, :3], LABELS),) * 2, "training part: the images have the shape (6, 3, 5, 1)"),
    (((IMAGES / 255, LABELS),) * 2, "float64 images, int64 labels of shape (6,); uint8 images and one integer"),
    (((IMAGES, LABELS[:5]),) * 2, "uint8 images, int64 labels of shape (5,)"),
    (((IMAGES, LABELS / 1),) * 2, "uint8 images, float64 labels"),
    (((IMAGES, LABELS), (IMAGES, LABELS + 1)), "test part: it has labels from 1 to 3; labels from 0 to 2 expected"),
    (((IMAGES, LABELS - 1),) * 2, "training part: it has labels from -1 to 1"),
    (((IMAGES[:0], LABELS[:0]),) * 2, "training part: it has no images"),
    ((Items(IMAGES[:, :3]), Items()), "training part: the images are 3x5, but in_shape is (1, 4, 5)"),
]


@pytest.mark.parametrize(("parts", "message"), FAULTS)
def test_parts_that_do_not_fit_the_description_are_an_error(parts: Any, message: str) -> None:
    register(parts)
    with pytest.raises(UsageError) as caught:
        data.load("own", ".")
    assert str(caught.value).startswith("set own") and message in str(caught.value)
