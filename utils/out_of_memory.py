"""Detect out-of-memory errors of a GPU or of the host, and explain them in one line."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import RunFailed

# RuntimeErrors and ImportErrors of torch, cuDNN and cuBLAS, oneDNN, C++ and the dynamic loader
PATTERNS = re.compile(
    "can(no|')t allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED"
    "|could not (create|execute) a (primitive|memory object)$|can't start new thread|failed to map segment",
    re.IGNORECASE,
)
BATCH_ADVICE = "use a smaller batch_size, or a smaller image_size if the data set has one"
EVALUATION_ADVICE = "use a smaller test_batch_size, or a smaller image_size if the data set has one"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error shows that memory could not be allocated.

    The type and the text of `error` decide.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        return bool(PATTERNS.search(str(error)))
    return isinstance(error, MemoryError)


def message(error: BaseException) -> str:
    """Return one line of text that explains an out-of-memory error.

    The line has the requested size (MiB) if it is known.
    """
    text = str(error).strip().partition("\n")[0]
    if requested := re.search(r"you tried to allocate (\d+) bytes", text):
        return f"out of memory: {int(requested[1]) / 2**20:,.1f} MiB more were not free"
    if "thread" in text:
        return f"out of memory, or of the threads that a user may start: {text}"
    if not text or "out of memory" in text:
        return text or "out of memory"
    return f"out of memory: {text}"


@contextmanager
def explained(where: str, advice: str) -> Iterator[None]:
    """Context manager that turns an out-of-memory error into RunFailed.

    The message has one line. It ends with `where`, the task that needed the memory, and `advice`, such as a smaller
    batch size.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if isinstance(error, RunFailed) or not is_out_of_memory(error):
            raise
        raise RunFailed(f"{message(error)}, in {where}; {advice}") from error
