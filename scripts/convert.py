"""Convert a checkpoint of BIPROP to one of this program, or the other way round. The content of FILE decides which.

    python scripts/convert.py biprop FILE OUT [--force]

To this program: OUT holds weights, scores and buffers unchanged to the bit, and arch, conv_type, prune_rate, epoch and
accuracies if FILE has them. Pass OUT to --pretrained, with or without --evaluate. OUT has no optimizer state, so
--resume refuses it.

To BIPROP: OUT holds the same under BIPROP's keys and shapes. The keys begin with `module.`, because BIPROP loads
checkpoints only with --multigpu, which adds that prefix. The file format is that of torch before 1.6, because BIPROP
was written for torch 1.3. OUT has no optimizer state.

Equal tensors make equal networks except for α, the mean magnitude of the kept weights of a layer of n weights: BIPROP
divides their sum by int(prune_rate · n), this program by the number of weights kept.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=True)

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from models.biprop_keys import from_biprop
from trainers.checkpoint_sources import StoredNetwork, read_network
from trainers.load_trained import DECLARED
from utils.config.script_parser import Parser, command, new_path, old_path
from utils.console import say
from utils.errors import UsageError
from utils.files import check_new, write_atomic, writing
from utils.text import escaped
from utils.torch_compat import OLD_FILE_FORMAT

MEASURES = {  # BIPROP's key -> (group, name) in the `state` of this program's checkpoints
    "best_acc1": ("best", "acc@1"),
    "best_acc5": ("best", "acc@5"),
    "best_train_acc1": ("best_train", "acc@1"),
    "best_train_acc5": ("best_train", "acc@5"),
    "curr_acc1": ("last", "acc@1"),
    "curr_acc5": ("last", "acc@5"),
}


def native_checkpoint(stored: StoredNetwork) -> dict[str, Any]:
    """Convert a BIPROP checkpoint to one of this program. It has no `step`, so that --resume refuses it."""
    state: dict[str, dict[str, float]] = {}
    for key, (group, name) in MEASURES.items():
        value = stored.content.get(key)
        if isinstance(value, int | float):  # before the first epoch BIPROP stores the text "Not evaluated"
            state.setdefault(group, {})[name] = float(value)
    epoch = {"epoch": stored.content["epoch"]} if isinstance(stored.content.get("epoch"), int) else {}
    return {**epoch, "state": state, "model": from_biprop(stored.state), "options": stored.declared}


def biprop_checkpoint(stored: StoredNetwork) -> dict[str, Any]:
    """Convert a checkpoint of this program to one with the keys that BIPROP's parallel_main.py writes."""
    state, epoch = stored.content.get("state"), stored.content.get("epoch")
    groups = (
        {key: value for key, value in state.items() if isinstance(value, Mapping)} if isinstance(state, Mapping) else {}
    )
    return {
        "epoch": epoch if isinstance(epoch, int) else 0,
        "state_dict": {f"module.{key}": value for key, value in stored.state.items()},
        **{key: groups.get(group, {}).get(name, 0.0) for key, (group, name) in MEASURES.items()},
        "optimizer": {},
        **{name: value for name, value in stored.declared.items() if name in DECLARED},
    }


def convert(source: str, target: Path, *, force: bool) -> str:
    """Convert the checkpoint `source` to the other program's format in `target`, atomically. Return a summary line.

    Raises UsageError if the source holds no network, if a value in it is not finite, or if the target exists and
    `force` is False; RunFailed if the target cannot be written.
    """
    check_new(target, force=force)
    stored = read_network(source)
    for key, tensor in stored.state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"{source} cannot be used: {escaped(key)} is not finite")
    content = biprop_checkpoint(stored) if stored.is_native else native_checkpoint(stored)
    file_format = OLD_FILE_FORMAT if stored.is_native else {}  # BIPROP's torch 1.3 reads only the old format
    with writing(target):
        write_atomic(target, lambda file: torch.save(content, file, **file_format))
    declared = ", ".join(f"{name} {escaped(value)}" for name, value in stored.declared.items())
    use = "in BIPROP, with --multigpu" if stored.is_native else "here; it cannot be resumed: it has no optimizer state"
    return f"{target}: {len(stored.state)} tensors, {declared or 'arch and conv_type unknown'}; for --pretrained {use}"


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(__doc__)
    top.add_argument("command", metavar="COMMAND", choices=["biprop"], help="biprop: from or to BIPROP")
    top.add_argument("file", metavar="FILE", type=old_path, help="checkpoint to convert")
    top.add_argument("out", metavar="OUT", type=new_path, help="file to write")
    top.add_force()
    return top


@command
def main(argv: Sequence[str]) -> None:
    """Convert a checkpoint between BIPROP and this program. Return 0, 2 for bad input, 1 if OUT cannot be written."""
    options = parser().parse_args(argv)
    say(convert(str(options.file), options.out, force=options.force))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
