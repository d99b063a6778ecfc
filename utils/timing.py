"""Interleaved timings of several contenders."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Sampler = Callable[[], float]  # takes one sample: seconds per batch
Samples = dict[str, list[float]]  # contender -> seconds per batch, one entry per repeat
Key = TypeVar("Key")


def timed(work: Callable[[], object], batches: int = 1, wait: Callable[[], None] = lambda: None) -> Sampler:
    """Return a sampler of the seconds per batch that `work` takes.

    work: Processes `batches` batches per call.
    wait: Blocks until the device is idle. The sampler calls it before and after `work`.
    """

    def sample() -> float:
        wait()
        started = time.perf_counter()
        work()
        wait()
        return (time.perf_counter() - started) / batches

    return sample


def measure(samplers: Mapping[Key, Sampler], repeat: int) -> dict[Key, list[float]]:
    """Take `repeat` samples of each contender in turn, after one round of warm-up that is not recorded.

    Each repeat starts with another contender, so that caches and clock rates favour none.
    """
    samples: dict[Key, list[float]] = {key: [] for key in samplers}
    order = list(samplers)
    for sampler in samplers.values():
        sampler()
    for i in range(repeat):
        first = i % len(order)
        for key in order[first:] + order[:first]:
            samples[key].append(samplers[key]())
    return samples


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return n, median, min and iqr (interquartile range) of the samples of one contender."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"n": len(values), "median": quartiles[1], "min": min(values), "iqr": quartiles[2] - quartiles[0]}
