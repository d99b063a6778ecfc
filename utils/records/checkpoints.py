"""Checkpoints: tensors and plain types only, whole or absent, read without running anybody's code."""

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
from utils.errors import RunFailed, UsageError
from utils.files import check_regular, write_atomic, writing
from utils.text import escaped

State = dict[str, Any]

# BIPROP's cosine schedule leaves a numpy float64 in the optimizer state; numpy 2 renamed the module that rebuilds it.
_rebuild_scalar = np.float64().__reduce__()[0]
FLOAT64: list[Any] = [(_rebuild_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
FLOAT64 += [np.dtype, np.dtypes.Float64DType]


class NotRead(UsageError):
    """The system did not give a file that is there: what is in it is not known, and may be whole."""


def save(directory: Path, state: State, names: list[str]) -> None:
    """Write `state` under every one of `names`, the last one last, each replaced atomically.

    Each is a copy of its own, not a link: what a bad sector does to one it does not do to the others. Raises RunFailed
    where the disk is full or the directory gone; what was there before is kept.
    """
    first, *others = names
    with writing(directory / first):
        write_atomic(directory / first, lambda file: torch.save(state, file))
        for name in others:
            with (directory / first).open("rb") as source:
                write_atomic(directory / name, partial(shutil.copyfileobj, source))


def load(path: Path) -> State:
    """The checkpoint at `path`, on the CPU. Raises UsageError where it is missing, damaged or not plain data."""
    with _one_line(path):
        _verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        declared_sizes.check_tensors(path, state)
    return checked(state, path)


def checked(state: Any, path: Path) -> State:
    """What `path` holds, if it is a checkpoint of this program. Raises UsageError where it is none."""
    whole = isinstance(state, dict) and isinstance(state.get("model"), dict)
    whole = whole and all(isinstance(entry, torch.Tensor) for entry in state["model"].values())
    if not whole or not all(type(state.get(key)) is int and state[key] >= 0 for key in ("epoch", "step")):
        raise UsageError(f"{path} is no checkpoint of this program: it has no model, epoch and step")
    return state


def read(path: Path) -> Any:
    """What anybody's torch.save put into `path`, in its zip or its older format (torch < 1.6), on the CPU.

    Nothing in the file is executed: it may hold tensors, plain values and the numpy float64 of BIPROP's learning rate.
    Raises UsageError where it holds more, is missing, damaged or something else. The older format has no checksums.
    """
    with _one_line(path):
        with path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise UsageError(f"{path} is a Git LFS pointer: fetch the file with git lfs pull")
        if head.startswith(b"PK"):
            _verify(path)
        elif head.startswith(b"\x80"):  # a pickle of protocol 2 or later: the older format
            with path.open("rb") as file:
                declared_sizes.check_pickle(path, file)
        else:
            raise UsageError(f"{path} is no checkpoint: " + ("torch.save did not write it" if head else "it is empty"))
        with torch.serialization.safe_globals(FLOAT64):
            content = torch.load(path, map_location="cpu", weights_only=True)
        declared_sizes.check_tensors(path, content)
        return content


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Whatever goes wrong in here while `path` is read becomes a UsageError of one line."""
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
        told = f"{path} cannot be read: {reason}"
        of_system = isinstance(error, OSError) and error.errno != errno.EINVAL
        raise NotRead(told) if of_system else UsageError(told) from error  # EINVAL: a damaged zip points outside itself


def _verify(path: Path) -> None:
    """Check the sizes and the sums of a zip: torch checks no sums, and a flipped bit would go on unseen."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared_sizes.check_zip(path, archive)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError("damaged or cut short") from error
    if damaged is not None:
        raise ValueError(f"damaged at {escaped(damaged)}")


def newest(directory: Path) -> tuple[State | None, Path | None, list[str]]:
    """(state, path, complaints) of the furthest whole checkpoint; a complaint for each damaged one.

    last.pt is the furthest whenever it is whole, so the others are read only where it is not. Raises RunFailed where
    one cannot be read for another reason: who went on from another would write over it.
    """
    try:
        return _furthest(directory)
    except NotRead as error:
        raise RunFailed(f"{error}; nothing was changed") from error


def _furthest(directory: Path) -> tuple[State | None, Path | None, list[str]]:
    complaints: list[str] = []
    last = directory / "last.pt"
    if last.exists():
        try:
            return load(last), last, complaints
        except NotRead:
            raise
        except UsageError as error:
            complaints.append(str(error))
    readable: list[tuple[tuple[int, int], Path, State]] = []
    for path in sorted(directory.glob("*.pt")):
        if path == last:
            continue
        try:
            state = load(path)
        except NotRead:
            raise
        except UsageError as error:
            complaints.append(str(error))
            continue
        readable.append(((state["epoch"], state["step"]), path, state))
    if not readable:
        return None, None, complaints
    _, path, state = max(readable, key=lambda entry: entry[0])
    return state, path, complaints
