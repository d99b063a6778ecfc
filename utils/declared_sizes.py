"""Reject files that declare far more content than they have bytes, before memory is allocated for the content."""

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

ALWAYS_ALLOWED = 64 << 20  # bytes of content that a file of any size may declare
MAX_RATIO = 100  # declared bytes per byte of a compressed file, above ALWAYS_ALLOWED; published data sets have up to 5


def check(path: Path, declared: int) -> None:
    """Raise UsageError if a data file claims an implausible uncompressed size.

    The check comes before memory is allocated. `declared` is the number of bytes that the headers in the compressed
    file at `path` claim. The limit is MAX_RATIO times the size of the file, and at least ALWAYS_ALLOWED.
    """
    size = path.stat().st_size
    if declared > max(ALWAYS_ALLOWED, MAX_RATIO * size):
        raise UsageError(f"{path}: declares {declared:,} bytes of data, too many for its size of {size:,} bytes")


def matlab_size(file: IO[bytes]) -> int:
    """Return the total size in bytes of the variables that a MATLAB file declares.

    The result is 0 for another format than MATLAB 5. A header of 128 bytes precedes the elements (uint32 type, uint32
    length, content). An element of type 15 is a zlib stream that contains one element. `file` is rewound to its start.
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
    """Raise an error if a checkpoint's tensors claim more bytes than the file has.

    The checkpoint has torch.save's zip format. `archive` is the open zip file at `path`. Raises UsageError if
    torch.save did not write it. Raises ValueError if its content is larger than the file: torch.save compresses
    nothing, and no two entries share bytes.
    """
    entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "data.pkl" not in names or "constants.pkl" in names:  # constants.pkl marks TorchScript, which is a program
        raise UsageError(f"{path} is not a checkpoint: torch.save did not write it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    _compare(path, sum(entry.file_size for entry in entries))


def check_pickle(path: Path, file: IO[bytes]) -> None:
    """Raise ValueError if an old checkpoint's tensors claim more bytes than the file has.

    The checkpoint has torch.save's older format. The format is four pickles followed by the storages of the tensors.
    `file` is the open file at `path`, at its start. No code in the pickles is executed.
    """
    sizes: dict[Any, int] = {}
    with suppress(Exception):  # a damaged pickle stops torch.load at the same place, which reports it
        for _ in range(4):  # magic number, protocol, machine, content
            _StorageSizes(file, sizes).load()
    _compare(path, sum(sizes.values()))


def check_tensors(path: Path, content: object) -> None:
    """Raise ValueError if a loaded tensor has more bytes than its file.

    `content` was loaded from the file at `path`. Such a tensor repeats its bytes with stride 0, and a copy of the
    tensor would need memory for all repetitions.
    """
    import torch  # imported late: data sets are read before torch is needed

    size, todo, seen = path.stat().st_size, [content], set()
    while todo:
        entry = todo.pop()
        if isinstance(entry, torch.Tensor):
            if entry.numel() * entry.element_size() > size:
                raise ValueError(f"it has a tensor of {entry.numel():,} numbers, but only {size:,} bytes")
        elif isinstance(entry, Mapping | list | tuple) and id(entry) not in seen:
            seen.add(id(entry))
            todo += entry.values() if isinstance(entry, Mapping) else entry


def _compare(path: Path, declared: int) -> None:
    size = path.stat().st_size
    if declared > size:
        raise ValueError(f"it declares {declared:,} bytes of data, but has only {size:,}")


class _Placeholder(dict[Any, Any]):
    """Inert stand-in for each object in a pickle, so that unpickling executes no code.

    It accepts any call or item.
    """

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
    """Unpickler that builds no objects and records the size of each tensor storage.

    The attribute `sizes` maps the key of a storage to its size. A size is the number of elements, a lower bound of the
    bytes. torch.load checks the exact sizes later.
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
