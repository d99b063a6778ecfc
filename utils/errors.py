"""Exceptions that end a program with a message of one line and an exit code, see `utils.exit_codes`."""

import shlex


class UsageError(ValueError):
    """Raised when the user's input is wrong, such as an option or a file.

    The message has one line per problem.
    """

    exit_code = 2


class RunFailed(RuntimeError):
    """Raised when the run cannot continue.

    The message states the reason in one line.
    """

    exit_code = 1


class StoppedWaiting(RunFailed):
    """Raised when a stop signal ends the wait for a batch that never arrived."""


class RunInUse(RuntimeError):
    """Raised when another process is already training in the same run directory.

    The message names that process.
    """

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class Stopped(Exception):
    """Raised after a signal stopped the run and a checkpoint was saved.

    The message is `reason` and, with `program`, the command that resumes the run. `run` is the run directory.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later

    def __init__(self, reason: str, program: str = "", run: str = "") -> None:
        super().__init__(reason, program, run)
        self.reason, self.program, self.run = reason, program, run

    def __str__(self) -> str:
        command = f"; resume with: {self.program} --resume {shlex.quote(self.run)}" if self.program else ""
        return f"{self.reason}{command}"


class SilentExit(Exception):
    """Raised to end this process without a message.

    The exit code is `exit_code`. Another process prints the message.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """Return the exit code for a program that ends with an error.

    The exit code is the attribute `exit_code` of `error`, or 1 without one.
    """
    return int(getattr(error, "exit_code", 1))
