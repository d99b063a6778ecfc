"""Files that declare far more than they hold: refused by what they declare, before memory is taken for it."""

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from utils.errors import UsageError

SMALL, RATIO = 64 << 20, 100  # bytes that any file may declare, and beyond that how often its own size


def check(path: Path, declared: int) -> None:
    """Raises UsageError where the compressed file at `path` declares an absurd number of bytes.

    The published sets are compressed to a fifth at best.
    """
    held = path.stat().st_size
    if declared > max(SMALL, RATIO * held):
        raise UsageError(f"{path}: promises {declared:,} bytes of data in a file of {held:,}")


def of_matlab(file: IO[bytes]) -> int:
    """The bytes that the variables of a MATLAB 5 file declare; 0 for another file. Leaves `file` at its start.

    After 128 bytes come elements (uint32 type, uint32 length, content). Type 15 is a zlib stream of one element.
    """
    head, total = file.read(128), 0
    pair = struct.Struct("<II" if head[126:] == b"IM" else ">II")
    while head.startswith(b"MATLAB 5") and len(tag := file.read(8)) == 8:
        kind, length = pair.unpack(tag)
        start = zlib.decompressobj().decompress(file.read(min(length, 64)), 8) if kind == 15 else tag
        total += pair.unpack(start)[1]
        file.seek(length - (min(length, 64) if kind == 15 else 0), os.SEEK_CUR)
    file.seek(0)
    return total


def check_zip(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises UsageError where torch.save did not write `archive`, which lies at `path`, and ValueError where it would
    take more memory than it has bytes: torch.save compresses nothing, and no two entries of its share their bytes.
    """
    entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "data.pkl" not in names or "constants.pkl" in names:  # that is TorchScript: a program
        raise UsageError(f"{path} is not a checkpoint: torch.save did not write it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    _compare(path, sum(entry.file_size for entry in entries))


def check_pickle(path: Path, file: IO[bytes]) -> None:
    """The same for torch.save's older format, from the start of `file` on: four pickles, then the storages.

    Nothing in the file is executed.
    """
    sizes: dict[Any, int] = {}
    with suppress(Exception):  # of a damaged pickle: torch.load comes no further and says what it is
        for _ in range(4):  # magic number, protocol, machine, content
            _Inert(file, sizes).load()
    _compare(path, sum(sizes.values()))


def check_tensors(path: Path, content: object) -> None:
    """Raises ValueError where a tensor repeats its bytes until it is larger than the file: a copy would take that."""
    import torch

    held, todo, seen = path.stat().st_size, [content], set()
    while todo:
        entry = todo.pop()
        if isinstance(entry, torch.Tensor):
            if entry.numel() * entry.element_size() > held:
                raise ValueError(f"it has a tensor of {entry.numel():,} numbers in {held:,} bytes")
        elif isinstance(entry, Mapping | list | tuple) and id(entry) not in seen:
            seen.add(id(entry))
            todo += entry.values() if isinstance(entry, Mapping) else entry


def _compare(path: Path, declared: int) -> None:
    held = path.stat().st_size
    if declared > held:
        raise ValueError(f"it promises {declared:,} bytes of data, and is {held:,} long")


class _Anything(dict[Any, Any]):
    """Stands in for whatever a pickle makes: takes every call, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Anything":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Anything":
        return self

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    append = extend = add = update = __init__


class _Inert(pickle._Unpickler):
    """Makes nothing of a file but the numbers of elements of its storages, by their keys, in `sizes`: an element has at
    least a byte, and torch compares the rest.

    The unpickler in Python: that in C takes 16 bytes for each number that a memo may have, and a file may say 2^32.
    """

    def __init__(self, file: IO[bytes], sizes: dict[Any, int]) -> None:
        super().__init__(file, encoding="latin1")
        self._sizes = sizes

    def find_class(self, _module: str, _name: str) -> Any:
        return _Anything

    def persistent_load(self, saved: Any) -> Any:
        if isinstance(saved, tuple) and len(saved) == 6:
            self._sizes[saved[2]] = int(saved[4])
        return _Anything()
