"""Train as main.py does, with the same options, on several processes of one or more machines.

torchrun --nproc-per-node 4 parallel_main.py --config FILE     (or: srun python parallel_main.py --config FILE)
"""

import os
import sys
from collections.abc import Sequence

from utils import exit_codes, stop_signal
from utils.plugin_files import DEBUG


def main(argv: Sequence[str]) -> int:
    """Run one rank of distributed training and return its exit code.

    `argv` is the command line. `python main.py --help` explains the exit codes.
    """
    return exit_codes.run_program(lambda: run(argv), debug=DEBUG in argv)


def run(argv: Sequence[str]) -> None:
    """Parse the command line, connect to the other ranks and train.

    Raises an exception of `utils.errors` on failure.
    """
    stop_signal.exit_on_interrupt()
    import args
    from utils import process_setup
    from utils.distributed import launcher_env

    process = launcher_env.detect_process(os.environ)
    with launcher_env.report_once(process):
        process_setup.tune(distributed=process.world > 1)  # before numpy and torch are loaded, as plug-ins do
        options = args.parse(argv)
        from trainers import experiment
        from utils.distributed import rendezvous, runtime

        stop_signal.raise_on_interrupt()
        here = runtime.from_options(options, process)
    with rendezvous.process_group(here, options.run.init_timeout) as restarted:
        if restarted and options.run.resume is None:  # the launcher restarted all ranks after it lost one
            options = options.replace(resume="auto")
        experiment.warn_all(options)
        experiment.run(options, here)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
