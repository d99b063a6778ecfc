"""The slice of each global batch that a rank computes."""

from dataclasses import dataclass

from utils.errors import UsageError


@dataclass(frozen=True)
class BatchSlice:
    """Rows `start` to `start + count` of a global batch of `total` images, one slice of `world`.

    The sizes of the slices differ by at most one row.
    """

    start: int
    count: int
    total: int
    world: int = 1

    @classmethod
    def of(cls, total: int, rank: int, world: int) -> "BatchSlice":
        """Return the slice of `rank` among `world` ranks of a global batch of `total` images."""
        start, end = total * rank // world, total * (rank + 1) // world
        return cls(start, end - start, total, world)

    @property
    def rows(self) -> slice:
        """The rows of this slice, as an index of the global batch."""
        return slice(self.start, self.start + self.count)

    @property
    def weight(self) -> float:
        """Factor on the mean loss of this slice; it is 1 if all slices have equal sizes.

        The average over the ranks of the weighted means is the mean over the global batch.
        """
        return self.count * self.world / self.total


def check_batch(batch_size: int, images: int, world: int) -> None:
    """Raise UsageError, with the nearest batch sizes that work, if an epoch cannot be sliced among `world` ranks.

    `batch_size` must be a multiple of `world`, and the last batch of an epoch of `images` needs an image per rank.
    """

    def works(size: int) -> bool:
        return size % world == 0 and (size >= images or images % size == 0 or images % size >= world)

    if images < world:
        raise UsageError(f"{world} processes have {images} training images to share; fewer processes are needed")
    if works(batch_size):
        return
    above = next(size for size in range(batch_size, batch_size + images + world + 1) if works(size))
    below = next((size for size in range(batch_size, 0, -1) if works(size)), above)
    why = f"it does not divide among {world} processes"
    if batch_size % world == 0:
        why = f"it leaves {images % batch_size} of {images} images to the last batch, too few for {world} processes"
    nearest = " or ".join(map(str, sorted({below, above})))
    raise UsageError(f"batch_size: {batch_size} given, but {why}; {nearest} would do")
