"""Featherweight: train a network whose weights obey a constraint, on one device. `python main.py --help`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Parse, choose the runtime, run. Returns the exit code that --help lists."""
    import args

    try:
        options = args.parse(argv)
        from utils import process

        process.tune()  # before numpy and torch are loaded
        from trainers import experiment
        from utils import runtime
        from utils.checkpoints import RunFailed
        from utils.signals import RESUMABLE, Stopped

        try:
            experiment.warn_all(options)
            o = options.run
            here = runtime.choose(o.device, o.precision, o.multigpu, deterministic=o.deterministic)
            experiment.run(options, here)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return RESUMABLE
        except (RunFailed, OSError, MemoryError) as failure:
            print(f"failed: {failure}", file=sys.stderr)
            return 1
    except args.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before training began; nothing was saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
