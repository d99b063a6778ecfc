"""Out of memory, of a GPU or of the machine: recognised, and told in one line with what needs less."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import RunFailed

# What torch, cuDNN and cuBLAS, oneDNN, C++, and the loader of libraries write into a RuntimeError or ImportError
SIGNS = re.compile(
    "can(no|')t allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED"
    "|could not (create|execute) a (primitive|memory object)$|can't start new thread|failed to map segment",
    re.IGNORECASE,
)
BATCHES = "a smaller batch_size, or image_size where the set takes one, needs less"
EVALUATIONS = "a smaller test_batch_size, or image_size where the set takes one, needs less"


def ran_out(error: BaseException) -> bool:
    """Return whether `error` says that memory could not be had."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        return bool(SIGNS.search(str(error)))
    return isinstance(error, MemoryError)


def in_words(error: BaseException) -> str:
    """The line to print for an error that `ran_out`."""
    text = str(error).strip().partition("\n")[0]
    if tried := re.search(r"you tried to allocate (\d+) bytes", text):
        return f"out of memory: {int(tried[1]) / 2**20:,.1f} MiB more were not free"
    if "thread" in text:
        return f"out of memory, or of the threads that a user may have: {text}"
    return text if "out of memory" in text else f"out of memory: {text}" if text else "out of memory"


@contextmanager
def needed(where: str, advice: str) -> Iterator[None]:
    """Turn running out of memory in here into a RunFailed that says where, and what needs less."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if isinstance(error, RunFailed) or not ran_out(error):
            raise
        raise RunFailed(f"{in_words(error)}, in {where}; {advice}") from error
