"""Set-up of a command that runs as a file, `python scripts/NAME.py`.

The command imports this module first and by its bare name, because the project is not on the path yet.
"""

import sys
from pathlib import Path


def prepare(*, loads_torch: bool) -> None:
    """Put the project's folder on the import path and let Ctrl-C end the process while libraries load.

    loads_torch: Also tune the allocator and numpy. This has no effect once numpy and torch are loaded.
    """
    # Replaces the folder scripts/, whose files would hide installed modules of the same names.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from utils import stop_signal

    stop_signal.exit_on_interrupt()
    if loads_torch:
        from utils import process_setup

        process_setup.tune()
