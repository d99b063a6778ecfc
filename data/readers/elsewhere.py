"""Search for a set that was not found: in an archive that nobody has unpacked, or in another folder."""

import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
BEGINNINGS = {  # of an archive's name in lower case, without - and _
    "MNIST": ("mnist",),
    "FashionMNIST": ("fashion",),
    "CIFAR10": ("cifar10python", "cifar10binary", "cifar10.", "cifar10batches"),
    "CIFAR100": ("cifar100",),
    "SVHN": ("svhn",),
    "TinyImageNet": ("tinyimagenet",),
    "ImageNet": ("imagenet", "ilsvrc"),
    "ImageFolder": ("",),
}
NAMELESS = ("archive.", "archive(")  # Kaggle's name of every download
NESTED = {  # of ImageNet's own archives, what is in them: to unpack it is not enough
    "ilsvrc2012imgtrain.": "it holds an archive of each class, to be unpacked into train/<class>",
    "ilsvrc2012imgval.": "it holds images without classes, to be sorted into val/<class>",
}
DEPTH, MOST = 2, 4000  # levels of folders, and entries of each, that are looked at


def hint(name: str, root: Path, files: Sequence[Sequence[str]]) -> str | None:
    """Return what to do about the set `name`; None where nothing of it lies at or below `root`.

    files: the names of its files, in each of its forms.
    """
    folders: dict[Path, set[str]] = {}
    for path in _entries(root):
        plain = path.name.lower().replace("-", "").replace("_", "")
        if path.name.lower().endswith(ARCHIVES) and plain.startswith((*BEGINNINGS.get(name, ()), *NAMELESS)):
            return _unpack(path, plain, root if root.is_dir() else root.parent)
        folders.setdefault(path.parent, set()).add(path.name)
    for folder, names in folders.items():
        if any(names >= {*form} for form in files):
            return f"its files lie in {folder}: --data {shlex.quote(str(folder))}"
    return None


def _unpack(archive: Path, plain: str, into: Path) -> str:
    if nested := next((text for start, text in NESTED.items() if plain.startswith(start)), None):
        return f"its archive {archive} is not unpacked; {nested}"
    path, target = shlex.quote(str(archive)), shlex.quote(str(into))
    command = f"unzip {path} -d {target}" if archive.suffix.lower() == ".zip" else f"tar -xf {path} -C {target}"
    return f"its archive {archive} is not unpacked: {command}"


def _entries(root: Path) -> Iterator[Path]:
    """`root` where it is a file, else the files in it and in the folders below, the nearest first, no hidden ones."""
    if root.is_file():
        yield root
    level = [root]
    for _ in range(1 + DEPTH):
        entries = [*islice((entry for folder in level for entry in _listed(folder)), MOST)]
        yield from (Path(entry.path) for entry in entries if not entry.is_dir())
        level = [Path(entry.path) for entry in entries if entry.is_dir()]


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in islice(entries, MOST) if not entry.name.startswith(".")]
    except OSError:
        return []
