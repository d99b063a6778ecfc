"""Hints for a data set that was not found: an archive that is not unpacked, or another folder with its files."""

import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
ARCHIVE_PREFIXES = {  # beginnings of the archives' names, in lower case without - and _
    "MNIST": ("mnist",),
    "FashionMNIST": ("fashion",),
    "CIFAR10": ("cifar10python", "cifar10binary", "cifar10.", "cifar10batches"),
    "CIFAR100": ("cifar100",),
    "SVHN": ("svhn",),
    "TinyImageNet": ("tinyimagenet",),
    "ImageNet": ("imagenet", "ilsvrc"),
    "ImageFolder": ("",),
}
GENERIC_PREFIXES = ("archive.", "archive(")  # Kaggle's names for downloads
NESTED_ARCHIVES = {  # ImageNet's own archives, which need more than unpacking
    "ilsvrc2012imgtrain.": "it holds an archive of each class, to be unpacked into train/<class>",
    "ilsvrc2012imgval.": "it holds images without classes, to be sorted into val/<class>",
}
# Limits of the search, because `root` may be a home directory: levels of sub-folders, entries per folder and per level
MAX_DEPTH, MAX_ENTRIES = 2, 4000


def find_hint(name: str, root: Path, file_sets: Sequence[Sequence[str]]) -> str | None:
    """Search for a missing data set, and return advice for the user, or None.

    The data set may be an archive below `root` or lie in another folder below `root`. Returns None if neither is found.
    file_sets: the names of the data set's files, one list per file format.
    """
    folders: dict[Path, set[str]] = {}
    for path in _walk_files(root):
        plain_name = path.name.lower().replace("-", "").replace("_", "")
        prefixes = (*ARCHIVE_PREFIXES.get(name, ()), *GENERIC_PREFIXES)
        if path.name.lower().endswith(ARCHIVE_ENDINGS) and plain_name.startswith(prefixes):
            return _unpack_hint(path, plain_name, root if root.is_dir() else root.parent)
        folders.setdefault(path.parent, set()).add(path.name)
    for folder, names in folders.items():
        if any(names >= {*files} for files in file_sets):
            return f"its files are in {folder}: --data {shlex.quote(str(folder))}"
    return None


def _unpack_hint(archive: Path, plain_name: str, target: Path) -> str:
    """Return advice to the user to unpack an archive into the folder `target`.

    plain_name: name of the archive in lower case without - and _, as in NESTED_ARCHIVES.
    """
    nested = next((text for prefix, text in NESTED_ARCHIVES.items() if plain_name.startswith(prefix)), None)
    if nested:
        return f"its archive {archive} is not unpacked; {nested}"
    source, into = shlex.quote(str(archive)), shlex.quote(str(target))
    command = f"unzip {source} -d {into}" if archive.suffix.lower() == ".zip" else f"tar -xf {source} -C {into}"
    return f"its archive {archive} is not unpacked: {command}"


def _walk_files(root: Path) -> Iterator[Path]:
    """Yield the files in a folder and its sub-folders, level by level.

    Hidden entries are left out. If `root` is a file, only yield `root`.
    """
    if root.is_file():
        yield root
    level = [root]
    for _ in range(1 + MAX_DEPTH):
        entries = [*islice((entry for folder in level for entry in _visible_entries(folder)), MAX_ENTRIES)]
        yield from (Path(entry.path) for entry in entries if not entry.is_dir())
        level = [Path(entry.path) for entry in entries if entry.is_dir()]


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, or none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in islice(entries, MAX_ENTRIES) if not entry.name.startswith(".")]
    except OSError:
        return []
