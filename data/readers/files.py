"""What every reader of a set shares: splits, where files are looked for, downloads, faults; and the smaller readers.

Every fault of a file (missing, truncated, of another format, labels out of range) is a UsageError that names it, raised
here and never in the middle of training. One function reads each format; none keeps a second copy of a set.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.readers import elsewhere
from utils.errors import UsageError
from utils.files import check_regular


@dataclass(frozen=True)
class Location:
    """A folder that may hold a set, and the files it then has; `suffixes` may be appended to each name.

    A file may also stand under one of its other `spellings`, or in a folder of its own name, as some archives have it.
    """

    folder: Path
    files: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)
    spellings: Callable[[str], tuple[str, ...]] = lambda file: (file,)

    def path(self, file: str) -> Path | None:
        names = [spelled + suffix for spelled in self.spellings(file) for suffix in self.suffixes]
        there = [path for name in names if (path := self.folder / name).exists()]
        inner = [path / path.name for path in there if (path / path.name).is_file()]
        files = [path for path in [*there, *inner] if not path.is_dir()]
        if files:
            check_regular(files[0])
        return next(iter([*files, *there]), None)

    def paths(self) -> list[Path]:
        """The files that are there, in the order of `files`."""
        return [path for file in self.files if (path := self.path(file)) is not None]

    def missing(self) -> list[str]:
        return [file for file in self.files if self.path(file) is None]


def complete(places: Sequence[Location]) -> list[Path] | None:
    """The files of the first place that has all of them."""
    return next((place.paths() for place in places if not place.missing()), None)


def locate(name: str, root: Path, places: Sequence[Location], download: bool, *, fetchable: bool = True) -> list[Path]:
    """The files of the set, downloaded into `root` where asked and needed. Raises UsageError: missing or partial."""
    paths = complete(places)
    if paths is None and download and fetchable:
        fetch(name, root)
        paths = complete(places)
    if paths is None:
        hint = ", or add --download" if fetchable else "; it has no download"
        raise UsageError(describe_missing(name, root, places, hint))
    return paths


def describe_missing(name: str, root: Path, places: Sequence[Location], hint: str) -> str:
    partial = next((place for place in places if place.paths()), None)
    if partial is not None:
        return f"{name} in {partial.folder} is not complete: {', '.join(partial.missing())} not found"
    wanted: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        wanted.setdefault(place.files, []).append(str(place.folder))
    if found := elsewhere.hint(name, root, [*wanted]):
        return f"{name} was not found under {root}; {found}"
    looked = "; or ".join(f"{', '.join(files)} in {' or '.join(folders)}" for files, folders in wanted.items())
    return f"{name} was not found under {root}. Looked for {looked}. Give its folder with --data{hint}"


def fetch(name: str, root: Path) -> None:
    """Download a set with torchvision, which checks the digests. Raises UsageError with one line."""
    from utils.torch_compat import import_torchvision  # only here: torchvision takes a second to import

    try:
        # train=False: the constructor also reads the set, of which the test part is the smaller one
        parts = [{"split": "train"}, {"split": "test"}] if name == "SVHN" else [{"train": False}]
        for part in parts:
            getattr(import_torchvision().datasets, name)(str(root), download=True, **part)
    except (OSError, RuntimeError, ImportError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: the download into {root} failed: {reason}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a UsageError naming it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(f"{path}: cannot be read: {reason}") from error


def check_labels(path: Path, labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if labels.min() < 0 or labels.max() >= classes:
        worst = labels.max() if labels.max() >= classes else labels.min()
        raise UsageError(f"{path}: label {worst} is out of range, 0 to {classes - 1} expected")
    return labels.astype(np.int64)
