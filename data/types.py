"""The types that readers, batches and trainers share: splits of a data set."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """Images in memory: uint8 (n, height, width, channels); labels: int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def copied(self, rows: NDArray[np.intp]) -> "Split":
        return Split(self.images[rows], self.labels[rows])

    def kept(self, rows: NDArray[np.intp]) -> "Split":
        """These rows, ascending, alone; the arrays of this split are reused and it is not to be used any more."""
        return Split(compact(self.images, rows), compact(self.labels, rows))


@dataclass(frozen=True)
class FileSplit:
    """Images in files. paths: bytes (n,), one array, so that worker processes share its memory; labels: int64 (n,)."""

    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> str:
        return os.fsdecode(self.paths[row])

    def copied(self, rows: NDArray[np.intp]) -> "FileSplit":
        return FileSplit(self.paths[rows], self.labels[rows])

    kept = copied


AnySplit = Split | FileSplit


def compact(array: NDArray[Any], rows: NDArray[np.intp], chunk: int = 4096) -> NDArray[Any]:
    """array[rows] for ascending rows, in place: a training set is too large to be held twice."""
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]  # part[i] >= start + i: reading never falls behind writing
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]
