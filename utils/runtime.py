"""Device, precision and ranks of this process, chosen once in the two mains."""

import os
import platform
import random
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from args import UsageError


@dataclass(frozen=True)
class Runtime:
    """Where and how exactly this process computes; `rank` of `world` processes."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to `dtype` where that is not float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def at(self, precision: str) -> "Runtime":
        """The same place at "bf16" or "fp32"; fp32 on a GPU is IEEE float32, not TF32."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
        return replace(self, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    def place(self, model: torch.nn.Module) -> None:
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
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return f"cpu ({_processor()}, {torch.get_num_threads()} threads)"


def choose(device: str, precision: str, gpus: tuple[int, ...] | None, *, deterministic: bool) -> Runtime:
    """The Runtime that `--device`, `--precision` and `--multigpu` ask for.

    Raises UsageError for a device that is not there.
    """
    place = _device(device, gpus)
    if place.type == "cuda":
        torch.cuda.set_device(place)
        # The same seed gives the same losses: cuDNN may neither pick its algorithms by the clock nor add in any order.
        torch.backends.cudnn.deterministic = True
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    bf16 = precision == "bf16" or (precision == "auto" and _has_bf16(place))
    return Runtime(place, torch.float32).at("bf16" if bf16 else "fp32")


def _device(device: str, gpus: tuple[int, ...] | None) -> torch.device:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        if gpus[0] >= there:
            raise UsageError(
                f"multigpu: {gpus[0]}, but this machine has {there or 'no'} GPU; --device cpu runs on the CPU"
            )
        return torch.device("cuda", gpus[0])
    if device == "cuda" and not there:
        raise UsageError("device: cuda is not available here; --device cpu or auto runs without a GPU")
    return torch.device("cuda", 0) if there and device != "cpu" else torch.device("cpu")


def _has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are native: half the time of float32, not an emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _cpu_flag("avx512_bf16") or _cpu_flag("amx_bf16") or (platform.machine() == "aarch64" and _cpu_flag("bf16"))


def _cpu_flag(flag: str) -> bool:
    return any(flag in line.split() for line in _cpuinfo() if line.lower().startswith(("flags", "features")))


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


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
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`; GPU generators only where there are as many GPUs."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
