"""Train a network whose weights obey a constraint, on one device. `python main.py --help` lists the options."""

import sys
from collections.abc import Sequence

from utils import exit_codes, stop_signal
from utils.plugin_files import DEBUG


def main(argv: Sequence[str]) -> int:
    """Train a network and return the exit code of the program.

    `argv` has the options. --help explains the exit codes.
    """
    return exit_codes.run_program(lambda: run(argv), debug=DEBUG in argv)


def run(argv: Sequence[str]) -> None:
    """Parse the command line, choose the device and train.

    Raises an exception of `utils.errors` on failure.
    """
    stop_signal.exit_on_interrupt()
    import args

    options = args.parse(argv)
    from utils import process_setup

    process_setup.tune()  # before numpy and torch are loaded
    from trainers import experiment
    from utils.distributed import runtime, spawn

    stop_signal.raise_on_interrupt()
    gpus = options.run.multigpu or ()
    if len(gpus) > 1 and not options.run.check:
        runtime.check_gpus(gpus)
        spawn.run_processes(argv, len(gpus))
        return
    experiment.warn_all(options)
    experiment.run(options, runtime.from_options(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
