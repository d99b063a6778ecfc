"""Reader of data sets in folders: train/<class>/<image> and the same in val/ or test/."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.readers.set_files import Location, find_set_files, report_read_errors
from data.registry import SETS
from data.types import FileSplit
from utils.errors import UsageError
from utils.files import check_regular
from utils.text import escaped

FOLDERS = {  # sub-folders of --data, which are searched before --data itself
    "ImageNet": ("imagenet", "ImageNet"),
    "TinyImageNet": ("tinyimagenet", "tiny-imagenet-200"),
    "ImageFolder": (),
}
# equals torchvision.datasets.folder.IMG_EXTENSIONS; importing torchvision would take a second
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"
# Folders that macOS's archives, Synology's thumbnails, Windows and ext4 create beside the class folders
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def find_parts(name: str, root: Path) -> tuple[Path, Path]:
    """Find the training folder and the validation folder of a data set below `root`.

    Raises UsageError if they are missing.
    """
    folders = [*(root / folder for folder in FOLDERS.get(name, ())), root]
    evaluation_folders = ("val", "test") if name == "ImageFolder" else ("val",)
    locations = [Location(folder, ("train", other)) for folder in folders for other in evaluation_folders]
    train, val = find_set_files(name, root, locations, download=False)
    return train, val


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders in `folder`.

    Every sub-folder is a class. Raises UsageError if there are none.
    """
    with report_read_errors(folder), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not is_ignored(entry.name))
    if not names:
        raise UsageError(f"{folder}: no class folders found; one folder of images for each class expected")
    return names


def is_ignored(name: str) -> bool:
    """Return True for a file or folder that is not part of a data set, such as .ipynb_checkpoints."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def count_classes(name: str, root: Path) -> int:
    """Return the number of classes of a data set without opening an image."""
    return len(class_folders(find_parts(name, root)[0]))


def read_folders(name: str, root: Path, _download: bool) -> tuple[FileSplit, FileSplit]:
    """Return the splits (train, val) of a data set with one folder per class.

    The splits have image paths with labels. No image is opened. Raises UsageError if a folder is missing, a class has
    no image, or the two parts differ in their classes.
    """
    train, val = find_parts(name, root)
    classes = class_folders(train)
    expected = SETS[name].num_classes
    if expected not in (0, len(classes)):  # 0: any number
        found = f"{train}: {len(classes)} class folders found, {name} has {expected}"
        raise UsageError(f"{found}; set: ImageFolder takes any number")
    if (val / ANNOTATIONS).exists() and (val / "images").is_dir():
        return list_images(train, classes), read_annotated(val, classes)
    for unmatched in sorted({*classes} ^ {*class_folders(val)}):
        present, absent = (train, val) if unmatched in classes else (val, train)
        raise UsageError(f"{present} has a class folder {unmatched!r}, {absent} has none; both need the same")
    return list_images(train, classes), list_images(val, classes)


def list_images(folder: Path, classes: Sequence[str]) -> FileSplit:
    """Return the paths and labels of all images below a folder.

    They are ordered by class, then by folder and file name. Raises UsageError if a class has no image or an image is
    not a regular file.
    """
    images: list[list[str]] = []  # per class
    for name in classes:
        with report_read_errors(folder / name):
            images.append(sorted(image_files(folder / name), key=os.path.split))
    if not all(images):
        names = escaped(", ".join(name for name, paths in zip(classes, images, strict=True) if not paths), 300)
        raise UsageError(f"{folder}: no images for the classes {names}; image files end in {', '.join(IMAGE_ENDINGS)}")
    labels = [label for label, paths in enumerate(images) for _ in paths]
    return file_split([path for paths in images for path in paths], labels)


def image_files(folder: str | Path) -> Iterator[str]:
    """Yield the paths of all image files below a folder.

    Raises UsageError if one of them is not a regular file. ImageNet has 1.3 million files. scandir returns the file
    types, so that only links need a stat call.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if entry.is_dir():
                yield from image_files(entry.path)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                if not entry.is_file():
                    check_regular(Path(entry.path))
                yield entry.path


def file_split(paths: Sequence[str], labels: Sequence[int]) -> FileSplit:
    """Return a FileSplit of the images `paths`, with one label per path."""
    return FileSplit(np.array([os.fsencode(path) for path in paths]), np.array(labels, np.int64))


def read_annotated(val: Path, classes: Sequence[str]) -> FileSplit:
    """Return the image paths and labels of Tiny ImageNet's validation folder.

    `val` is this folder, and `classes` is in label order. All images are in val/images, and val/val_annotations.txt has
    their classes.

    A line of val_annotations.txt is `file <tab> class <tab> bounding box`. Raises UsageError, with the line number, for
    an unknown class or a missing file.
    """
    annotations, class_labels = val / ANNOTATIONS, {name: i for i, name in enumerate(classes)}
    paths, labels = [], []
    with report_read_errors(annotations):
        lines = os.fsdecode(annotations.read_bytes()).splitlines()  # file names may be any bytes
    for number, line in enumerate(lines, 1):
        file, _, remainder = line.partition("\t")
        name = remainder.partition("\t")[0].strip()
        if any(map(is_ignored, file.split("/"))):
            continue
        if name not in class_labels:
            raise UsageError(f"{annotations}, line {number}: '{escaped(name)}' is not a class folder of train")
        if not (val / "images" / file).is_file():
            raise UsageError(f"{annotations}, line {number}: images/{escaped(file)} does not exist")
        paths.append(str(val / "images" / file))
        labels.append(class_labels[name])
    if not paths:
        raise UsageError(f"{annotations}: lists no images")
    return file_split(paths, labels)


read_imagenet = partial(read_folders, "ImageNet")
read_tiny_imagenet = partial(read_folders, "TinyImageNet")
read_image_folder = partial(read_folders, "ImageFolder")
