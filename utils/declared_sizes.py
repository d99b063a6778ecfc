"""Compare the size that a file declares for its content with the file's own size, before memory is allocated for it."""

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from utils.errors import UsageError
from utils.python_compat import PythonUnpickler

ALWAYS_ALLOWED = 64 << 20  # bytes that a file of any size may declare
MAX_RATIO = 100  # beyond that, declared bytes per byte of the file; the published sets have at most 5


def check(path: Path, declared: int) -> None:
    """Raise UsageError if `declared`, in bytes, is absurd for the compressed file at `path`."""
    size = path.stat().st_size
    if declared > max(ALWAYS_ALLOWED, MAX_RATIO * size):
        raise UsageError(f"{path}: promises {declared:,} bytes of data in a file of {size:,}")


def matlab_size(file: IO[bytes]) -> int:
    """Return the number of bytes that the variables of a MATLAB 5 file declare; 0 for another file.

    After a header of 128 bytes come elements (uint32 type, uint32 length, content). Type 15 is a zlib stream of one
    element. `file` is left at its start.
    """
    header, total = file.read(128), 0
    pair = struct.Struct("<II" if header[126:] == b"IM" else ">II")
    while header.startswith(b"MATLAB 5") and len(tag := file.read(8)) == 8:
        kind, length = pair.unpack(tag)
        start = zlib.decompressobj().decompress(file.read(min(length, 64)), 8) if kind == 15 else tag
        total += pair.unpack(start)[1]
        file.seek(length - (min(length, 64) if kind == 15 else 0), os.SEEK_CUR)
    file.seek(0)
    return total


def check_zip(path: Path, archive: zipfile.ZipFile) -> None:
    """Check the `archive` at `path`, a checkpoint in torch.save's current format.

    Raises UsageError if torch.save did not write it, ValueError if its content needs more memory than the file has
    bytes: torch.save compresses nothing, and no two of its entries share bytes.
    """
    entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "data.pkl" not in names or "constants.pkl" in names:  # with constants it is TorchScript: a program
        raise UsageError(f"{path} is not a checkpoint: torch.save did not write it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    _compare(path, sum(entry.file_size for entry in entries))


def check_pickle(path: Path, file: IO[bytes]) -> None:
    """Check a checkpoint in torch.save's older format, four pickles and then the storages, from the start of `file`.

    Nothing in the file is executed. Raises ValueError if its storages need more memory than the file has bytes.
    """
    sizes: dict[Any, int] = {}
    with suppress(Exception):  # a damaged pickle stops torch.load at the same place, which reports it
        for _ in range(4):  # magic number, protocol, machine, content
            _StorageSizes(file, sizes).load()
    _compare(path, sum(sizes.values()))


def check_tensors(path: Path, content: object) -> None:
    """Raise ValueError if a tensor of `content` is larger than the file at `path`.

    An expanded tensor repeats its bytes, and a copy would take the memory of all repetitions.
    """
    import torch  # imported late: data sets are read before torch is needed

    size, todo, seen = path.stat().st_size, [content], set()
    while todo:
        entry = todo.pop()
        if isinstance(entry, torch.Tensor):
            if entry.numel() * entry.element_size() > size:
                raise ValueError(f"it has a tensor of {entry.numel():,} numbers in {size:,} bytes")
        elif isinstance(entry, Mapping | list | tuple) and id(entry) not in seen:
            seen.add(id(entry))
            todo += entry.values() if isinstance(entry, Mapping) else entry


def _compare(path: Path, declared: int) -> None:
    size = path.stat().st_size
    if declared > size:
        raise ValueError(f"it promises {declared:,} bytes of data, and is {size:,} long")


class _Placeholder(dict[Any, Any]):
    """Object in place of everything that a pickle builds: accepts every call and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Placeholder":
        return self

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    append = extend = add = update = __init__


class _StorageSizes(PythonUnpickler):
    """Unpickler that builds nothing and records the number of elements of each storage, by its key, in `sizes`.

    An element has at least one byte. torch.load compares the exact sizes.
    """

    def __init__(self, file: IO[bytes], sizes: dict[Any, int]) -> None:
        super().__init__(file, encoding="latin1")
        self._sizes = sizes

    def find_class(self, _module: str, _name: str) -> Any:
        return _Placeholder

    def persistent_load(self, saved: Any) -> Any:
        if isinstance(saved, tuple) and len(saved) == 6:
            self._sizes[saved[2]] = int(saved[4])
        return _Placeholder()
