"""Class names of the data sets: one per label, in label order, as published."""

import os
from pathlib import Path

import pytest

from data import SETS, load
from data.readers.class_names import CIFAR10, CLASS_NAMES, FASHION, class_names
from tests.folders import write_set
from utils.errors import UsageError

FOLDER_SETS = {"ImageNet", "TinyImageNet", "ImageFolder"}
META = Path(os.environ.get("FEATHERWEIGHT_DATA", ""), "cifar-10-batches-bin/batches.meta.txt")


def test_every_data_set_has_class_names_or_class_folders():
    assert {*CLASS_NAMES} | FOLDER_SETS | {"in_memory"} == {*SETS}


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_set_has_one_distinct_name_per_class(tmp_path, name):
    names = class_names(name, tmp_path)
    assert len({*names}) == len(names) == SETS[name].num_classes


def test_cifar100_names_are_in_the_alphabetical_order_of_the_labels(tmp_path):
    names = class_names("CIFAR100", tmp_path)
    assert list(names) == sorted(names) and (names[0], names[49], names[99]) == ("apple", "mountain", "worm")


def test_fashion_mnist_names_equal_those_of_torchvision():
    from utils.torch_compat import import_torchvision

    assert list(FASHION) == import_torchvision().datasets.FashionMNIST.classes


@pytest.mark.skipif(not META.is_file(), reason="FEATHERWEIGHT_DATA names no folder with CIFAR10")
def test_cifar10_names_equal_those_of_the_official_archive():
    assert tuple(META.read_text().split()) == CIFAR10


def test_names_of_an_image_folder_follow_the_labels(tmp_path):
    write_set(tmp_path)
    train, names = load("ImageFolder", tmp_path).train, class_names("ImageFolder", tmp_path)
    assert names == ("ant", "bee", "cow")
    assert all(Path(train.path(i)).parent.name == names[label] for i, label in enumerate(train.labels))


def test_class_names_of_a_missing_folder_are_an_error(tmp_path):
    with pytest.raises(UsageError, match="ImageFolder was not found under"):
        class_names("ImageFolder", tmp_path)


def test_an_unlisted_data_set_has_no_class_names(tmp_path):
    assert class_names("PluginSet", tmp_path) is None
