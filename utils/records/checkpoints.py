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

# BIPROP's cosine schedule stores a numpy float64 in the optimizer state. numpy 2 renamed the module that rebuilds it.
_rebuild_scalar = np.float64().__reduce__()[0]
FLOAT64: list[Any] = [(_rebuild_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
FLOAT64 += [np.dtype, np.dtypes.Float64DType]


class ReadFailed(UsageError):
    """Error for an existing file that the system could not read.

    The content of the file may be intact.
    """


def save(checkpoint: Checkpoint, *paths: Path) -> None:
    """Write a checkpoint to each of `paths`.

    The files are written in turn. An existing file is replaced atomically. Each file is a copy, not a link, so that a
    bad sector damages only one file. Raises RunFailed if the disk is full or the directory is gone. The files that
    existed before then remain.
    """
    first, *others = paths
    with writing(first):
        write_atomic(first, lambda file: torch.save(checkpoint, file))
        for path in others:
            with first.open("rb") as source:
                write_atomic(path, partial(shutil.copyfileobj, source))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that this program has saved, with all tensors on the CPU.

    Raises UsageError if the file is missing, damaged, or contains more than tensors and plain types.
    """
    with _as_usage_error(path):
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        declared_sizes.check_tensors(path, content)
    return checked(content, path)


def checked(content: Any, path: Path) -> Checkpoint:
    """Check that the content of a file is a training checkpoint, and return it.

    Raises UsageError if `content` lacks the entries model, epoch and step, or if they have other types.
    """
    valid = isinstance(content, dict) and isinstance(content.get("model"), dict)
    valid = valid and all(isinstance(entry, torch.Tensor) for entry in content["model"].values())
    if not valid or not all(type(content.get(key)) is int and content[key] >= 0 for key in ("epoch", "step")):
        raise UsageError(f"{path} is not a checkpoint of this program: it lacks model, epoch or step")
    return dict(content)


def read(path: Path) -> Any:
    """Read any file that torch.save has written, without executing code from the file.

    The file may have the zip format or the older format (torch < 1.6). Tensors are on the CPU. The file may contain
    tensors, plain types and the numpy float64 of BIPROP's learning rate. The older format has no checksums. Raises
    UsageError if the file contains anything else, is missing, or is damaged.
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
    """Convert any error of reading a file in the `with` block into a UsageError.

    The message has one line. If memory runs out, the error becomes RunFailed.
    """
    try:
        check_regular(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols and storages, which users cannot change
            yield
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except pickle.UnpicklingError as error:
        requested = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"asks for {requested[1]}; a file may hold only" if requested else "is damaged or holds more than"
        raise UsageError(f"{path} is refused: it {reason} tensors and plain values") from error
    except Exception as error:  # a damaged or malicious pickle can raise any type
        if out_of_memory.is_out_of_memory(error):
            raise RunFailed(f"{path} cannot be read: {out_of_memory.message(error)}; nothing was changed") from error
        reason = getattr(error, "strerror", None) or escaped(str(error).partition("\n")[0], 300) or type(error).__name__
        damaged = "" if isinstance(error, OSError | ValueError | RuntimeError) else "damaged: "
        message = f"{path} cannot be read: {damaged}{reason}"
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a damaged zip points outside itself
            raise ReadFailed(message) from error
        raise UsageError(message) from error


def _check_zip(path: Path) -> None:
    """Raise ValueError if a declared size or a checksum of a zip file is wrong.

    torch.load checks neither.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            declared_sizes.check_zip(path, archive)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError("damaged or cut short") from error
    if damaged is not None:
        raise ValueError(f"damaged at {escaped(damaged)}")


def newest(run: RunPaths) -> tuple[Checkpoint, Path] | None:
    """Return the latest readable checkpoint of a run with its path, or None.

    Prints a warning for each damaged checkpoint. Raises RunFailed if the system cannot read a checkpoint, because a run
    resumed from an earlier checkpoint would overwrite it.
    """
    damages: list[str] = []
    others = [path for path in sorted(run.checkpoints.glob("*.pt")) if path != run.last]
    try:
        # No other checkpoint is later than last.pt, which is written together with each of them.
        readable = _readable([run.last] if run.last.exists() else [], damages) or _readable(others, damages)
    except ReadFailed as error:
        raise RunFailed(f"{error}; nothing was changed") from error
    latest = max(readable, key=lambda entry: (entry[0]["epoch"], entry[0]["step"]), default=None)
    for damage in damages:
        warn(f"{damage}; " + (f"{latest[1]} is used instead" if latest else "there is no other checkpoint"))
    return latest


def _readable(paths: list[Path], damages: list[str]) -> list[tuple[Checkpoint, Path]]:
    """Return the checkpoint and the path of each undamaged file in `paths`.

    Append a message per damaged file to `damages`. Raises ReadFailed.
    """
    readable: list[tuple[Checkpoint, Path]] = []
    for path in paths:
        try:
            readable.append((load(path), path))
        except ReadFailed:
            raise
        except UsageError as error:
            damages.append(str(error))
    return readable
