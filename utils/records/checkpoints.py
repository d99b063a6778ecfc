"""Checkpoints: tensors and plain types only, written atomically, and read without executing code from the file."""

import errno
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import declared_sizes, out_of_memory
from utils.console import warn
from utils.errors import RunFailed, UsageError
from utils.files import check_regular, write_atomic, writing
from utils.run_paths import RunPaths
from utils.text import escaped

Checkpoint = dict[str, Any]

# BIPROP's cosine schedule leaves a numpy float64 in the optimizer state; numpy 2 renamed the module that rebuilds it.
_rebuild_scalar = np.float64().__reduce__()[0]
FLOAT64: list[Any] = [(_rebuild_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
FLOAT64 += [np.dtype, np.dtypes.Float64DType]


class ReadFailed(UsageError):
    """Error for a file that exists but that the system could not read. Its content may be intact."""


def save(checkpoint: Checkpoint, *paths: Path) -> None:
    """Write `checkpoint` to each path in turn, replacing the file there atomically.

    Each file is a copy, not a link, so that a bad sector damages only one of them. Raises RunFailed if the disk is full
    or the directory is gone; the earlier files then remain.
    """
    first, *others = paths
    with writing(first):
        write_atomic(first, lambda file: torch.save(checkpoint, file))
        for path in others:
            with first.open("rb") as source:
                write_atomic(path, partial(shutil.copyfileobj, source))


def load(path: Path) -> Checkpoint:
    """Return the checkpoint of this program at `path`, on the CPU.

    Raises UsageError if it is missing, damaged, or holds more than tensors and plain types.
    """
    with _as_usage_error(path):
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        declared_sizes.check_tensors(path, content)
    return checked(content, path)


def checked(content: Any, path: Path) -> Checkpoint:
    """Return `content`, read from `path`. Raises UsageError if it is not a training checkpoint of this program."""
    sound = isinstance(content, dict) and isinstance(content.get("model"), dict)
    sound = sound and all(isinstance(entry, torch.Tensor) for entry in content["model"].values())
    if not sound or not all(type(content.get(key)) is int and content[key] >= 0 for key in ("epoch", "step")):
        raise UsageError(f"{path} is not a checkpoint of this program: it lacks model, epoch or step")
    return dict(content)


def read(path: Path) -> Any:
    """Return the content of any file of torch.save, in its zip format or its older one (torch < 1.6), on the CPU.

    Nothing in the file is executed: it may hold tensors, plain types and the numpy float64 of BIPROP's learning rate.
    The older format has no checksums. Raises UsageError if the file holds more, is missing, damaged or something else.
    """
    with _as_usage_error(path):
        with path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise UsageError(f"{path} is a Git LFS pointer: fetch the file with git lfs pull")
        if head.startswith(b"PK"):
            _check_zip(path)
        elif head.startswith(b"\x80"):  # a pickle of protocol 2 or later: the older format
            with path.open("rb") as file:
                declared_sizes.check_pickle(path, file)
        else:
            reason = "torch.save did not write it" if head else "it is empty"
            raise UsageError(f"{path} is not a checkpoint: {reason}")
        with torch.serialization.safe_globals(FLOAT64):
            content = torch.load(path, map_location="cpu", weights_only=True)
        declared_sizes.check_tensors(path, content)
        return content


@contextmanager
def _as_usage_error(path: Path) -> Iterator[None]:
    """Turn any error while `path` is read into a UsageError of one line; running out of memory stays as it is."""
    try:
        check_regular(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols and storages: nothing a user can change
            yield
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"asks for {asked[1]}, more" if asked else "is damaged or holds more"
        raise UsageError(f"{path} is refused: it {reason} than tensors and plain values") from error
    except Exception as error:  # a damaged or malicious pickle ends in any of them
        if out_of_memory.is_out_of_memory(error):
            raise RunFailed(f"{path} cannot be read: {out_of_memory.message(error)}; nothing was changed") from error
        reason = getattr(error, "strerror", None) or escaped(str(error).partition("\n")[0], 300) or "damaged"
        message = f"{path} cannot be read: {reason}"
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a damaged zip points outside itself
            raise ReadFailed(message) from error
        raise UsageError(message) from error


def _check_zip(path: Path) -> None:
    """Check sizes and checksums. torch.load checks no checksum: a flipped bit would go unnoticed. Raises ValueError."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared_sizes.check_zip(path, archive)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError("damaged or cut short") from error
    if damaged is not None:
        raise ValueError(f"damaged at {escaped(damaged)}")


def newest(run: RunPaths) -> tuple[Checkpoint, Path] | None:
    """Return the readable checkpoint of `run` that has trained furthest, and its path; None if there is none.

    A damaged checkpoint is a warning. Raises RunFailed if the system cannot read one: a run that is resumed from an
    earlier checkpoint would overwrite it.
    """
    complaints: list[str] = []
    try:
        found = _furthest(run, complaints)
    except ReadFailed as error:
        raise RunFailed(f"{error}; nothing was changed") from error
    for complaint in complaints:
        warn(f"{complaint}; " + (f"{found[1]} is used instead" if found else "there is no other checkpoint"))
    return found


def _furthest(run: RunPaths, complaints: list[str]) -> tuple[Checkpoint, Path] | None:
    """Return the furthest readable checkpoint. Appends a line to `complaints` per damaged one. Raises ReadFailed."""
    last = _readable([run.last] if run.last.exists() else [], complaints)
    if last:  # no other checkpoint is further: last.pt is written with every one of them
        return last[0]
    others = _readable([path for path in sorted(run.checkpoints.glob("*.pt")) if path != run.last], complaints)
    return max(others, key=lambda found: (found[0]["epoch"], found[0]["step"]), default=None)


def _readable(paths: list[Path], complaints: list[str]) -> list[tuple[Checkpoint, Path]]:
    found: list[tuple[Checkpoint, Path]] = []
    for path in paths:
        try:
            found.append((load(path), path))
        except ReadFailed:
            raise
        except UsageError as error:
            complaints.append(str(error))
    return found
