"""Featherweight: train a network whose weights obey a constraint, on one device. `python main.py --help`."""

import sys
from collections.abc import Sequence

from utils import exit_codes


def main(argv: Sequence[str]) -> int:
    """Parse, choose the runtime, run. Returns the exit code that --help lists."""
    return exit_codes.code(lambda: work(argv))


def work(argv: Sequence[str]) -> None:
    """What `main` does, failures as exceptions."""
    exit_codes.leave_at_once()
    import args

    options = args.parse(argv)
    from utils import process_setup

    process_setup.tune()  # before numpy and torch are loaded
    from trainers import experiment
    from utils.distributed import runtime, spawn

    exit_codes.politely()
    gpus = options.run.multigpu or ()
    if len(gpus) > 1 and not options.run.check:
        runtime.check_gpus(gpus)
        spawn.start(argv, len(gpus))
        return
    experiment.warn_all(options)
    experiment.run(options, runtime.of(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
