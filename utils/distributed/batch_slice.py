"""How a batch is shared among processes: each has its slice of the very batch that one process alone would have."""

from dataclasses import dataclass

from utils.errors import UsageError


@dataclass(frozen=True)
class Share:
    """Rows `first` to `first + count` of a batch of `total`, one of `parts` slices that differ by a row at most."""

    first: int
    count: int
    total: int
    parts: int = 1

    @classmethod
    def of(cls, total: int, number: int, parts: int) -> "Share":
        """Slice `number` of `parts`."""
        first, end = total * number // parts, total * (number + 1) // parts
        return cls(first, end - first, total, parts)

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def weight(self) -> float:
        """What a mean over these rows counts in the plain average of the slices' means: 1 where all are as large.

        With it that average is the mean over the batch.
        """
        return self.count * self.parts / self.total


def check_batch(batch_size: int, images: int, processes: int) -> None:
    """Raises UsageError, naming the nearest that would do, for a batch that does not divide among the processes, or
    leaves fewer images than processes to the last batch of an epoch."""

    def fits(size: int) -> bool:
        return size % processes == 0 and (size >= images or images % size == 0 or images % size >= processes)

    if images < processes:
        raise UsageError(f"{processes} processes have {images} training images to share; fewer processes are needed")
    if fits(batch_size):
        return
    up = next(size for size in range(batch_size, batch_size + images + processes + 1) if fits(size))
    down = next((size for size in range(batch_size, 0, -1) if fits(size)), up)
    why = f"it does not divide among {processes} processes"
    if batch_size % processes == 0:
        why = f"it leaves {images % batch_size} of {images} images to the last batch, too few for {processes} processes"
    raise UsageError(f"batch_size: {batch_size} given, but {why}; {' or '.join(map(str, sorted({down, up})))} would do")
