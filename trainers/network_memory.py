"""Check that a network fits into memory before it is built."""

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

HUGE = 10_000_000  # weights of a linear layer from which on a default crop is warned about


def check(options: Options, spec: data.SetSpec, build_options: dict[str, Any]) -> None:
    """Check that the network of `models.build(**build_options)`, its gradients and its optimizer state fit into memory.

    Raises UsageError if they do not. Warns if the default crop of the data set makes a linear layer huge.
    """
    if torch.empty(0).is_meta:  # under torch.device("meta"), where tensors have no storage
        return
    with torch.device("meta"):
        model = models.build(**build_options)
    weights = sum(parameter.numel() for parameter in model.parameters())
    stored, trained = 4 * weights * _stored_tensors(options), 4 * weights * _training_tensors(options)  # float32
    for needed, free, memory in _memories(options, stored, trained):
        if needed > free:
            deciding = _deciding_options(options, spec)
            raise UsageError(
                f"{deciding[0]}: {options.model.arch} on {options.data.set} would have {weights:,} weights, which "
                f"need {_gigabytes(needed)} of memory; {_gigabytes(free)} are free on this {memory}; "
                f"{' and '.join(deciding)} {'decide' if len(deciding) > 1 else 'decides'}"
            )
    if options.data.image_size is None and spec.margin is not None:
        _warn_of_crop(options, spec, model, weights)


def _stored_tensors(options: Options) -> int:
    """Return the number of stored tensors per weight: the weight, and a score or sign in some conv_types."""
    return CONV_TYPES[options.constraint.conv_type].tensors


def _training_tensors(options: Options) -> int:
    """Return the number of tensors per weight with gradients and optimizer state, if the run trains."""
    if not _trains(options):
        return _stored_tensors(options)
    trained = 1 if options.constraint.freeze_weights else _stored_tensors(options)
    return _stored_tensors(options) + trained * (1 + OPTIMIZERS[options.optim.optimizer].tensors)


def _trains(options: Options) -> bool:
    return not (options.run.evaluate or options.run.check)


def _memories(options: Options, stored: int, trained: int) -> Iterator[tuple[int, float, str]]:
    """Yield (bytes needed, bytes free, name) of every memory that must hold the network.

    A network for a GPU is built on the CPU, which must hold its `stored` bytes; the GPU must hold `trained` bytes.
    """
    on_gpu = _trains(options) and options.run.device != "cpu" and torch.cuda.is_available()
    yield stored if on_gpu else trained, free_bytes(), "machine"
    if on_gpu:
        yield trained, torch.cuda.mem_get_info()[0], "GPU"


def _deciding_options(options: Options, spec: data.SetSpec) -> list[str]:
    """Return the options that make the network as large as it is."""
    chosen = {"hidden": options.model.hidden, "width_mult": options.model.width_mult != 1, "image_size": spec.margin}
    return [name for name, given in chosen.items() if given] or ["arch"]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _warn_of_crop(options: Options, spec: data.SetSpec, model: nn.Module, weights: int) -> None:
    layers = [(m.weight.numel(), name) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    largest, name = max(layers, default=(0, ""))
    if largest >= HUGE and 2 * largest > weights:
        size = "x".join(map(str, spec.in_shape[1:]))
        warn(
            f"image_size: none given, so images of {options.data.set} are cropped to {size}; layer {name} alone has "
            f"{largest:,} weights; --image-size takes a smaller crop"
        )


def free_bytes() -> float:
    """Return the bytes this process can still allocate: the least of machine, control groups and resource limits."""
    limits = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            limits.append(limit - used)
    return max(0, min(limits + list(_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _control_groups(membership: Path, root: Path) -> Iterator[float]:
    """Yield the free bytes of every control group of this process, version 1 or 2. Inactive file caches count as free.

    `membership` is the file /proc/self/cgroup, `root` the mount point of the control groups.
    """
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)  # version 2 has no controllers in its line
            if controllers not in ("", "memory"):
                continue
            if controllers == "":
                top, names = root, ("memory.max", "memory.current")
            else:
                top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            for group in (top / path.strip("/"), *(top / path.strip("/")).parents):
                with suppress(OSError, ValueError, StopIteration):  # a limit of "max" is no number
                    limit, used = (int((group / name).read_text()) for name in names)
                    stats = (group / "memory.stat").read_text().splitlines()
                    cache = next(int(stat.split()[1]) for stat in stats if stat.startswith("inactive_file "))
                    yield limit - used + cache
