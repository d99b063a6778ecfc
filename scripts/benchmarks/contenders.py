"""What bench.py lets run against each other: our loop, the same loop on the dense network, and the reference."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import torch

import models
from data import SPECS, Split
from data.device_batches import DeviceBatches
from models.constraints import constrain
from models.initial import initialise
from scripts.benchmarks import reference as reference
from trainers.ddp import Replicas
from trainers.loop import TrainingSetup, evaluate, train_one_epoch
from trainers.methods.default import Default
from trainers.methods.prune_score import PruneScore
from trainers.metrics import Metrics
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.training_state import TrainingState
from utils.distributed.batch_slice import BatchSlice
from utils.distributed.runtime import Runtime
from utils.records.epoch_tables import Table

DENSITY = 0.5
RATE = 1e-3  # the rate costs no time; a small one keeps the dense network finite on random labels
STEPS, EVALUATED = 4, 16  # batches of a sample of ours and dense; of the steps the first is not counted
SPEC = SPECS["CIFAR10"]
OPTIMIZER = {"1/32": "sgd", "1/1": "adam"}  # as in the configurations

Samples = dict[str, list[float]]  # contender -> seconds a batch (or a start), one entry a repeat
Work = Callable[[], float]  # takes a sample


class NullCallbacks:
    """The loop's events, for a loop that nobody stops."""

    def stop_asked(self) -> bool:
        return False

    def save_due(self) -> bool:
        return False

    def save(self, state: TrainingState, *, is_best: bool) -> None: ...

    def tables(self, epoch: int, tables: dict[str, Table]) -> None: ...

    def epoch_done(
        self, state: TrainingState, train: Metrics, held_out: Metrics, rate: float, *, is_best: bool
    ) -> None: ...

    def stopped(self, state: TrainingState) -> None: ...


class Marks:
    """Batches that remember when the loop came for the first and, after each, for the next."""

    def __init__(self, batches: DeviceBatches, runtime: Runtime) -> None:
        self._batches, self._runtime, self.samples = batches, runtime, batches.samples
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self._batches)

    def share(self, number: int) -> BatchSlice:
        return self._batches.share(number)

    def prepare(self) -> None:
        self._batches.prepare()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.times = [self._now()]
        for batch in self._batches.epoch(epoch, start):
            yield batch
            self.times.append(self._now())

    def _now(self) -> float:
        self._runtime.wait()
        return time.perf_counter()


def network(arch: str, *, dense: bool) -> torch.nn.Module:
    """`arch` for CIFAR-10 as its configuration builds it, drawn from seed 0, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    model = models.build(arch, num_classes=SPEC.num_classes, in_shape=SPEC.in_shape, bn_type="NonAffineBatchNorm")
    initialise(model, "kaiming_normal", fan_scale=1 - DENSITY, generator=generator)
    if not dense:
        constrain(model, "SubnetConv", density=DENSITY, generator=generator)
        freeze_weights(model)
    return model


def random_split(images: int) -> Split:
    """That many CIFAR-10 images of random bytes."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 32, 32, 3), np.uint8)
    return Split(pixels, random.integers(0, SPEC.num_classes, images))


def parts(
    model: Any, optimizer: str, runtime: Runtime, batch: int, *, dense: bool, compression: str = "none"
) -> TrainingSetup:
    """What the loop needs, put together as trainers.experiment does; `batch` is that of all processes."""
    replicas = Replicas(runtime, compression=compression)
    replicas.prepare(model)
    model.to(runtime.device, memory_format=torch.channels_last)
    method = Default(weight_decay=1e-4) if dense else PruneScore(weight_decay=1e-4, prune_rate_epoch=0)
    split = random_split(batch * max(STEPS, EVALUATED))

    def batches(count: int, *, train: bool) -> DeviceBatches:
        usual: dict[str, Any] = {"device": runtime.device, "batch_size": batch, "seed": 0}
        part = (runtime.process.rank, runtime.process.world)
        return DeviceBatches(split, SPEC, **usual, train=train, limit=count, part=part)

    return TrainingSetup(
        model,
        method,
        make_optimizer(optimizer, method.parameter_groups(model), lr=RATE),
        runtime,
        batches(STEPS, train=True),
        batches(EVALUATED, train=False),
        learning_rate=lambda _epoch: RATE,
        replicas=replicas,
    )


def our_work(assembled: TrainingSetup) -> tuple[Work, Work]:
    """(a training step, an evaluation batch) of the project's own loop, in seconds.

    The first step of a sample is left out: what the loop does once an epoch (391 steps) would weigh a quarter.
    """
    epoch, runtime = 0, assembled.runtime
    assembled.train = marks = Marks(assembled.train, runtime)  # type: ignore[arg-type, assignment]

    def train() -> float:
        nonlocal epoch
        epoch += 1
        with redirect_stderr(io.StringIO()):  # no progress bar among the samples
            train_one_epoch(assembled, TrainingState(epoch=epoch), "bench", NullCallbacks())
        return (marks.times[-1] - marks.times[1]) / (len(marks) - 1)

    def test() -> object:
        return evaluate(assembled.model, assembled.held_out, assembled.method, runtime)

    return train, timed(test, len(assembled.held_out), runtime.wait)


def reference_work(arch: str, optimizer: str, runtime: Runtime, batch: int) -> tuple[Work, Work]:
    """(a training step, an evaluation batch) of the reference, in seconds."""
    model = reference.convert(network(arch, dense=False)).to(runtime.device)
    train, test = (reference.image_by_image(random_split(batch * 4), SPEC, batch, train=on) for on in (True, False))
    step = reference.ReferenceStep(model, reference.make_optimizer(optimizer, model, RATE), train, test, runtime.device)
    return timed(step.train, 1, runtime.wait), timed(step.evaluate, 1, runtime.wait)


def timed(work: Callable[[], object], batches: int = 1, wait: Callable[[], None] = lambda: None) -> Work:
    """`work`, which takes so many batches, as a sampler of the seconds a batch takes."""

    def sample() -> float:
        wait()
        began = time.perf_counter()
        work()
        wait()
        return (time.perf_counter() - began) / batches

    return sample


def contenders(arch: str, act: str, here: dict[str, Runtime], batch: int) -> dict[str, Work]:
    """Every contender for one network by name, `who/precision/what`; the dense network is only trained."""
    works: dict[str, Work] = {}
    anywhere = next(iter(here.values()))
    works["reference/fp32/train"], works["reference/fp32/eval"] = reference_work(arch, OPTIMIZER[act], anywhere, batch)
    for precision, runtime in here.items():
        ours, dense = (
            our_work(parts(network(arch, dense=free), OPTIMIZER[act], runtime, batch, dense=free))
            for free in (False, True)
        )
        works[f"ours/{precision}/train"], works[f"ours/{precision}/eval"] = ours
        works[f"dense/{precision}/train"] = dense[0]
    return works


def measure(works: dict[str, Work], repeat: int) -> Samples:
    """`repeat` samples of each in turn, after a round that does not count; each repeat begins with another one."""
    samples: Samples = {name: [] for name in works}
    order = list(works)
    for work in works.values():
        work()
    for i in range(repeat):
        first = i % len(order)
        for name in order[first:] + order[:first]:
            samples[name].append(works[name]())
    return samples
