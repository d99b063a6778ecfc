"""What bench.py lets run against each other: our loop, the same loop on the dense network, and the reference."""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import torch

import models
from data import SPECS, Split
from data.batches import DeviceBatches
from models.constraints import constrain
from models.initial import initialise
from scripts import bench_reference as reference
from trainers import METHODS
from trainers.loop import Parts, Score, State, evaluate, train_one_epoch
from trainers.optimizers import freeze_weights, make_optimizer
from utils.runtime import Runtime

DENSITY = 0.5
RATE = 1e-3  # the rate costs no time; a small one keeps the dense network finite on random labels
STEPS, EVALUATED = 3, 16  # batches of one sample of ours and dense; one for the reference, which repeats itself
SPEC = SPECS["CIFAR10"]
OPTIMIZER = {"1/32": "sgd", "1/1": "adam"}  # as in the configurations

Samples = dict[str, list[float]]  # contender -> seconds a batch (or a start), one entry a repeat
Work = Callable[[], int]  # does what is timed, returns how many batches that was


class Undisturbed:
    """The loop's events, for a loop that nobody stops."""

    def stop_asked(self) -> bool:
        return False

    def epoch_done(self, state: State, train: Score, held_out: Score, rate: float, *, is_best: bool) -> None: ...

    def stopped(self, state: State) -> None: ...


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


def parts(model: Any, optimizer: str, runtime: Runtime, batch: int, *, dense: bool) -> Parts:
    """What the loop needs, put together as trainers.experiment does."""
    model.to(runtime.device, memory_format=torch.channels_last)
    method = METHODS["default" if dense else "prune_score"](weight_decay=1e-4)
    split = random_split(batch * max(STEPS, EVALUATED))

    def batches(count: int, *, train: bool) -> DeviceBatches:
        return DeviceBatches(split, SPEC, device=runtime.device, batch_size=batch, seed=0, train=train, limit=count)

    return Parts(
        model,
        method,
        make_optimizer(optimizer, method.parameter_groups(model), lr=RATE),
        runtime,
        batches(STEPS, train=True),
        batches(EVALUATED, train=False),
        rate=lambda _epoch: RATE,
    )


def our_work(assembled: Parts) -> tuple[Work, Work]:
    """(training, evaluation) by the project's own loop."""
    epoch = 0

    def train() -> int:
        nonlocal epoch
        epoch += 1
        with redirect_stderr(io.StringIO()):  # no progress bar among the samples
            train_one_epoch(assembled, State(epoch=epoch), "bench", Undisturbed())
        return len(assembled.train)

    def test() -> int:
        evaluate(assembled.model, assembled.held_out, assembled.method, assembled.runtime)
        return len(assembled.held_out)

    return train, test


def reference_work(arch: str, optimizer: str, device: torch.device, batch: int) -> tuple[Work, Work]:
    """(training, evaluation) of one batch by the reference."""
    model = reference.convert(network(arch, dense=False)).to(device)
    train, test = (reference.image_by_image(random_split(batch * 4), SPEC, batch, train=on) for on in (True, False))
    step = reference.ReferenceStep(model, reference.make_optimizer(optimizer, model, RATE), train, test, device)
    return lambda: bool(step.train()), lambda: bool(step.evaluate())


def contenders(arch: str, act: str, runtimes_by_name: dict[str, Runtime], batch: int) -> dict[str, Work]:
    """Every contender for one network, by name: `who/precision/what`."""
    works: dict[str, Work] = {}
    device = next(iter(runtimes_by_name.values())).device
    works["reference/fp32/train"], works["reference/fp32/eval"] = reference_work(arch, OPTIMIZER[act], device, batch)
    for precision, runtime in runtimes_by_name.items():
        for who in ("ours", "dense"):
            model = network(arch, dense=who == "dense")
            assembled = parts(model, OPTIMIZER[act], runtime, batch, dense=who == "dense")
            works[f"{who}/{precision}/train"], works[f"{who}/{precision}/eval"] = our_work(assembled)
    return works


def measure(works: dict[str, Work], repeat: int, wait: Callable[[], None] = lambda: None) -> Samples:
    """`repeat` samples of each, in seconds a batch, after one unmeasured round; each repeat begins with another one."""
    samples: Samples = {name: [] for name in works}
    order = list(works)
    for work in works.values():
        work()
    for i in range(repeat):
        first = i % len(order)
        for name in order[first:] + order[:first]:
            wait()
            began = time.perf_counter()
            batches = works[name]()
            wait()
            samples[name].append((time.perf_counter() - began) / batches)
    return samples
