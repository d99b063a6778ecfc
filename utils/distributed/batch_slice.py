"""The slice of each global batch that a rank computes."""

from dataclasses import dataclass

from utils.errors import UsageError


@dataclass(frozen=True)
class BatchSlice:
    """Slice of a global batch that one rank processes.

    The slice has `count` of the batch's `total` images, from index `start` on. The batch is divided among `world`
    ranks, whose counts differ by at most 1.
    """

    start: int
    count: int
    total: int
    world: int = 1

    @classmethod
    def of(cls, total: int, rank: int, world: int) -> "BatchSlice":
        """Return the slice of a global batch that rank `rank` processes.

        The batch of `total` images is divided among `world` ranks.
        """
        start, end = total * rank // world, total * (rank + 1) // world
        return cls(start, end - start, total, world)

    @property
    def rows(self) -> slice:
        """Python slice that selects the images of this rank from the global batch."""
        return slice(self.start, self.start + self.count)

    @property
    def weight(self) -> float:
        """Factor for the mean loss of this rank, so that ranks with more images count more.

        The average over ranks is then the mean loss of the global batch. The factor is 1 if all ranks have equally many
        images.
        """
        return self.count * self.world / self.total


def check_batch(batch_size: int, images: int, world: int) -> None:
    """Raise UsageError if the global batches cannot be divided among the ranks.

    `world` ranks train on `images` images per epoch in global batches of `batch_size`. `batch_size` must be a multiple
    of `world`. The last batch of an epoch must have at least one image per rank. The message names the nearest batch
    sizes that are possible.
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
    raise UsageError(f"batch_size: {batch_size} given, but {why}; use {nearest}")
