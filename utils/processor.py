"""The CPU of this machine: name, features, and the cores that this process may use. Importable without torch."""

import os
from pathlib import Path


def cpu_fields() -> dict[str, str]:
    """Return the fields of the first core in Linux's /proc/cpuinfo, or {} on another system."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_features() -> set[str]:
    """Return the names of the CPU's features, such as "avx512_bf16"."""
    fields = cpu_fields()
    return {*fields.get("flags", fields.get("Features", "")).split()}  # the key is "Features" on ARM


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
