"""Run a program, and turn each failure into a message of one line and an exit code."""

import re
from collections.abc import Callable

from utils import console, out_of_memory, plugin_files, stop_signal
from utils.errors import RunFailed, RunInUse, SilentExit, Stopped, UsageError, exit_code

INTERRUPTED = "interrupted; no file is half-written"


def run_program(
    work: Callable[[], int | None],
    interrupted: str = "interrupted before training began; nothing was saved",
    *,
    debug: bool = False,
) -> int:
    """Run the whole program and return its exit code.

    The program is `work()`. An exception in it becomes one line of text on standard error. After Ctrl-C, the line is
    `interrupted`.

    An exception that is not expected, see `is_expected`, points to a fault of this program and is raised again, unless
    a plug-in raised it. With `debug`, the traceback of every exception is printed. `work` returns its exit code, or
    None for 0.
    """
    console.prepare_streams()
    stop_signal.raise_on_interrupt()
    try:
        return work() or 0
    except SilentExit as error:
        return error.exit_code
    except KeyboardInterrupt:
        console.write_error(interrupted)
        return stop_signal.INTERRUPT_EXIT_CODE
    except Exception as error:
        if not isinstance(error, UsageError | RunInUse | Stopped) and not is_expected(error):
            raise
        if debug:
            import traceback  # only here: it takes a twentieth of the time that --help takes

            console.write_error("".join(traceback.format_exception(error)).rstrip())
        console.write_error(_message(error))
        return exit_code(error)
    finally:
        console.flush()


def _message(error: Exception) -> str:
    """Return the text to print for an error.

    The text has the error's message and its notes, such as the rank that raised it.
    """
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    if isinstance(error, RunInUse | Stopped):
        return f"{error}{notes}"
    if isinstance(error, UsageError):
        text = str(error)
        if not re.match(r"[\d,]+ problems:\n", text):  # a line break within one problem belongs to a quoted value
            text = text.replace("\n", "\\n")
        return f"error: {text}{notes}"
    return f"failed: {one_line(error)}{notes}"


def is_expected(error: Exception) -> bool:
    """Return True if an error has a cause outside this program.

    Such an error, for example of a full disk, needs no traceback.
    """
    external = OSError | RunFailed | ModuleNotFoundError
    return isinstance(error, external) or out_of_memory.is_out_of_memory(error) or bool(plugin_files.place(error))


def one_line(error: Exception) -> str:
    """Return one line of text that explains an error with a cause outside this program."""
    if out_of_memory.is_out_of_memory(error):
        return out_of_memory.message(error)
    if plugin_files.place(error) and not isinstance(error, RunFailed):
        return plugin_files.one_line(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; pip install -r requirements.txt"
    return str(error).strip().partition("\n")[0] or type(error).__name__
