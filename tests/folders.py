"""Small sets on disk for the tests: folders of real images, CIFAR-10's where FEATHERWEIGHT_DATA names them."""

import os
from functools import cache

import PIL.Image

import data

REAL = os.environ.get("FEATHERWEIGHT_DATA")
CLASSES = ("ant", "bee", "cow")


@cache
def pictures():
    """uint8 (30, side, side, 3): of CIFAR-10, else of the bundled digits, each enlarged to 32 pixels."""
    if REAL:
        return data.load("CIFAR10", REAL).test.images[:30].copy()
    digits = data.load("digits", ".").test.images[:30]
    return digits.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)


def write_split(folder, per_class=4, classes=CLASSES, ending="png", first=0):
    """Class folders of `per_class` images each; image i of the whole is picture (first + i) % 30."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            picture = pictures()[(first + number * per_class + i) % 30]
            PIL.Image.fromarray(picture).save(folder / name / f"{i:03}.{ending}")


def write_set(root, train=4, val=2, other="val", **changed):
    """An ImageFolder-shaped set; returns its root."""
    write_split(root / "train", train, **changed)
    write_split(root / other, val, first=15, **changed)
    return root
