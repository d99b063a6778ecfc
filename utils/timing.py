"""Time several functions in turn, so that changes of the machine's speed affect all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Sampler = Callable[[], float]  # takes one sample: seconds per batch
Samples = dict[str, list[float]]  # name of a timed function -> seconds per batch, one entry per repeat
Key = TypeVar("Key")


def timed(work: Callable[[], object], batches: int = 1, wait: Callable[[], None] = lambda: None) -> Sampler:
    """Return a function that runs some work once and returns the seconds per batch.

    `work` processes `batches` batches. `wait` is called before and after `work` and blocks until the device is idle.
    """

    def sample() -> float:
        wait()
        started = time.perf_counter()
        work()
        wait()
        return (time.perf_counter() - started) / batches

    return sample


def measure(
    samplers: Mapping[Key, Sampler], repeat: int, report: Callable[[str], object] = lambda _: None
) -> dict[Key, list[float]]:
    """Time several functions in turn, `repeat` times each, and return their timings.

    The timing functions `samplers` return seconds per batch. The result is the list of timings of each. One more call
    of each warms up and is not recorded. Each round starts with another sampler, so that caches and clock rates favour
    none. `report` gets a line of text before the warm-up and before each round.
    """
    samples: dict[Key, list[float]] = {key: [] for key in samplers}
    order = list(samplers)
    report(f"warm-up of {len(order)} functions")
    for sampler in samplers.values():
        sampler()
    for i in range(repeat):
        report(f"round {i + 1} of {repeat}")
        first = i % len(order)
        for key in order[first:] + order[:first]:
            samples[key].append(samplers[key]())
    return samples


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the number of values, their median, minimum and interquartile range.

    The keys of the dict are n, median, min and iqr.
    """
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"n": len(values), "median": quartiles[1], "min": min(values), "iqr": quartiles[2] - quartiles[0]}
