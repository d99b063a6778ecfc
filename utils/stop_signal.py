"""Signal handlers: Ctrl-C before training, and the signals that ask a run to save and stop during training."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)  # they ask a run to save and stop
INTERRUPT_EXIT_CODE = 130  # exit code of a program that Ctrl-C ends: 128 + SIGINT, as shells report it


def exit_on_interrupt() -> None:
    """Make Ctrl-C end the process immediately, until `raise_on_interrupt` is called.

    A KeyboardInterrupt raised while a C++ library is imported would abort the process or be lost.
    """
    _handle_interrupt(_exit)


def raise_on_interrupt() -> None:
    """Make Ctrl-C raise KeyboardInterrupt.

    Ctrl-C is also remembered, in case the exception is lost. `StopRequest.listen` raises the exception again in that
    case.
    """
    _handle_interrupt(_InterruptHandler())


def _handle_interrupt(handler: Callable[[int, FrameType | None], None]) -> None:
    """Install a handler for Ctrl-C, unless another library has installed its own.

    Nothing is installed if the signal is ignored.
    """
    current = signal.getsignal(signal.SIGINT)
    if current in (signal.default_int_handler, _exit) or isinstance(current, _InterruptHandler):
        signal.signal(signal.SIGINT, handler)


class _InterruptHandler:
    """Signal handler for Ctrl-C that raises KeyboardInterrupt and sets `interrupted`.

    The attribute is needed because Python drops an exception that is raised within a destructor.
    """

    interrupted = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupted = True
        raise KeyboardInterrupt


def _exit(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted before it began; nothing was saved\n")
    os._exit(INTERRUPT_EXIT_CODE)


class StopRequest:
    """Handler of the signals that ask a run to save and stop.

    The signals are SIGTERM, SIGUSR2, SIGINT and SIGHUP. The object is true once a signal has arrived. `reason` is the
    name of the latest signal, or None. Ctrl-C after another signal ends the program immediately. If another program,
    such as a notebook, handled Ctrl-C before, its handler is called instead.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._earlier: Any = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def listen(self) -> "StopRequest":
        """Start to handle the signals that ask a run to stop.

        Returns this object. Under nohup SIGHUP stays ignored. Outside the main thread no signal is handled, because
        Python allows handlers in the main thread only. Raises KeyboardInterrupt if Ctrl-C was pressed before and its
        exception was lost.
        """
        if threading.current_thread() is not threading.main_thread():
            return self
        self._earlier = earlier = signal.getsignal(signal.SIGINT)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)
        if isinstance(earlier, _InterruptHandler) and earlier.interrupted:
            raise KeyboardInterrupt
        return self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            if callable(self._earlier) and not isinstance(self._earlier, _InterruptHandler | StopRequest):
                self._earlier(number, frame)
            else:
                os._exit(INTERRUPT_EXIT_CODE)
        self.reason = signal.Signals(number).name


def stop_reason() -> str | None:
    """Return the name of the signal that asked this process to stop, or None."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler.reason if isinstance(handler, StopRequest) else None


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Context manager that restores the handlers of the signals at its end.

    Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: not set from Python, and signal.signal cannot set it
                signal.signal(number, handler)
