"""Out of memory, of a GPU or of the machine: recognised, and told in one line with what needs less."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from utils.files import RunFailed

# What torch, cuDNN, cuBLAS and C++ write into a RuntimeError
SIGNS = re.compile(r"can't allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED")
BATCHES = "a smaller batch_size, or image_size where the set takes one, needs less"
EVALUATIONS = "a smaller test_batch_size, or image_size where the set takes one, needs less"


def ran_out(error: BaseException) -> bool:
    """Return whether `error` says that memory could not be had."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(SIGNS.search(str(error))))


def in_words(error: BaseException) -> str:
    """The line to print for an error that `ran_out`."""
    text = str(error).strip().partition("\n")[0]
    if tried := re.search(r"you tried to allocate (\d+) bytes", text):
        return f"out of memory: {int(tried[1]) / 2**20:,.1f} MiB more were not free"
    return text if "out of memory" in text else f"out of memory: {text}" if text else "out of memory"


@contextmanager
def needed(where: str, advice: str) -> Iterator[None]:
    """Turn running out of memory in here into a RunFailed that says where, and what needs less."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RunFailed) or not ran_out(error):
            raise
        raise RunFailed(f"{in_words(error)} ({where}); {advice}") from error
