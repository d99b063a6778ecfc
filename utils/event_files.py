"""TensorBoard's event files as long as they were when a checkpoint was saved.

An event file only grows. Cut to that length it holds what an unbroken run had written, whatever its tags and steps are:
TensorBoard itself drops only steps from a given one on, and no negative ones.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from utils.progress import warn
from utils.words import shown


def event_sizes(directory: Path) -> dict[str, int]:
    """The bytes of each event file."""
    return {path.name: path.stat().st_size for path in sorted(directory.glob("*tfevents*"))}


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raises ValueError where these are no sizes of files by name."""
    for name, size in sizes.items():
        if not isinstance(name, str) or type(size) is not int or size < 0:
            raise ValueError(f"{shown(name)} is {shown(size)}, a number of bytes expected")


def keep_events(directory: Path, sizes: Mapping[str, int] | None) -> None:
    """Cut each event file to the size it had when a checkpoint was saved, and remove those that came later: TensorBoard
    then shows what an unbroken run had shown; what a file has lost meanwhile is a warning. Does nothing where the sizes
    are unknown."""
    if sizes is None:
        return
    found = event_sizes(directory)
    for name in found.keys() - sizes.keys():
        (directory / name).unlink()
    for name, size in sizes.items():
        if found.get(name, 0) > size:
            os.truncate(directory / name, size)
        elif found.get(name, 0) < size:
            now = f"has {found[name]:,} of its {size:,} bytes" if name in found else "is gone"
            warn(f"{directory / name} {now}: its curves are not whole; metrics.csv has the measures of every epoch")
