"""Reader of the reserved set in_memory, which no file holds: its images are passed to featherweight.train."""

from pathlib import Path
from typing import NoReturn

from utils.errors import UsageError


def read_in_memory(_root: Path, _download: bool) -> NoReturn:
    """Raise UsageError, because the images of the run were passed to featherweight.train in Python."""
    raise UsageError("set: in_memory has no files; pass its images in Python: featherweight.train(data=(train, test))")
