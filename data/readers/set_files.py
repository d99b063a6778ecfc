"""Functions that all readers share, to find, download and check the files of a data set.

A file that is missing, truncated, of the wrong format or has a label out of range raises a UsageError that names the
file. The error is raised when the data set is loaded, never during training.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.readers import missing_hints
from data.registry import SETS
from utils.errors import UsageError
from utils.files import check_regular
from utils.text import escaped


@dataclass(frozen=True)
class Location:
    """Folder that may contain a data set, with the names of its files.

    All these files must be in the folder.

    spellings: function from a name to all file names that it may have.
    """

    folder: Path
    names: tuple[str, ...]
    spellings: Callable[[str], tuple[str, ...]] = lambda name: (name,)

    def find(self, name: str) -> Path | None:
        """Return the path of a file in this folder, or None if it does not exist.

        A file in a folder of the same name, as in some archives, is found too. Raises UsageError for a FIFO, a device
        or a broken link.
        """
        existing = [path for spelling in self.spellings(name) if (path := self.folder / spelling).exists()]
        nested = [path / path.name for path in existing if (path / path.name).is_file()]
        files = [path for path in [*existing, *nested] if not path.is_dir()]
        if files:
            check_regular(files[0])
        return next(iter([*files, *existing]), None)

    def existing_files(self) -> list[Path]:
        """Return the paths of the data set's files that exist in this folder."""
        return [path for name in self.names if (path := self.find(name)) is not None]

    def missing_names(self) -> list[str]:
        """Return the names of the data set's files that do not exist in this folder."""
        return [name for name in self.names if self.find(name) is None]


def find_set_files(name: str, root: Path, locations: Sequence[Location], download: bool) -> list[Path]:
    """Find the files of a data set, and return their paths.

    The files are those in the first of `locations` that has all files. If no location is complete and `download` is
    set, the data set is downloaded into `root` first. Raises UsageError if the data set is missing, incomplete or
    cannot be downloaded.
    """
    files = first_complete(locations)
    if files is None and download and SETS[name].downloads:
        download_set(name, root)
        files = first_complete(locations)
    if files is None:
        raise UsageError(missing_message(name, root, locations))
    return files


def first_complete(locations: Sequence[Location]) -> list[Path] | None:
    """Return the paths of a data set's files in the first complete location, or None.

    A location is complete if it has all files.
    """
    return next((location.existing_files() for location in locations if not location.missing_names()), None)


def missing_message(name: str, root: Path, locations: Sequence[Location]) -> str:
    """Return the error message for a data set of which no location has all files."""
    incomplete = next((location for location in locations if location.existing_files()), None)
    if incomplete is not None:
        return f"{name} in {incomplete.folder} is not complete: {', '.join(incomplete.missing_names())} not found"
    searched: dict[tuple[str, ...], list[str]] = {}
    for location in locations:
        searched.setdefault(location.names, []).append(str(location.folder))
    if hint := missing_hints.find_hint(name, root, [*searched]):
        return f"{name} was not found under {root}; {hint}"
    advice = ", or add --download" if SETS[name].downloads else "; it has no download"
    looked = "; or ".join(f"{', '.join(names)} in {' or '.join(folders)}" for names, folders in searched.items())
    return f"{name} was not found under {root}. Looked for {looked}. Pass its folder with --data{advice}"


def download_set(name: str, root: Path) -> None:
    """Download a data set with torchvision.

    torchvision verifies the checksums. Raises UsageError if the download fails.
    """
    from utils.torch_compat import import_torchvision  # only here: importing torchvision takes a second

    try:
        # The constructor also reads a part of the set. The test part (train=False) is the smaller one.
        parts = [{"split": "train"}, {"split": "test"}] if name == "SVHN" else [{"train": False}]
        for part in parts:
            getattr(import_torchvision().datasets, name)(str(root), download=True, **part)
    except (OSError, RuntimeError, ImportError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: the download into {root} failed: {reason}") from error


@contextmanager
def report_read_errors(path: Path) -> Iterator[None]:
    """Convert errors of reading a file in the `with` block into a UsageError.

    The message names the file `path`. Errors of decompressing are converted too.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(f"{path}: cannot be read: {reason}") from error


@contextmanager
def report_parse_errors(path: Path, file_kind: str) -> Iterator[None]:
    """Convert errors of parsing a file in the `with` block into a UsageError.

    The message states that `path` is not a `file_kind`. Any exception is converted, because neither pickle nor scipy
    documents which exceptions a damaged file can cause.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: not a {file_kind}: {escaped(error, 300) or type(error).__name__}") from error


def check_labels(path: Path, labels: NDArray[Any], classes: int, first: int = 0) -> NDArray[np.int64]:
    """Check that all labels are in range, and return them as int64.

    The labels were read from `path`. The range is first..first + classes - 1. Raises UsageError if a label is out of
    range.
    """
    last = first + classes - 1
    if labels.min() < first or labels.max() > last:
        worst = labels.max() if labels.max() > last else labels.min()
        raise UsageError(f"{path}: label {worst} is out of range, {first} to {last} expected")
    return labels.astype(np.int64)
