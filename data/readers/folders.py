"""Sets that are folders of image files: one folder per class under train/, and the same under val/ or test/."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.readers.files import Location, locate, reading
from data.types import FileSplit
from utils.errors import UsageError
from utils.files import check_regular
from utils.text import quoted

FOLDERS = {
    "ImageNet": ("imagenet", "ImageNet"),
    "TinyImageNet": ("tinyimagenet", "tiny-imagenet-200"),
    "ImageFolder": (),
}
CLASSES = {"ImageNet": 1000, "TinyImageNet": 200}
ANNOTATIONS = "val_annotations.txt"
# Folders that systems leave among others: macOS's archives, Synology's thumbnails, Windows' and ext4's own.
LEFT_BEHIND = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def find(name: str, root: Path) -> tuple[Path, Path]:
    """The folders (train, val) of the set: in its usual sub-folders of `root`, or in `root` itself."""
    folders = [*(root / folder for folder in FOLDERS[name]), root]
    evaluated = ("val", "test") if name == "ImageFolder" else ("val",)
    places = [Location(folder, ("train", other)) for folder in folders for other in evaluated]
    train, val = locate(name, root, places, download=False, fetchable=False)
    return train, val


def class_folders(train: Path) -> list[str]:
    """The sub-folders of `train`, sorted, hidden ones apart. Raises UsageError where there are none."""
    with reading(train), os.scandir(train) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not hidden(f"/{entry.name}/"))
    if not names:
        raise UsageError(f"{train}: no class folders found; one folder of images for each class expected")
    return names


def hidden(path: str) -> bool:
    """Whether a part of `path`, which begins with /, is none of the set: .ipynb_checkpoints, ._000.png and the like."""
    return "/." in path or any(f"/{name}/" in path for name in LEFT_BEHIND)


def count_classes(root: Path) -> int:
    """The classes of an ImageFolder, from the names of its folders alone."""
    return len(class_folders(find("ImageFolder", root)[0]))


def read_folders(name: str, root: Path, _download: bool) -> tuple[FileSplit, FileSplit]:
    """(train, val) as lists of files; no image is opened."""
    train, val = find(name, root)
    classes = class_folders(train)
    wanted = CLASSES.get(name, len(classes))
    if len(classes) != wanted:
        hint = "; set: ImageFolder takes any number"
        raise UsageError(f"{train}: {len(classes)} class folders found, {name} has {wanted}{hint}")
    if (val / ANNOTATIONS).exists() and (val / "images").is_dir():
        return list_files(train), read_annotated(val, classes)
    compare(classes, class_folders(val), train, val)
    return list_files(train), list_files(val)


def compare(classes: Sequence[str], others: Sequence[str], train: Path, val: Path) -> None:
    """Raises UsageError naming the first class that only one of the two folders has."""
    for name in sorted({*classes} ^ {*others}):
        here, there = (train, val) if name in classes else (val, train)
        raise UsageError(f"{here} has a class folder {name!r}, {there} has none; both need the same")


def list_files(folder: Path) -> FileSplit:
    """Every image file below `folder`, by class in the order of their names. Raises UsageError for an empty class."""
    from utils.torch_compat import import_torchvision  # only here: torchvision takes a second to import

    folders = import_torchvision().datasets.folder
    numbers = {name: i for i, name in enumerate(class_folders(folder))}

    def is_image(path: str) -> bool:
        return path.lower().endswith(folders.IMG_EXTENSIONS) and not hidden(path[len(str(folder)) :])

    try:
        listed = folders.make_dataset(str(folder), numbers, is_valid_file=is_image)
        for name in numbers:
            check_images(folder / name, folders.IMG_EXTENSIONS)
    except OSError as error:
        kinds = ", ".join(folders.IMG_EXTENSIONS)
        found = quoted(" ".join(str(error).split()), 300)
        raise UsageError(f"{folder}: {found} Image files end in {kinds}") from error
    return file_split(*zip(*listed, strict=True))


def check_images(folder: Path, endings: tuple[str, ...]) -> None:
    """Raises UsageError for an image below `folder` that is no regular file; the file itself is looked at for links
    alone."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(f"/{entry.name}"):
                continue
            if entry.is_dir():
                check_images(Path(entry.path), endings)
            elif entry.name.lower().endswith(endings) and not entry.is_file():
                check_regular(Path(entry.path))


def file_split(paths: Sequence[str], labels: Sequence[int]) -> FileSplit:
    return FileSplit(np.array([os.fsencode(path) for path in paths]), np.array(labels, np.int64))


def read_annotated(val: Path, classes: Sequence[str]) -> FileSplit:
    """val/ as Tiny ImageNet is handed out: all files in images/, and lines `file <tab> class <tab> box` beside it."""
    annotations, number = val / ANNOTATIONS, {name: i for i, name in enumerate(classes)}
    paths, labels = [], []
    with reading(annotations):
        lines = os.fsdecode(annotations.read_bytes()).splitlines()  # names of files may be any bytes
    for i, line in enumerate(lines, 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0].strip()
        if hidden(f"/{file}"):
            continue
        if name not in number:
            raise UsageError(f"{annotations}, line {i}: {quoted(name)!r} is no class folder of train")
        if not (val / "images" / file).is_file():
            raise UsageError(f"{annotations}, line {i}: there is no images/{quoted(file)}")
        paths.append(str(val / "images" / file))
        labels.append(number[name])
    if not paths:
        raise UsageError(f"{annotations}: holds nothing")
    return file_split(paths, labels)


READERS = {name: partial(read_folders, name) for name in FOLDERS}
