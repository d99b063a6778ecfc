"""TensorBoard's event files as long as they were when a checkpoint was saved.

An event file only grows. Cut to that length it holds what an unbroken run had written, whatever its tags and steps are:
TensorBoard itself drops only steps from a given one on, and no negative ones.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def event_sizes(directory: Path) -> dict[str, int]:
    """The bytes of each event file."""
    return {path.name: path.stat().st_size for path in sorted(directory.glob("*tfevents*"))}


def keep_events(directory: Path, sizes: Mapping[str, int] | None) -> None:
    """Cut each event file to the size it had when a checkpoint was saved, and remove those that came later: TensorBoard
    then shows what an unbroken run had shown. Does nothing where the sizes are unknown."""
    if sizes is None:
        return
    for path in directory.glob("*tfevents*"):
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])
