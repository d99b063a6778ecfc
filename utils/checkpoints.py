"""Checkpoints: tensors and plain types only, whole or absent, read without running anybody's code."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from args import UsageError
from utils.files import write_atomic

State = dict[str, Any]


class RunFailed(RuntimeError):
    """The run cannot go on for a reason that one line says: main prints it and exits with 1."""


def save(directory: Path, state: State, names: list[str]) -> None:
    """Write `state` once and give it every one of `names`, the last one last, each replaced atomically.

    Raises RunFailed where the disk is full or the directory gone; what was there before is kept.
    """
    first, *others = names
    try:
        write_atomic(directory / first, lambda file: torch.save(state, file))
        for name in others:
            _same_file(directory / first, directory / name)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise RunFailed(f"cannot write {directory / first}: {reason}") from error


def _same_file(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def load(path: Path) -> State:
    """The checkpoint at `path`, on the CPU. Raises UsageError where it is missing, damaged or not plain data."""
    try:
        _verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path} is refused: it holds more than tensors and plain values, or is damaged") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else 'damaged'}") from error
    whole = isinstance(state, dict) and isinstance(state.get("model"), dict)
    if not whole or not all(isinstance(state.get(key), int) for key in ("epoch", "step")):
        raise UsageError(f"{path} is no checkpoint of this program: it has no model, epoch and step")
    return state


def _verify(path: Path) -> None:
    """torch reads a zip without checking its sums: a flipped bit would go on training unseen."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"damaged at {damaged}")


def newest(directory: Path) -> tuple[State | None, Path | None, list[str]]:
    """(state, path, complaints) of the furthest readable checkpoint; a complaint for each unreadable one.

    last.pt is the furthest whenever it is whole, so the others are read only where it is not.
    """
    complaints: list[str] = []
    last = directory / "last.pt"
    if last.exists():
        try:
            return load(last), last, complaints
        except UsageError as error:
            complaints.append(str(error))
    readable: list[tuple[tuple[int, int], Path, State]] = []
    for path in sorted(directory.glob("*.pt")):
        if path == last:
            continue
        try:
            state = load(path)
        except UsageError as error:
            complaints.append(str(error))
            continue
        readable.append(((state["epoch"], state["step"]), path, state))
    if not readable:
        return None, None, complaints
    _, path, state = max(readable, key=lambda entry: entry[0])
    return state, path, complaints
