"""How a program of ours ends: every failure is one line and an exit code that --help lists."""

import sys
from collections.abc import Callable

NOTHING_SAVED = 130  # left by Ctrl-C before there was anything to save
INTERRUPTED = "interrupted; no file is half-written"


class Quiet(Exception):
    """This process ends with `code`; what there is to say another one says."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def complain(line: str) -> None:
    print(line, file=sys.stderr)


def code(
    work: Callable[[], int | None],
    tell: Callable[[str], None] = complain,
    interrupted: str = "interrupted before training began; nothing was saved",
) -> int:
    """Do `work`; the exit code, its own where it gives one. `tell` is given the one line that there is to say of a
    failure, `interrupted` that of Ctrl-C."""
    try:
        from args import UsageError
        from utils.signals import RESUMABLE, Stopped
    except KeyboardInterrupt:
        return NOTHING_SAVED
    except ModuleNotFoundError as missing:
        return _missing(missing, tell)
    try:
        return work() or 0
    except Stopped as stopped:
        tell(str(stopped))
        return RESUMABLE
    except Quiet as quiet:
        return quiet.code
    except UsageError as error:
        tell(f"error: {error}{_notes(error)}")
        return 2
    except KeyboardInterrupt:
        tell(interrupted)
        return NOTHING_SAVED
    except ModuleNotFoundError as missing:
        return _missing(missing, tell)
    except (OSError, MemoryError, RuntimeError) as failure:
        if not _foreseen(failure):
            raise
        tell(f"failed: {str(failure).splitlines()[0] if str(failure) else 'out of memory'}{_notes(failure)}")
        return 1


def _notes(error: Exception) -> str:
    """What was added to it on its way here, such as which process had it."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def _missing(library: ModuleNotFoundError, tell: Callable[[str], None]) -> int:
    tell(f"failed: {library.name} is not installed; pip install -r requirements.txt")
    return 1


def _foreseen(failure: Exception) -> bool:
    """Whether one line is enough to say of it: it is no error of ours."""
    if not isinstance(failure, RuntimeError):
        return True
    import torch

    from utils.files import RunFailed

    return isinstance(failure, RunFailed | torch.OutOfMemoryError)
