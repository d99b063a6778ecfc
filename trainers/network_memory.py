"""Check that a network fits into memory, before it is built."""

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import data
import models
from args import Options
from models.constraints.registry import CONV_TYPES
from trainers.registry import OPTIMIZERS
from utils.console import warn
from utils.errors import UsageError

HUGE = 10_000_000  # weights of a layer that a person is told of


def check(options: Options, spec: data.SetSpec, build_options: dict[str, Any]) -> None:
    """Raises UsageError where the network that `models.build(**build_options)` gives, its gradients and its optimizer
    need more memory than there is. Warns where a crop that nobody chose makes its first linear layer huge."""
    if torch.empty(0).is_meta:  # a network without numbers needs none
        return
    with torch.device("meta"):
        model = models.build(**build_options)
    weights = sum(parameter.numel() for parameter in model.parameters())
    on_cpu, in_all = 4 * weights * _stored(options), 4 * weights * _tensors(options)
    for needed, free, place in _places(options, on_cpu, in_all):
        if needed > free:
            deciding = _deciding(options, spec)
            raise UsageError(
                f"{deciding[0]}: {options.model.arch} on {options.data.set} would have {weights:,} weights, which "
                f"need {_gigabytes(needed)} of memory; {_gigabytes(free)} are free on this {place}; "
                f"{' and '.join(deciding)} {'decide' if len(deciding) > 1 else 'decides'}"
            )
    if options.data.image_size is None and spec.margin is not None:
        _name_the_crop(options, spec, model, weights)


def _stored(options: Options) -> int:
    """Return how many tensors of a weight's size a layer has."""
    return CONV_TYPES[options.constraint.conv_type].tensors


def _tensors(options: Options) -> int:
    """The same with gradients and what the optimizer keeps, if there is training."""
    if options.run.evaluate or options.run.check:
        return _stored(options)
    trained = 1 if options.constraint.freeze_weights else _stored(options)
    return _stored(options) + trained * (1 + OPTIMIZERS[options.optim.optimizer].tensors)


def _places(options: Options, on_cpu: int, in_all: int) -> Iterator[tuple[int, float, str]]:
    """(bytes needed, bytes free, name) of every memory that has to hold the network: it is built on the CPU."""
    training = not (options.run.evaluate or options.run.check)
    on_gpu = training and options.run.device != "cpu" and torch.cuda.is_available()
    yield on_cpu if on_gpu else in_all, free(), "machine"
    if on_gpu:
        yield in_all, torch.cuda.mem_get_info()[0], "GPU"


def _deciding(options: Options, spec: data.SetSpec) -> list[str]:
    chosen = {"hidden": options.model.hidden, "width_mult": options.model.width_mult != 1, "image_size": spec.margin}
    return [name for name, given in chosen.items() if given] or ["arch"]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _name_the_crop(options: Options, spec: data.SetSpec, model: nn.Module, weights: int) -> None:
    layers = [(m.weight.numel(), name) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    largest, name = max(layers, default=(0, ""))
    if largest >= HUGE and 2 * largest > weights:
        size = "x".join(map(str, spec.in_shape[1:]))
        warn(
            f"image_size: none given, so images of {options.data.set} are cropped to {size}; layer {name} alone has "
            f"{largest:,} weights; --image-size takes a smaller crop"
        )


def free() -> float:
    """Return the bytes that this process may still take: by the machine, its control groups and its own limits."""
    limits = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            limits.append(limit - used)
    return max(0, min(limits + list(_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _control_groups(mine: Path, root: Path) -> Iterator[float]:
    """Yield what every control group that this process is in leaves free; file caches give way and do not count."""
    with suppress(OSError):
        for line in mine.read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            top = root if kinds == "" else root / "memory"
            names = (
                ("memory.max", "memory.current") if kinds == "" else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
            for group in (top / place.strip("/"), *(top / place.strip("/")).parents):
                with suppress(OSError, ValueError, StopIteration):  # "max" is no number: no limit
                    limit, used = (int((group / name).read_text()) for name in names)
                    stats = (group / "memory.stat").read_text().splitlines()
                    cache = next(int(stat.split()[1]) for stat in stats if stat.startswith("inactive_file "))
                    yield limit - used + cache
