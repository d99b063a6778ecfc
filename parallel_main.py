"""Featherweight on many processes, on one machine or several: the run of main.py, with the same options.

torchrun --nproc-per-node 4 parallel_main.py --config FILE     (or: srun python parallel_main.py --config FILE)
"""

import os
import sys
from collections.abc import Sequence

from utils import exit_codes


def main(argv: Sequence[str]) -> int:
    """Find the other processes and do with them what main.py does alone. Returns the exit code that --help lists."""
    return exit_codes.code(lambda: work(argv))


def work(argv: Sequence[str]) -> None:
    """What `main` does, failures as exceptions: what all processes of a machine have to say, its first one says."""
    exit_codes.leave_at_once()
    import args
    from utils import process_setup
    from utils.distributed import launcher_env

    place = launcher_env.find(os.environ)
    with launcher_env.said_once(place):
        options = args.parse(argv)
        process_setup.tune(several=place.world > 1)  # before numpy and torch are loaded
        from trainers import experiment
        from utils.distributed import rendezvous, runtime

        exit_codes.politely()
        here = runtime.of(options, place)
    with rendezvous.joined(here, options.run.init_timeout) as again:
        if again and options.run.resume is None:  # the launcher has lost a process and started all of them anew
            options = options.replace(resume="auto")
        experiment.warn_all(options)
        experiment.run(options, here)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
