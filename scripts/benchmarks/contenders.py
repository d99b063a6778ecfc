"""Training steps that the benchmarks time: of this program on a sparse or dense network, and of the reference."""

import io
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import numpy as np
import torch

import models
from data import SETS, Split
from data.device_batches import DeviceBatches
from models.constraints.apply import constrain
from models.initial import initialise
from scripts.benchmarks import reference
from trainers.ddp import Replicas
from trainers.loop import Callbacks, TrainingSetup, evaluate, train_one_epoch
from trainers.methods.default import Default
from trainers.methods.prune_score import PruneScore
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.training_state import TrainingState
from utils.distributed.batch_slice import BatchSlice
from utils.distributed.runtime import Runtime
from utils.timing import Sampler, timed

DENSITY = 0.5
RATE = 1e-3  # does not change the time; small, so that the dense network stays finite on random labels
STEPS, EVALUATED = 4, 16  # batches per sample of ours and dense; the first step is not timed
SPEC = SETS["CIFAR10"]
OPTIMIZER = {"1/32": "sgd", "1/1": "adam"}  # as in the configurations


class TimedBatches:
    """Batches that record the time at which the training loop requests each batch."""

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
        """Yield the batches of the epoch and record the times (seconds) in `times`."""
        self.times = [self._now()]
        for batch in self._batches.epoch(epoch, start):
            yield batch
            self.times.append(self._now())

    def _now(self) -> float:
        self._runtime.wait()
        return time.perf_counter()


def network(arch: str, *, dense: bool) -> torch.nn.Module:
    """Return the network `arch` for CIFAR-10, initialised from seed 0, with SubnetConv masks unless `dense`."""
    generator = torch.Generator().manual_seed(0)
    model = models.build(arch, num_classes=SPEC.num_classes, in_shape=SPEC.in_shape, bn_type="NonAffineBatchNorm")
    initialise(model, "kaiming_normal", fan_scale=1 - DENSITY, generator=generator)
    if not dense:
        constrain(model, "SubnetConv", density=DENSITY, generator=generator)
        freeze_weights(model)
    return model


def random_split(images: int) -> Split:
    """Return a data split of `images` images in CIFAR-10's shape, with random pixels and labels."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 32, 32, 3), np.uint8)
    return Split(pixels, random.integers(0, SPEC.num_classes, images))


def parts(
    model: Any, optimizer_name: str, runtime: Runtime, batch: int, *, dense: bool, compression: str = "none"
) -> TrainingSetup:
    """Return the setup of a training loop on random images, assembled as in `trainers.build`.

    batch: The global batch size.
    """
    replicas = Replicas(runtime, compression=compression)
    replicas.prepare(model)
    model.to(runtime.device, memory_format=torch.channels_last)
    method = Default(weight_decay=1e-4) if dense else PruneScore(weight_decay=1e-4, prune_rate_epoch=0)
    split = random_split(batch * max(STEPS, EVALUATED))
    part = (runtime.process.rank, runtime.process.world)
    batches = partial(DeviceBatches, split, SPEC, device=runtime.device, batch_size=batch, seed=0, part=part)
    here = (runtime, batches(train=True, limit=STEPS), batches(train=False, limit=EVALUATED))
    optimizer = make_optimizer(optimizer_name, method.parameter_groups(model), lr=RATE, momentum=0.9)
    return TrainingSetup(model, method, optimizer, *here, learning_rate=lambda _epoch: RATE, replicas=replicas)


def our_samplers(parts: TrainingSetup) -> tuple[Sampler, Sampler]:
    """Return two functions that time this program: seconds per training step and per evaluation batch.

    The first step of a sample is not timed: it contains the work per epoch, which is one 391st of a step in a run on
    CIFAR-10 but would be a quarter here.
    """
    epoch, runtime = 0, parts.runtime
    parts.train = batches = TimedBatches(parts.train, runtime)  # type: ignore[assignment, arg-type]

    def train() -> float:
        nonlocal epoch
        epoch += 1
        with redirect_stderr(io.StringIO()):  # hides the progress bar
            train_one_epoch(parts, TrainingState(epoch=epoch), "bench", Callbacks())
        return (batches.times[-1] - batches.times[1]) / (len(batches) - 1)

    def test() -> object:
        return evaluate(parts.model, parts.held_out, parts.method, runtime)

    return train, timed(test, len(parts.held_out), runtime.wait)


def reference_samplers(arch: str, optimizer: str, runtime: Runtime, batch: int) -> tuple[Sampler, Sampler]:
    """Return two functions that time the reference: seconds per training step and per evaluation batch."""
    model = reference.convert(network(arch, dense=False)).to(runtime.device)
    train, test = (reference.image_by_image(random_split(batch * 4), SPEC, batch, train=on) for on in (True, False))
    step = reference.ReferenceStep(model, reference.make_optimizer(optimizer, model, RATE), train, test, runtime.device)
    return timed(step.train, 1, runtime.wait), timed(step.evaluate, 1, runtime.wait)
