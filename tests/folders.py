"""Small image folders for the tests, from CIFAR-10 if FEATHERWEIGHT_DATA names its folder, else from the digits."""

import os
from functools import cache

import PIL.Image

import data

REAL = os.environ.get("FEATHERWEIGHT_DATA")
CLASSES = ("ant", "bee", "cow")


@cache
def pictures():
    """Return 30 images, uint8 (30, 32, 32, 3), of CIFAR-10 or of the digits enlarged to that size."""
    if REAL:
        return data.load("CIFAR10", REAL).test.images[:30].copy()
    digits = data.load("digits", ".").test.images[:30]
    return digits.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)


def write_split(folder, per_class=4, classes=CLASSES, ending="png", first=0):
    """Write class folders of `per_class` images. Image i over all classes is picture (first + i) % 30."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            picture = pictures()[(first + number * per_class + i) % 30]
            PIL.Image.fromarray(picture).save(folder / name / f"{i:03}.{ending}")


def write_set(root, train=4, val=2, other="val", **changed):
    """Write train/ and `other`/ with class folders. Return `root`."""
    write_split(root / "train", train, **changed)
    write_split(root / other, val, first=15, **changed)
    return root
