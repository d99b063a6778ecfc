"""Write a trained shift network as packed integers, or check that such a file really runs on integers alone.

    python scripts/export.py shift RUN OUT [--force]
    python scripts/export.py check OUT --data DIR [--images 1000]

`shift`: RUN is a run's directory (its newest checkpoint is taken) or one of its checkpoints. OUT is one file for
torch.load(..., weights_only=True), a dict:

    format   "featherweight shift 1"
    options  name -> plain value: what the network was built and its inputs were prepared by
    weight_bits  b, sign and shift together; activation_bits  [i, f], bits before and behind the point
    layers   name -> a packed tensor, and `bias`: one more, integers in units of 2^-f (int64), or None
    rest     every other tensor of the network (batch norms, layers without shift weights), float

A packed tensor is a dict: `shape`; `codes`, uint8, b bits a weight in row-major order, the first bit of a byte its
highest, zeros at the end: one bit of sign (1: negative), then b - 1 bits of the shift n: the weight is ± 2^-n. `zeros`:
row-major places (int64) of the weights that are zero, whatever their code; where `zero_code` is true the shift
2^(b-1) - 1 says so instead, as ShiftPS never takes it. Weights and biases of shift_update crude have no range that the
options set: there `bits` stands for b, and the weight is ± 2^(largest - n).

Inputs and biases of every layer are fixed point in OUT, as integers need it. A run without activation_bits trains
Linear layers of ShiftPS on unrounded inputs, and Linear layers of both kinds with unrounded biases.

`check` rebuilds the network from OUT alone and runs the first images of the test set through it twice: with int64
additions and shifts only, and in float64, where sums are exact as well. Exit code 1 where one prediction differs. The
network in float32, to which the predictions are compared too, rounds the inputs that the run rounds.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import exit_codes

    exit_codes.leave_at_once()

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from args import NAMES, Options
from models.constraints import bake, constrained_layers
from models.constraints.shift import ShiftPSWeight, ShiftQWeight
from scripts.parts.export_check import check
from scripts.parts.export_packed import FORMAT, opened, packed_freely, packed_powers
from trainers.load_trained import load_trained
from trainers.methods.shift import shift_layers
from utils import exit_codes
from utils.config.script_parser import Parser, count, new_path, old_path
from utils.console import say
from utils.errors import UsageError
from utils.files import check_new, write_atomic, writing
from utils.run_paths import locate_run

STORED = ("set", "pixels", "image_size", *NAMES["model"], *NAMES["constraint"])  # options that make the network


def packed_layer(layer: Any) -> dict[str, Any]:
    """What of a layer with shift weights is written."""
    constraint, bias = layer.constraint, layer.bias
    weight, fixed = constraint(layer.weight).detach(), constraint.fixed_point
    if isinstance(constraint, ShiftQWeight) and constraint.crude:
        packed_bias = None if bias is None else packed_freely(constraint.effective_bias(bias).detach())
        return packed_freely(weight) | {"bias": packed_bias}
    entry = packed_powers(weight, constraint.weight_bits, zero_code=isinstance(constraint, ShiftPSWeight))
    if bias is not None:
        bias = fixed.of(bias.detach()).double().mul(2.0**fixed.fraction).to(torch.int64)
    return entry | {"bias": bias}


@torch.no_grad()
def exported(model: nn.Module, options: Options) -> dict[str, Any]:
    """The content of the file for a network with shift weights. Raises UsageError for values that are not
    finite, and for powers of two that are too far split_problems."""
    shifts, flat, state = shift_layers(model.eval()), options.flat(), bake(model).state_dict()
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UsageError(f"{broken[0]} holds values that are not finite: the network has diverged")
    fixed = next(iter(shifts.values())).constraint.fixed_point
    rest = {k: v for k, v in state.items() if not any(k.startswith(f"{name}.") for name in shifts)}
    return {
        "format": FORMAT,
        "options": {name: flat[name] for name in STORED if name in flat},
        "weight_bits": options.constraint.weight_bits,
        "activation_bits": [fixed.integer, fixed.fraction],
        "layers": {name: packed_layer(layer) for name, layer in shifts.items()},
        "rest": rest,
    }


def trained(run: str) -> tuple[nn.Module, Options]:
    """Return the network of a run directory's newest checkpoint, or of the checkpoint `run`, and its options.

    Raises UsageError if `run` is neither, or if its network has no shift weights.
    """
    locate_run(Path(run))
    network = load_trained(run)
    if not shift_layers(network.model):
        conv_type = network.options.constraint.conv_type
        raise UsageError(f"no layer has shift weights: conv_type {conv_type}; ShiftQ or ShiftPS has")
    say(f"{network.path}: {network.report}")
    return network.model, network.options


def export(run: str, target: Path, *, force: bool) -> str:
    """Write the network of `run` into `target`, whole or not at all, and return what to say of it.

    Raises UsageError for a run that is none, or has no shift weights, or a target that is there (but for `force`),
    RunFailed where the disk takes no more.
    """
    check_new(target, force=force)
    model, options = trained(run)
    content = exported(model, options)
    with writing(target):
        write_atomic(target, lambda file: torch.save(content, file))
    weights = sum(int(np.prod(layer["shape"])) for layer in content["layers"].values())
    dense = 4 * (weights + sum(len(m.bias) for m in constrained_layers(model).values() if m.bias is not None))
    dense += sum(tensor.numel() * tensor.element_size() for tensor in content["rest"].values())
    size, bits = (
        target.stat().st_size,
        [layer.get("bits", content["weight_bits"]) for layer in content["layers"].values()],
    )
    return (
        f"{target}: {weights:,} weights of {len(bits)} layers in {max(bits)} bits each"
        f"{' or fewer' * (min(bits) < max(bits))}; {size:,} bytes in all, "
        f"{dense:,} as float32: {dense / size:.1f} times smaller"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(__doc__)
    programs = top.add_subparsers(dest="program", required=True)
    shift = programs.add_parser("shift", help="write a run's network as packed integers")
    shift.add_argument("run", metavar="RUN", type=old_path)
    shift.add_argument("out", metavar="OUT", type=new_path)
    shift.add_argument("--force", action="store_true", help="replace OUT where it is there")
    checker = programs.add_parser("check", help="run such a file on integers alone")
    checker.add_argument("out", metavar="OUT", type=old_path)
    checker.add_argument("--data", type=new_path, default="./datasets", help="folder of the data sets")
    checker.add_argument("--images", type=count(1_000_000), default=1000, help="the first so many of the test set")
    return top


def work(given: argparse.Namespace) -> int:
    """Export or check; returns 1 where a prediction differs, else 0."""
    if given.program == "shift":
        say(export(str(given.run), given.out, force=given.force))
        return 0
    same, told = check(opened(given.out), given.out, str(given.data), given.images)
    say(told)
    return 0 if same else 1


def main(argv: Sequence[str]) -> int:
    """Returns 0, 2 for bad input, 1 where OUT cannot be written or a prediction differs."""
    return exit_codes.run_program(lambda: work(parser().parse_args(argv)), interrupted=exit_codes.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
