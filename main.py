"""Featherweight: train a network whose weights obey a constraint, on one device. `python main.py --help`."""

import sys
from collections.abc import Sequence

NOTHING_SAVED = 130  # left by Ctrl-C before there was anything to save


def main(argv: Sequence[str]) -> int:
    """Parse, choose the runtime, run. Returns the exit code that --help lists."""
    try:
        import args
    except KeyboardInterrupt:
        return NOTHING_SAVED
    try:
        options = args.parse(argv)
        from utils import process

        process.tune()  # before numpy and torch are loaded
        import torch

        from trainers import experiment
        from utils import runtime
        from utils.checkpoints import RunFailed
        from utils.signals import RESUMABLE, Stopped

        try:
            experiment.warn_all(options)
            o = options.run
            device, gpus = ("cpu", None) if o.check else (o.device, o.multigpu)
            here = runtime.choose(device, o.precision, gpus, deterministic=o.deterministic)
            experiment.run(options, here)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return RESUMABLE
        except (RunFailed, OSError, MemoryError, torch.OutOfMemoryError) as failure:
            print(f"failed: {str(failure).splitlines()[0] if str(failure) else 'out of memory'}", file=sys.stderr)
            return 1
    except args.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before training began; nothing was saved", file=sys.stderr)
        return NOTHING_SAVED
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ModuleNotFoundError as missing:
        sys.exit(f"failed: {missing.name} is not installed; pip install -r requirements.txt")
