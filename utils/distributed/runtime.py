"""Device, precision and ranks of this process, chosen once in the two mains."""

import os
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from args import Options
from utils.distributed import launcher_env
from utils.distributed.launcher_env import ProcessInfo
from utils.errors import IN_USE, RunInUse, SilentExit, UsageError


@dataclass(frozen=True)
class Runtime:
    """Where and how exactly this process computes, and what it does together with the others at its `place`."""

    device: torch.device
    dtype: torch.dtype
    place: ProcessInfo = launcher_env.ALONE

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to `dtype` where that is not float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def at(self, precision: str) -> "Runtime":
        """The same place at "bf16" or "fp32"."""
        return replace(self, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.place.rank == 0

    @property
    def alone(self) -> bool:
        return self.place.world == 1

    @property
    def backend(self) -> str:
        """By which library of torch.distributed the processes talk."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @property
    def gpu(self) -> str:
        """What the GPU is called that no other GPU is called, on whatever machine; empty without one."""
        return str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""

    def total(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`, on each of them; alone the very same tensor."""
        if not self.alone:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it: the same answer on all, so that none goes where others do not follow."""
        return wish if self.alone else bool(self.total(torch.tensor(float(wish), device=self.device)))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of every process, in the order of the processes, on each of them."""
        if self.alone:
            return rows
        counts = torch.zeros(self.place.world, dtype=torch.int64, device=self.device)
        counts[self.place.rank] = len(rows)
        ends = self.total(counts).cumsum(0).tolist()
        whole = rows.new_zeros(ends[-1], *rows.shape[1:])  # sums with zeros: no process needs to know the others' sizes
        whole[ends[self.place.rank] - len(rows) : ends[self.place.rank]] = rows
        return self.total(whole)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the first process, on all of them; others get a copy. Its errors end all."""
        if self.alone:
            return make()
        made, error = None, None
        if self.first:
            try:
                made = make()
            except Exception as failure:
                error = failure
        codes = ((UsageError, 2), (RunInUse, IN_USE), (Exception, 1))
        box = [(made, next((code for kind, code in codes if isinstance(error, kind)), 0))]
        dist.broadcast_object_list(box, src=0, device=self.device)
        if error is not None:
            raise error
        copy, code = box[0]
        if code:
            raise SilentExit(code)
        return made if self.first else copy

    def generators_kept(self) -> AbstractContextManager[Any]:
        """After it torch's generators are as they were: what draws in evaluation changes nothing of training, and the
        processes' generators stay equal though each evaluates other batches."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    @contextmanager
    def one_a_machine(self) -> Iterator[None]:
        """The body runs on one process of every machine first, and when it is done there on the others."""
        if self.place.local_rank:
            dist.barrier()
        yield
        if not self.alone and not self.place.local_rank:
            dist.barrier()

    def put(self, model: torch.nn.Module) -> None:
        """Move `model` here, in place, its 4-d weights to channels_last: 1.3-1.5 times faster convolutions."""
        model.to(self.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def wait(self) -> None:
        """Return when the device has done all it was given, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def precision_name(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def device_name(self) -> str:
        processes = "" if self.alone else f" × {self.place.world} processes"
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)}){processes}"
        return f"cpu ({_processor()}, {torch.get_num_threads()} threads){processes}"


ALONE = Runtime(torch.device("cpu"), torch.float32)  # where nothing else is said


def of(options: Options, place: ProcessInfo = launcher_env.ALONE) -> Runtime:
    """The Runtime that `options` ask for, at `place`. Raises UsageError for a device that is not there."""
    o = options.run
    device, gpus = ("cpu", None) if o.check else (o.device, o.multigpu)
    return choose(device, o.precision, gpus, deterministic=o.deterministic, place=place)


def choose(
    device: str,
    precision: str,
    gpus: tuple[int, ...] | None,
    *,
    deterministic: bool,
    place: ProcessInfo = launcher_env.ALONE,
) -> Runtime:
    """The Runtime that `--device`, `--precision` and `--multigpu` ask for.

    Raises UsageError for a device that is not there.
    """
    where = _device(device, gpus, place)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        False  # float32 is IEEE's, beside bf16 too
    )
    if where.type == "cuda":
        torch.cuda.set_device(where)
        # The same seed gives the same losses: cuDNN may neither pick its algorithms by the clock nor add in any order.
        torch.backends.cudnn.deterministic = True
    elif place.local_world > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() // place.local_world))  # more threads than cores wait for each other
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16(where))
    return Runtime(where, torch.float32, place).at("bf16" if bf16 else "fp32")


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(device: str, gpus: tuple[int, ...] | None, place: ProcessInfo) -> torch.device:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        if len(gpus) < place.local_world:
            raise UsageError(
                f"multigpu: {len(gpus)} named for the {place.local_world} processes of this machine; one for each"
            )
        check_gpus(gpus)
        return torch.device("cuda", gpus[place.local_rank])
    if device == "cuda" and not there:
        raise UsageError("device: cuda is not available here; --device cpu or auto runs without a GPU")
    if not there or device == "cpu":
        return torch.device("cpu")
    if 1 < there < place.local_world:
        raise UsageError(f"device: {place.local_world} processes on this machine, but {there} GPUs; one for each")
    return torch.device("cuda", 0 if there == 1 else place.local_rank)  # srun may show each process its own GPU alone


def check_gpus(gpus: tuple[int, ...]) -> None:
    """Raises UsageError for one that is not there."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for gpu in gpus:
        if gpu >= there:
            raise UsageError(f"multigpu: {gpu}, but this machine has {there or 'no'} GPU; --device cpu runs on the CPU")


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are native: half the time of float32, not an emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _cpu_flag("avx512_bf16") or _cpu_flag("amx_bf16") or (platform.machine() == "aarch64" and _cpu_flag("bf16"))


def _cpu_flag(flag: str) -> bool:
    return any(flag in line.split() for line in _cpuinfo() if line.lower().startswith(("flags", "features")))


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seed_everything(seed: int) -> None:
    """Seed every generator a layer or a library may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every generator, in tensors and plain types."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`, into the GPU in use; older checkpoints hold a state for each of their machine."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"][torch.cuda.current_device() % len(state["cuda"])])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
