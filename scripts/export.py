"""Write a trained shift network as packed integers, or check that such a file computes on integers alone.

    python scripts/export.py shift RUN OUT [--force]
    python scripts/export.py check OUT --data DIR [--images 1000]

`shift` writes the network of RUN, the directory of a run (its newest checkpoint) or a checkpoint. OUT is a file for
torch.load(..., weights_only=True). It holds a dict:

    format           "featherweight shift 1"
    options          name -> plain value: the options of the network and of the preparation of its inputs
    weight_bits      b, the number of bits per weight, sign included
    activation_bits  [i, f], the numbers of bits before and after the binary point
    layers           name -> packed tensor of the weight, with one more entry `bias`: a packed tensor, or integers in
                     units of 2^-f (int64), or None
    rest             every other tensor of the network (batch norms, layers without shift weights), float

A packed tensor is a dict:

    shape      the shape of the tensor
    codes      uint8: b bits per weight in row-major order, highest bit of a byte first, padded with zeros. A code is
               one sign bit (1: negative) and b - 1 bits of the shift n. The weight is ± 2^-n.
    zeros      int64: row-major indices of the weights that are zero, whatever their code
    zero_code  if true, `zeros` is empty, and the shift 2^(b-1) - 1, which ShiftPS never uses, means zero
    bits, largest
               only with shift_update crude, which does not limit the weights' powers of two: `bits` replaces b, and
               the weight is ± 2^(largest - n)

The inputs and biases of every layer in OUT are fixed-point numbers. Training differs from that if activation_bits is
not set: Linear layers of ShiftPS then have unrounded inputs, and all Linear layers have unrounded biases.

`check` rebuilds the network from OUT alone and computes the logits of the first test images twice: with int64 additions
and shifts only, and in float64, where the sums are exact too. The exit code is 1 if a prediction differs. It also
compares the predictions with those of the float32 network, which rounds inputs exactly where the run does.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=True)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from args import Options
from models.constraints.attachment import bake, constrained_layers
from models.constraints.shift import ShiftPSWeight, ShiftQWeight
from scripts.parts.export_check import check
from scripts.parts.export_packed import FORMAT, pack_any_powers, pack_powers, read
from trainers.load_trained import load_trained
from trainers.methods.shift import shift_layers
from utils.config.options import GROUP_OF
from utils.config.script_parser import Parser, command, count, new_path, old_path
from utils.console import say
from utils.errors import UsageError
from utils.files import check_new, write_atomic, writing

# Options that define the network.
STORED = (
    "set",
    "pixels",
    "image_size",
    *(name for name, group in GROUP_OF.items() if group in ("model", "constraint")),
)


def packed_layer(layer: Any) -> dict[str, Any]:
    """Return the packed weight and bias of a layer with shift weights: its entry in `layers` of the exported file."""
    constraint, bias = layer.constraint, layer.bias
    weight, fixed = constraint(layer.weight).detach(), constraint.fixed_point
    if isinstance(constraint, ShiftQWeight) and constraint.crude:
        packed_bias = None if bias is None else pack_any_powers(constraint.effective_bias(bias).detach())
        return pack_any_powers(weight) | {"bias": packed_bias}
    entry = pack_powers(weight, constraint.weight_bits, zero_code=isinstance(constraint, ShiftPSWeight))
    if bias is not None:
        bias = fixed.quantise(bias.detach()).double().mul(2.0**fixed.fraction).to(torch.int64)
    return entry | {"bias": bias}


@torch.no_grad()
def exported(model: nn.Module, options: Options) -> dict[str, Any]:
    """Return the content of the exported file for `model`, a network with shift weights.

    Raises UsageError if a value is not finite, or if powers of two need more than 8 bits.
    """
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
    """Load the network of `run`, a run directory (newest checkpoint) or the path of a checkpoint, and its options.

    Raises UsageError if `run` is neither, or if its network has no shift weights.
    """
    network = load_trained(run)
    if not shift_layers(network.model):
        conv_type = network.options.constraint.conv_type
        raise UsageError(f"no layer has shift weights: conv_type {conv_type}; ShiftQ or ShiftPS has")
    say(f"{network.path}: {network.report}")
    return network.model, network.options


def export(run: str, target: Path, *, force: bool) -> str:
    """Export the shift network of `run` to the file `target`, atomically. Return a summary line to print.

    Raises UsageError if there is no such run, if it has no shift weights, or if the target exists and `force` is False;
    RunFailed if the target cannot be written.
    """
    check_new(target, force=force)
    model, options = trained(run)
    content = exported(model, options)
    with writing(target):
        write_atomic(target, lambda file: torch.save(content, file))
    weights = sum(int(np.prod(layer["shape"])) for layer in content["layers"].values())
    dense = 4 * (weights + sum(len(m.bias) for m in constrained_layers(model).values() if m.bias is not None))
    dense += sum(tensor.numel() * tensor.element_size() for tensor in content["rest"].values())
    size = target.stat().st_size
    bits = [layer.get("bits", content["weight_bits"]) for layer in content["layers"].values()]
    or_fewer = " or fewer" if min(bits) < max(bits) else ""
    return (
        f"{target}: {weights:,} weights of {len(bits)} layers in {max(bits)} bits each{or_fewer}; {size:,} bytes in "
        f"all, {dense:,} as float32: {dense / size:.1f} times smaller"
    )


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(__doc__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shift = commands.add_parser("shift", help="write a run's network as packed integers")
    shift.add_run()
    shift.add_argument("out", metavar="OUT", type=new_path, help="file to write")
    shift.add_force()
    checker = commands.add_parser("check", help="run such a file on integers alone and compare its predictions")
    checker.add_argument("out", metavar="OUT", type=old_path, help="exported file")
    checker.add_argument("--data", type=new_path, default="./datasets", help="folder of the data sets")
    checker.add_argument("--images", type=count(1_000_000), default=1000, help="number of test images; default: 1000")
    return top


@command
def main(argv: Sequence[str]) -> int:
    """Export a network or check an exported file.

    Return 0, 2 for bad input, 1 if OUT cannot be written or a prediction differs.
    """
    options = parser().parse_args(argv)
    if options.command == "shift":
        say(export(str(options.run), options.out, force=options.force))
        return 0
    same, report = check(read(options.out), options.out, str(options.data), options.images)
    say(report)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
