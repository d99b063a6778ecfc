"""What a person sees while a run goes on: a tqdm bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from utils import streams

QUIET_SECONDS = 30.0  # a log file gets a sign of life this often


class Progress:
    """One epoch's progress over `total` batches: `advance` with each, `show` whenever there are numbers to show."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self._title = title
        self._total = total
        self._bar = (
            tqdm(total=total, initial=start, desc=title, leave=False, unit="batch") if sys.stderr.isatty() else None
        )
        self._spoke = time.monotonic()

    def advance(self) -> None:
        """One more batch has been given to the device."""
        if self._bar is not None:
            self._bar.update()

    def show(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show that `done` batches are done, with the mean loss and top-1 accuracy (%) over them."""
        text = f"loss {loss:.4f}, acc@1 {accuracy:.2f}%, {images_per_second:,.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._spoke >= QUIET_SECONDS:
            self._spoke = time.monotonic()
            say(f"{self._title}  {done}/{self._total} batches  {text}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    """One line to the person, at once, also into a file. A reader who has gone away does not stop a run."""
    streams.write("stdout", line)


def warn(line: str) -> None:
    """One line about something the person should know, on standard error."""
    streams.write("stderr", "warning: " + line.replace("\n", "\\n"))
