"""Compatibility with the YAML files published with the BIPROP paper: their option names, values and folders."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from data.registry import SETS
from utils.files import writable

ALIASES = {"density": "prune_rate"}
# BIPROP's options without an effect here
DEAD = ["world_size", "rank", "random_subnet", "debug", "multistep_lr_adjust", "multistep_lr_gamma"]
RENAMED: Mapping[tuple[str, str], Mapping[str, object]] = {  # (option, value) of BIPROP -> options here
    ("trainer", "anomaly"): {"trainer": "default", "detect_anomaly": True},
    ("trainer", "parallel"): {"trainer": "default"},
    ("set", "CIFAR10_gaussian"): {"set": "CIFAR10", "gaussian_aug": True},
    ("set", "CIFAR10_augmix"): {"set": "CIFAR10", "augmix": True},
}

OTHER_NAMES = {"train", "train_32x32.mat"}  # files of ImageNet and SVHN that need no folder of the set's name


def holds_sets(folder: str) -> bool:
    """Return True if `folder` contains the folder or file of a known data set.

    The folder's name begins with the name of the set, as in cifar-10-batches-py. BIPROP's files name /mnt, which exists
    on every Linux machine, so existence alone says nothing.
    """
    sets = tuple(name.lower() for name in SETS)
    try:
        names = [entry.name.lower() for entry in os.scandir(folder)]
    except OSError:
        return False
    return any(name in OTHER_NAMES or re.sub("[-_]", "", name).startswith(sets) for name in names)


FOLDERS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "data": (r"/mnt(/disk1/datasets|/xnor-ssd)?", holds_sets),
    "log_dir": (r"/home(/vivekr/.+)", writable),
}  # option -> (folders in BIPROP's files, function that tests whether a folder can be used here)


def is_foreign_folder(name: str, values: Any) -> bool:
    """Return True if an option names a folder that only BIPROP's authors have.

    The result is True only if the folder cannot be used here. The YAML files published with BIPROP name such folders.
    `values` has the options as attributes. The folder `data` is the user's own choice if the set is to be downloaded or
    is an ImageFolder, which BIPROP does not have.
    """
    folder, (published, is_usable) = getattr(values, name), FOLDERS[name]
    if not folder or not re.fullmatch(published, folder.rstrip("/")) or is_usable(folder):
        return False
    return name != "data" or not (values.download or values.set == "ImageFolder")
