"""Process settings that only have an effect before numpy and torch are imported."""

import ctypes
import os
import platform

from utils.processor import cpu_fields

# Parameters of mallopt (malloc.h). They make malloc keep large blocks instead of returning them to the system after
# every step. Getting them back takes 10-20 % of a float32 training step and half of an evaluation on a CPU.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def tune(*, distributed: bool = False) -> None:
    """Tune the memory allocator and numpy for this process.

    malloc keeps freed memory. numpy avoids AVX-512 on Zen 4 CPUs, where it is slow. A setting that does not apply to
    this machine is skipped. With `distributed`, torch's C++ code logs no failed attempts to reach the other ranks. The
    rendezvous reports the outcome in one line.
    """
    if distributed:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # Older versions of glibc refuse more than 32 MiB. Without the threshold, the other two settings cost time.
        if any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (2**31 - 1, 32 << 20)):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_TOP_PAD, 256 << 20)
    if _is_zen4():
        # Zen 4 runs AVX-512's compressing store in microcode: numpy's AVX-512 partition is 5 times slower than its AVX2
        # one there (6.1 against 1.1 ms for a million float32).
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR AVX512_SKX")


def _is_zen4() -> bool:
    fields = cpu_fields()
    vendor, family, model = (fields.get(name, "") for name in ("vendor_id", "cpu family", "model"))
    is_family = (vendor, family) == ("AuthenticAMD", "25") and model.isdigit()
    return is_family and (0x10 <= int(model) < 0x20 or 0x60 <= int(model) < 0xB0)
