"""The exceptions that end a program with one line and an exit code. `utils.exit_codes` prints them."""

RESUMABLE = 75  # EX_TEMPFAIL: try again
IN_USE = 69  # EX_UNAVAILABLE


class UsageError(ValueError):
    """The user's input is wrong. The message has one line per problem. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot continue, for a reason that one line states. Exit code 1."""


class NothingCame(RunFailed):
    """The run was asked to stop while it waited for a batch, and no batch arrived."""


class RunInUse(RuntimeError):
    """Another process is training this run. The message names it. Exit code 69."""


class Stopped(Exception):
    """The run was asked to stop, has saved a checkpoint, and can be resumed. Exit code 75."""


class SilentExit(Exception):
    """End this process with `code` and print nothing: another process prints the message."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
