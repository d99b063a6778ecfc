"""The metadata of a run besides its options: command, commit, versions and machine."""

import functools
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Return the command, commit, versions and machine of this run, for environment.json.

    All values are plain types.
    """
    import numpy
    import torch

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "host": platform.node(),
    }


@functools.cache
def commit() -> str:
    """Return the git commit of this program, or "" outside a repository.

    It is the commit at the time of the first call.
    """
    return _git("rev-parse", "HEAD")


def _git(*command: str) -> str:
    """Run a git command in this program's repository and return its output.

    If the command fails, return "".
    """
    try:
        here = Path(__file__).resolve().parent
        done = subprocess.run(["git", *command], cwd=here, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
