"""Turn a checkpoint of BIPROP into one of this program, or the other way round; what FILE holds says which way.

    python scripts/convert.py biprop FILE OUT [--force]

Into ours: weights, scores and buffers to the bit, with arch, conv_type, prune_rate, epoch and accuracies where the file
has them. OUT serves --pretrained, with and without --evaluate; there is no optimizer in it to --resume from.

Into BIPROP's: the same under its keys and shapes, with the `module.` that its networks carry wherever they can load
(that needs --multigpu), in the format from before torch 1.6, because it was written for torch 1.3. No optimizer either.

Equal tensors make equal networks but for α: BIPROP divides by int(k·n), this program by the number of weights kept.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import exit_codes

    exit_codes.leave_at_once()

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.biprop_keys import from_biprop
from trainers.checkpoint_sources import StoredNetwork, read_network
from trainers.load_trained import DECLARED
from utils import exit_codes
from utils.config.script_parser import Parser, new_path, old_path
from utils.console import say
from utils.files import check_new, write_atomic, writing
from utils.text import escaped

MEASURES = {  # BIPROP's key -> (group, name) in our `state`
    "best_acc1": ("best", "acc@1"),
    "best_acc5": ("best", "acc@5"),
    "best_train_acc1": ("best_train", "acc@1"),
    "best_train_acc5": ("best_train", "acc@5"),
    "curr_acc1": ("last", "acc@1"),
    "curr_acc5": ("last", "acc@5"),
}


def to_ours(stored: StoredNetwork) -> dict[str, Any]:
    """A checkpoint of this program from one of BIPROP's; without `step`, so that --resume refuses it."""
    state: dict[str, dict[str, float]] = {}
    for key, (group, name) in MEASURES.items():
        value = stored.content.get(key)
        if isinstance(value, int | float):  # before the first epoch curr_acc1 is a sentence
            state.setdefault(group, {})[name] = float(value)
    facts = {"epoch": stored.content["epoch"]} if isinstance(stored.content.get("epoch"), int) else {}
    return {**facts, "state": state, "model": from_biprop(stored.state), "options": stored.declared}


def to_theirs(stored: StoredNetwork) -> dict[str, Any]:
    """A checkpoint of BIPROP's from one of ours; without the keys on augmentation, as parallel_main.py writes it."""
    state, epoch = stored.content.get("state"), stored.content.get("epoch")
    groups = {group: of for group, of in state.items() if isinstance(of, Mapping)} if isinstance(state, Mapping) else {}
    return {
        "epoch": epoch if isinstance(epoch, int) else 0,
        "state_dict": {f"module.{key}": value for key, value in stored.state.items()},
        **{key: groups.get(group, {}).get(name, 0.0) for key, (group, name) in MEASURES.items()},
        "optimizer": {},
        **{name: value for name, value in stored.declared.items() if name in DECLARED},
    }


def convert(source: str, target: Path, *, force: bool) -> str:
    """Convert the file `source` into `target`, whole or not at all, and return what to say of it.

    Raises UsageError for a source that holds no network or a target that is there (but for `force`), RunFailed where
    the disk takes no more.
    """
    check_new(target, force=force)
    stored = read_network(source)
    content = to_theirs(stored) if stored.is_native else to_ours(stored)
    zipped = not stored.is_native  # BIPROP's torch 1.3 reads only the older format
    with writing(target):
        write_atomic(target, lambda file: torch.save(content, file, _use_new_zipfile_serialization=zipped))
    declared = ", ".join(f"{name} {escaped(value)}" for name, value in stored.declared.items())
    use = "in BIPROP, with --multigpu" if stored.is_native else "here; it cannot be resumed: it has no optimizer state"
    return f"{target}: {len(stored.state)} tensors, {declared or 'arch and conv_type unknown'}; for --pretrained {use}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(__doc__)
    top.add_argument("program", choices=["biprop"], help="whose checkpoints FILE or OUT is")
    top.add_argument("file", metavar="FILE", type=old_path)
    top.add_argument("out", metavar="OUT", type=new_path)
    top.add_argument("--force", action="store_true", help="replace OUT where it is there")
    return top


def main(argv: Sequence[str]) -> int:
    """Convert; returns 0, 2 for bad input, 1 where OUT cannot be written."""

    def work() -> None:
        given = parser().parse_args(argv)
        say(convert(str(given.file), given.out, force=given.force))

    return exit_codes.run_program(work, interrupted=exit_codes.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
