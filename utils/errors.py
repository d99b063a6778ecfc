"""The exceptions that end a program with one line and an exit code, which `utils.exit_codes` prints and returns."""


class UsageError(ValueError):
    """The user's input is wrong. The message has one line per problem."""

    exit_code = 2


class RunFailed(RuntimeError):
    """The run cannot continue, for a reason that one line states."""

    exit_code = 1


class StoppedWaiting(RunFailed):
    """The run was asked to stop while it waited for a batch, and no batch arrived."""


class RunInUse(RuntimeError):
    """Another process trains this run. The message names that process."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class Stopped(Exception):
    """The run was asked to stop, has saved a checkpoint, and can be resumed."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class SilentExit(Exception):
    """End this process with `exit_code` and print nothing: another process prints the message."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that `error` ends: 1 unless the exception states its own."""
    return int(getattr(error, "exit_code", 1))
