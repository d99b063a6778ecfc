"""Batches of images that each need work of their own (decode, resize, mix): done in worker processes, ahead of use."""

import atexit
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakSet

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data import Augmentation, SetSpec
from data.batches import Batches, derived_seed
from data.sources import AnySplit, FileSplit
from data.views import Image, decode, make_views
from utils.files import RunFailed

# fork starts at once and shares the set's memory; where it is unsafe or absent, each worker reads a copy of its own
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# Sent to the whole process group, these ask the run to finish its step and save, for which it needs its workers; they
# end when it lets them go, or within seconds of its death.
FOR_THE_RUN = ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP")
OPEN: WeakSet[DataLoader[Any]] = WeakSet()  # whose workers may be running
Key = tuple[int, NDArray[np.intp]]  # (epoch, rows of one batch)


class Items(Dataset[Any]):
    """What a worker holds: `items[epoch, rows]` is one batch, on the CPU.

    The views of a row depend on (seed, epoch, row) alone, so that neither the number of workers nor the batch counts.
    """

    def __init__(self, split: AnySplit, spec: SetSpec, augmentation: Augmentation, seed: int | None) -> None:
        self.split, self.spec, self.augmentation, self.seed = split, spec, augmentation, seed

    @cached_property
    def make_views(self) -> Callable[[Image], Tensor]:
        """Built where it is used: a worker that does not start by fork has to import torchvision our way first."""
        return make_views(self.spec, self.augmentation, train=self.seed is not None)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        """(uint8 images (views x batch, height, width, channels), labels (batch,)), view by view.

        Where a file cannot be decoded, the line that says so: an exception would arrive wrapped in a traceback.
        """
        epoch, rows = key
        try:
            images = torch.stack([self.views(epoch, int(row)) for row in rows], dim=1)
        except RunFailed as error:
            return str(error)
        return images.flatten(0, 1), torch.from_numpy(self.split.labels[rows])

    def views(self, epoch: int, row: int) -> Tensor:
        """uint8 (views, height, width, channels) of one image."""
        image = self.image(row)
        if self.seed is None:
            return self.make_views(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, row))
            return self.make_views(image)

    def image(self, row: int) -> Image:
        if isinstance(self.split, FileSplit):
            return decode(self.split.path(row))
        pixels = self.split.images[row]
        return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


class LoaderBatches(Batches):
    """A split whose images are prepared one by one, by `workers` processes (0: here), which stay from epoch to epoch.

    One epoch at a time: starting another ends the first. Raises RunFailed, while iterating, naming a file that cannot
    be decoded, or where a worker was killed.
    """

    def __init__(self, split: AnySplit, spec: SetSpec, *, workers: int = 0, **options: Any) -> None:
        super().__init__(len(split), spec, **options)
        self.augment = False  # crops are drawn image by image, not for the epoch
        self.keys: list[Key] = []  # of the epoch that runs: the loader and its workers outlive it
        processes: dict[str, Any] = {
            "multiprocessing_context": START_METHOD,
            "persistent_workers": True,
            "worker_init_fn": settle,
        }
        with many_workers():
            self.loader: DataLoader[Any] = DataLoader(
                Items(split, spec, self.augmentation, self.seed),
                batch_size=None,
                sampler=self.keys,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else it would take a number from the global one
                **(processes if workers else {}),
            )

    def pixels(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = self.draws(epoch)
        order = np.arange(self.count) if draws is None else draws.order.numpy()
        self.keys[:] = [(epoch, order[rows]) for rows in self.slices(start)]
        try:
            for batch in started(self.loader):
                if isinstance(batch, str):
                    raise RunFailed(batch)
                images, labels = batch
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = "it was killed, or memory, shared memory (/dev/shm) perhaps, ran out; fewer --workers need less"
            raise RunFailed(f"a loader process ended too early: {reason}") from error


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's iterator, without its handler of SIGCHLD.

    That would raise wherever the program is when a worker dies; without it, the next batch that is asked for does.
    """
    with without_sigchld(), many_workers():
        batches = iter(loader)
    OPEN.add(loader)
    atexit.unregister(close_all)
    atexit.register(close_all)  # the last to be registered is the first to run
    return batches


@contextmanager
def many_workers() -> Iterator[None]:
    """More workers than cores, where that is what was asked for, without torch's warning of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


@contextmanager
def without_sigchld() -> Iterator[None]:
    """Leave the handler of SIGCHLD as it was found."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, handler)


def close_all() -> None:
    """At exit: let the workers go, before multiprocessing sends them SIGTERM, which they ignore, and waits for ever."""
    for loader in list(OPEN):
        if loader._iterator is not None:  # an epoch broken off may hold it as well: to let go of it is not enough
            getattr(loader._iterator, "_shutdown_workers")()  # noqa: B009 (of the kind with workers)
    for process in multiprocessing.active_children():
        if process.daemon:  # a worker that its loader left behind when it was collected
            process.kill()


def settle(_worker: int) -> None:
    """Begin work as a loader process."""
    for name in FOR_THE_RUN:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
