"""Device, precision and ranks of this process, chosen once by main.py or parallel_main.py."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from args import Options
from utils.distributed import launcher_env
from utils.distributed.launcher_env import ProcessInfo
from utils.errors import SilentExit, UsageError, exit_code
from utils.processor import cpu_features, cpu_fields, usable_cores

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """Device, precision and rank of this process, with collective operations over all ranks.

    Every rank must call a collective operation. With a single process, the operation returns its argument.
    """

    device: torch.device
    dtype: torch.dtype
    process: ProcessInfo = launcher_env.ALONE

    def precision(self) -> AbstractContextManager[Any]:
        """Return torch's autocast context for the precision of this Runtime. With float32 it changes nothing."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def at(self, precision: str) -> "Runtime":
        """Return a copy of this Runtime with another precision, "bf16" or "fp32"."""
        return replace(self, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    @property
    def first(self) -> bool:
        """True on rank 0, the process that writes files and prints."""
        return self.process.rank == 0

    @property
    def alone(self) -> bool:
        """True if the run has a single process."""
        return self.process.world == 1

    @property
    def backend(self) -> str:
        """Backend of torch.distributed: "nccl" for a GPU, "gloo" for a CPU."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @property
    def gpu(self) -> str:
        """UUID of the GPU, unique across machines, or "" on a CPU."""
        return str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all ranks, as a new tensor of the same shape."""
        if not self.alone:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return True on every rank if `flag` is true on at least one rank."""
        return flag if self.alone else bool(self.total(torch.tensor(float(flag), device=self.device)))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, concatenated in rank order.

        rows: (n, …), where n may differ between ranks. Returns (sum of n over ranks, …).
        """
        if self.alone:
            return rows
        counts = torch.zeros(self.process.world, dtype=torch.int64, device=self.device)
        counts[self.process.rank] = len(rows)
        ends = self.total(counts).cumsum(0).tolist()
        whole = rows.new_zeros(ends[-1], *rows.shape[1:])  # summed with zeros, because all_gather needs equal sizes
        whole[ends[self.process.rank] - len(rows) : ends[self.process.rank]] = rows
        return self.total(whole)

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 only, and return its result on every rank.

        The other ranks get a pickled copy. If `work` raises an exception, rank 0 raises it, and the other ranks raise
        SilentExit with its exit code.
        """
        if self.alone:
            return work()
        message: list[Any] = [None, None]  # result, exit code
        error = None
        if self.first:
            try:
                message[0] = work()
            except Exception as failure:
                error, message[1] = failure, exit_code(failure)
        dist.broadcast_object_list(message, src=0, device=self.device)
        if error is not None:
            raise error
        if message[1] is not None:
            raise SilentExit(message[1])
        result: T = message[0]
        return result

    def preserve_generators(self) -> AbstractContextManager[Any]:
        """Context manager that restores the state of torch's random generators at its end.

        Evaluation in this context does not change the random numbers of training. Ranks evaluate different batches, and
        their generators stay equal.
        """
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    @contextmanager
    def local_first(self) -> Iterator[None]:
        """Run the `with` block on local rank 0 of each machine first, then on the other ranks.

        The block may be a download, which the other ranks then need not repeat.
        """
        if self.process.local_rank:
            dist.barrier()
        yield
        if not self.alone and not self.process.local_rank:
            dist.barrier()

    def put(self, model: torch.nn.Module) -> None:
        """Move `model` to the device in place, and store its 4-d weights in channels_last format."""
        model.to(self.device)
        # channels_last makes convolutions 1.3 to 1.5 times faster
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def wait(self) -> None:
        """Wait until the device has finished all queued work. Call this before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def precision_name(self) -> str:
        """Name of the precision, "bf16" or "fp32"."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def device_name(self) -> str:
        """Name of the device and number of processes, such as "cuda:0 (NVIDIA H200) × 2 processes"."""
        processes = "" if self.alone else f" × {self.process.world} processes"
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)}){processes}"
        name = cpu_fields().get("model name") or platform.processor() or platform.machine()
        return f"cpu ({name}, {torch.get_num_threads()} threads){processes}"


ALONE = Runtime(torch.device("cpu"), torch.float32)  # default: one process on the CPU


def from_options(options: Options, process: ProcessInfo = launcher_env.ALONE) -> Runtime:
    """Return the Runtime (device, precision, rank) that the options select for this process.

    --check selects the CPU. Raises UsageError if the device does not exist.
    """
    o = options.run
    device, gpus = ("cpu", None) if o.check else (o.device, o.multigpu)
    return choose(device, o.precision, gpus, deterministic=o.deterministic, process=process)


def choose(
    device: str,
    precision: str,
    gpus: tuple[int, ...] | None,
    *,
    deterministic: bool,
    process: ProcessInfo = launcher_env.ALONE,
) -> Runtime:
    """Configure torch for a device and a precision, and return the Runtime of this process.

    device, precision, gpus, deterministic: values of --device, --precision, --multigpu and --deterministic. Raises
    UsageError if the device does not exist.
    """
    chosen = _device(device, gpus, process)
    # Full float32 instead of TF32, also for the operations that autocast leaves in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # For the same losses with the same seed, cuDNN must not choose algorithms by timing or sum in varying order.
        torch.backends.cudnn.deterministic = True
    elif process.local_world > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // process.local_world))  # surplus threads wait for each other
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16(chosen))
    return Runtime(chosen, torch.float32, process).at("bf16" if bf16 else "fp32")


def _device(device: str, gpus: tuple[int, ...] | None, process: ProcessInfo) -> torch.device:
    """Return the torch device of this process.

    `device` and `gpus` are the values of --device and --multigpu. Raises UsageError if there are too few GPUs.
    """
    count = _gpu_count()
    if gpus:
        if len(gpus) < process.local_world:
            raise UsageError(
                f"multigpu: {len(gpus)} GPUs for {process.local_world} processes on this machine; each needs its own"
            )
        check_gpus(gpus)
        return torch.device("cuda", gpus[process.local_rank])
    if device == "cuda" and not count:
        raise UsageError("device: cuda is not available here; --device cpu or auto runs without a GPU")
    if not count or device == "cpu":
        return torch.device("cpu")
    if 1 < count < process.local_world:
        raise UsageError(f"device: {process.local_world} processes on this machine, but {count} GPUs; each needs one")
    return torch.device("cuda", 0 if count == 1 else process.local_rank)  # srun may show each process only one GPU


def _gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_gpus(gpus: tuple[int, ...]) -> None:
    """Raise UsageError if one of the GPU indices `gpus` does not exist on this machine."""
    count = _gpu_count()
    for gpu in gpus:
        if gpu >= count:
            raise UsageError(f"multigpu: {gpu}, but this machine has {count or 'no'} GPU; --device cpu runs on the CPU")


def has_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 matrices in hardware, which halves the time of float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not cpu_features().isdisjoint(["avx512_bf16", "amx_bf16", "bf16"])  # bf16: ARM's name
