"""Being asked to stop: finish the step, save, and leave with 75; asked twice with Ctrl-C: leave at once."""

import os
import signal
from types import FrameType

from utils import exit_codes


class StopRequest:
    """Set by SIGTERM, SIGUSR2, the first Ctrl-C, or SIGHUP where nohup has not switched it off, from `listen` on."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def listen(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._asked)
        exit_codes.go_on()
        return self

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            os._exit(128 + signal.SIGINT)
        self.reason = signal.Signals(number).name


def asked() -> str | None:
    """The signal that has asked this process to stop, or None."""
    listening = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return listening.reason if isinstance(listening, StopRequest) else None
