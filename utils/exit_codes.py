"""How a program of ours ends: every failure is one line and an exit code that --help lists."""

import os
import re
import signal
from collections.abc import Callable
from types import FrameType

from utils import console
from utils.errors import IN_USE, RESUMABLE, RunFailed, RunInUse, SilentExit, Stopped, UsageError

NOTHING_SAVED = 130  # left by Ctrl-C before there was anything to save
INTERRUPTED = "interrupted; no file is half-written"
INTERRUPTS: list[int] = []  # that there have been


def leave_at_once() -> None:
    """Until `politely`, Ctrl-C ends the program where it is: in the middle of the import of a C++ library the exception
    that it usually is would abort the process, or be lost."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _interrupt):
        signal.signal(signal.SIGINT, _leave)


def politely() -> None:
    """Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, _interrupt)


def go_on() -> None:
    """Raises KeyboardInterrupt where one was swallowed: what is raised within a destructor is written and lost."""
    if INTERRUPTS:
        raise KeyboardInterrupt


def _interrupt(number: int, _frame: FrameType | None) -> None:
    INTERRUPTS.append(number)
    raise KeyboardInterrupt


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted before it began; nothing was saved\n")
    os._exit(NOTHING_SAVED)


def complain(line: str) -> None:
    console.write("stderr", line)


def code(
    work: Callable[[], int | None],
    tell: Callable[[str], None] = complain,
    interrupted: str = "interrupted before training began; nothing was saved",
) -> int:
    """Do `work`; the exit code, its own where it gives one. `tell` is given the one line that there is to say of a
    failure, `interrupted` that of Ctrl-C."""
    console.settle()
    INTERRUPTS.clear()
    try:
        return work() or 0
    except Stopped as stopped:
        tell(str(stopped))
        return RESUMABLE
    except SilentExit as quiet:
        return quiet.code
    except RunInUse as busy:
        tell(f"{busy}{_notes(busy)}")
        return IN_USE
    except UsageError as error:
        tell(f"error: {_lines(str(error))}{_notes(error)}")
        return 2
    except KeyboardInterrupt:
        tell(interrupted)
        return NOTHING_SAVED
    except ModuleNotFoundError as missing:
        return _missing(missing, tell)
    except (OSError, MemoryError, RuntimeError, ImportError) as failure:
        if not foreseen(failure):
            raise
        tell(f"failed: {one_line(failure)}{_notes(failure)}")
        return 1
    finally:
        console.flush()


def _lines(message: str) -> str:
    """`message` on one line, unless it lists several problems: what it quotes may hold the end of a line."""
    return message if re.match(r"[\d,]+ problems:\n", message) else message.replace("\n", "\\n")


def _notes(error: Exception) -> str:
    """What was added to it on its way here, such as which process had it."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def _missing(library: ModuleNotFoundError, tell: Callable[[str], None]) -> int:
    tell(f"failed: {library.name} is not installed; pip install -r requirements.txt")
    return 1


def foreseen(failure: Exception) -> bool:
    """Return whether one line is enough for `failure`: it is no error of this program."""
    from utils import out_of_memory

    return isinstance(failure, OSError | RunFailed) or out_of_memory.ran_out(failure)


def one_line(failure: Exception) -> str:
    """The line to print for `failure`."""
    from utils import out_of_memory

    if out_of_memory.ran_out(failure):
        return out_of_memory.in_words(failure)
    return str(failure).strip().partition("\n")[0] or type(failure).__name__
