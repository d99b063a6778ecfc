"""Folders of the machines of BIPROP's authors, which stand in its published files and can be no user's choice."""

import os
import re
from collections.abc import Callable
from typing import Any

from utils.config.fields import writable

SET_FOLDERS = {"cifar10", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar100", "cifar-100-python", "mnist"}
SET_FOLDERS |= {"cifar-100-binary", "fashionmnist", "svhn", "imagenet", "tinyimagenet", "tiny-imagenet-200", "train"}
SET_FOLDERS |= {"train_32x32.mat"}  # SVHN lies in no folder of its own


def holds_sets(folder: str) -> bool:
    """Return whether a data set lies in a folder: /mnt, which BIPROP's files name, is there on every Linux machine."""
    try:
        return any(entry.name.lower() in SET_FOLDERS for entry in os.scandir(folder))
    except OSError:
        return False


PUBLISHED = {"data": r"/mnt(/disk1/datasets|/xnor-ssd)?", "log_dir": r"/home(/vivekr/.+)"}  # in BIPROP's files
FOREIGN: dict[str, Callable[[str], bool]] = {"data": holds_sets, "log_dir": writable}  # what a folder needs to be used


def is_foreign(name: str, v: Any) -> bool:
    """Return whether option `name` of the values `v` is a folder that BIPROP's authors had and this machine lacks.

    A set that is to be downloaded, and an ImageFolder, which BIPROP does not know, are their user's own.
    """
    folder = getattr(v, name)
    if not folder or not re.fullmatch(PUBLISHED[name], folder.rstrip("/")) or FOREIGN[name](folder):
        return False
    return name != "data" or not (v.download or v.set == "ImageFolder")
