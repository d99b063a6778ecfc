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

HUGE = 10_000_000  # weights of a linear layer from which a warning advises a smaller crop


def check(options: Options, spec: data.SetSpec, build_options: dict[str, Any]) -> None:
    """Raise UsageError if a network, its gradients and its optimizer state would not fit into memory.

    The network is the one that `models.build(**build_options)` would allocate. `spec` describes the data set. Warns if
    the default crop of the data set makes a linear layer huge.
    """
    if torch.empty(0).is_meta:  # under torch.device("meta"), where tensors have no storage
        return
    with torch.device("meta"):
        model = models.build(**build_options)
    weights = sum(parameter.numel() for parameter in model.parameters())
    for tensors, free, memory in _memories(options):
        needed = 4 * weights * tensors  # float32
        if needed > free:
            deciding = _deciding_options(options, spec)
            raise UsageError(
                f"{deciding[0]}: {options.model.arch} on {options.data.set} would have {weights:,} weights, which "
                f"need {_gigabytes(needed)} of memory; {_gigabytes(free)} are free on this {memory}; "
                f"change {' or '.join(deciding)}"
            )
    if options.data.image_size is None and spec.margin is not None:
        _warn_of_crop(options, spec, model, weights)


def _memories(options: Options) -> Iterator[tuple[int, float, str]]:
    """Yield the values stored per weight and the free bytes, for main memory and for GPU memory.

    Each result is (values per weight, free bytes, name of the memory). GPU memory is left out if it is not used. Per
    weight a run stores its value, perhaps a score or sign, and in training gradients and optimizer state. Gradients and
    optimizer state are on the GPU if there is one.
    """
    stored = CONV_TYPES[options.constraint.conv_type].tensors
    if options.run.evaluate or options.run.check:
        yield stored, free_bytes(), "machine"
        return
    trained = 1 if options.constraint.freeze_weights else stored
    training = stored + trained * (1 + OPTIMIZERS[options.optim.optimizer].tensors)
    on_gpu = options.run.device != "cpu" and torch.cuda.is_available()
    yield stored if on_gpu else training, free_bytes(), "machine"
    if on_gpu:
        yield training, torch.cuda.mem_get_info()[0], "GPU"


def _deciding_options(options: Options, spec: data.SetSpec) -> list[str]:
    """Return the options that determine the size of the network, for an error message."""
    chosen = {"hidden": options.model.hidden, "width_mult": options.model.width_mult != 1, "image_size": spec.margin}
    return [name for name, given in chosen.items() if given] or ["arch"]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _warn_of_crop(options: Options, spec: data.SetSpec, model: nn.Module, weights: int) -> None:
    """Warn if one huge linear layer has over half of the network's weights.

    The warning advises a smaller image crop. `weights` is the number of weights of the network.
    """
    layers = [(m.weight.numel(), name) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    largest, name = max(layers, default=(0, ""))
    if largest >= HUGE and 2 * largest > weights:
        size = "x".join(map(str, spec.in_shape[1:]))
        warn(
            f"image_size: none given, so images of {options.data.set} are cropped to {size}; layer {name} alone has "
            f"{largest:,} weights; --image-size takes a smaller crop"
        )


def free_bytes() -> float:
    """Return the number of bytes that this process can still allocate.

    It is the minimum over the free memory of the machine, the control groups and the resource limit RLIMIT_AS.
    """
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
    """Yield the free bytes of every Linux control group (cgroup) that limits the memory of this process.

    Inactive file caches count as free. `membership` is the file /proc/self/cgroup, `root` the mount point of the
    control groups. Versions 1 and 2 of control groups are supported.
    """
    layouts = {  # controllers -> (folder, file of the limit, file of the usage); version 2 names no controllers
        "": (root, "memory.max", "memory.current"),
        "memory": (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    }
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in layouts:
                continue
            top, *names = layouts[controllers]
            for group in (top / path.strip("/"), *(top / path.strip("/")).parents):
                with suppress(OSError, ValueError, StopIteration):  # the limit may be "max", which is no number
                    limit, used = (int((group / name).read_text()) for name in names)
                    stats = (group / "memory.stat").read_text().splitlines()
                    cache = next(int(stat.split()[1]) for stat in stats if stat.startswith("inactive_file "))
                    yield limit - used + cache
