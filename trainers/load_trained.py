"""Load a trained network, to test it, prune it, export it or start training from it.

A file holds weights and scores. The options decide how they make effective weights, so a file that declares other
options is refused. BIPROP divides α by int(k·n), this program by the number of weights kept: if k·n is not an integer,
the effective weights of a SubnetConv layer are those of BIPROP times int(k·n) / kept.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
from args import FIELDS, Options, from_flat
from models.biprop_keys import BipropMatch, match_biprop
from models.constraints.attachment import constrained_layers
from trainers.build import build
from trainers.checkpoint_entries import described_spec
from trainers.checkpoint_sources import LONGEST_KEY, StoredNetwork, network_in, read_network
from trainers.methods.base import Method
from trainers.resume import read_requested
from utils.console import warn
from utils.errors import UsageError
from utils.records.run import Run
from utils.run_paths import locate
from utils.text import escaped, nearest, split_problems

DECLARED = ("arch", "conv_type", "prune_rate")  # that a file without them is warned of
CONVERTIBLE = (  # (conv_type of the file, conv_type here): training may start from the other kind of network
    ("SubnetConv", "FixedSubnetConv"),  # the weights train under the ticket's mask
    ("DenseConv", "ShiftQ"),
    ("DenseConv", "ShiftPS"),
)
MOST_LISTED = 4  # names of each kind in a message


@dataclass(frozen=True)
class TrainedNetwork:
    """Trained network on the CPU, with its method and options.

    model: the constrained network, in evaluation mode, in the state that its epoch was trained in.
    method: the training method of `options`.
    options: the options that the network was built with.
    content: everything that the file holds.
    path: the file.
    epoch: the number of epochs trained, None if the file does not have it.
    report: how many tensors of the file match the network, as a sentence.
    """

    model: nn.Module
    method: Method
    options: Options
    content: Mapping[str, Any]
    path: Path
    epoch: int | None
    report: str


def load_trained(path: str | Path, *, best: bool = False, **changes: object) -> TrainedNetwork:
    """Return the trained network at `path`, on the CPU, in evaluation mode. Nothing in the file is executed.

    path: a run directory (its newest checkpoint is loaded), a checkpoint, or a file of BIPROP.
    best: load the best checkpoint of the run directory instead of the newest one.
    changes: options by name, such as data="DIR", that replace those of the run or of the file.

    Raises UsageError if there is no such network, the file is damaged, or the options do not fit the network.
    """
    paths, file = locate(Path(path))
    if best and (paths is None or file is not None):
        raise UsageError(f"{path} is not a run directory, which alone has a best checkpoint")
    if paths is not None and paths.exists:
        requested = str(paths.best if best else path)
        options = Run(paths.path).options().replace(**changes, resume=requested, evaluate=True)
        options, content, file = read_requested(options)
        stored = network_in(content, str(file))
    else:
        stored = read_network(str(path))
        declared = stored.content.get("options") if stored.is_native else stored.declared
        options = from_flat({**(declared if isinstance(declared, Mapping) else {}), **changes})
    spec = None if "set" in changes else described_spec(stored.content, stored.path)
    return rebuild(stored, options, spec)


def rebuild(stored: StoredNetwork, options: Options, spec: data.SetSpec | None = None) -> TrainedNetwork:
    """Build the network of `options` for the data set `spec`, by default that of `options`, and load all of `stored`.

    Raises UsageError if the file declares other options, or if a tensor is missing, left over or does not fit.
    """
    check_declared(stored, options)
    model, method = build(options.replace(seed=options.run.seed or 0), spec)
    report = load_weights(stored, model, whole=True)
    epoch, step = stored.content.get("epoch"), stored.content.get("step")
    if isinstance(epoch, int) and isinstance(step, int):  # else no run of this program wrote the file
        epochs_before = epoch - 1 if step == 0 else epoch  # with step > 0 the checkpoint is from within the next epoch
        method.before_epoch(model, max(epochs_before, 0))
    trained_epochs = epoch if isinstance(epoch, int) else None
    return TrainedNetwork(model.eval(), method, options, stored.content, Path(stored.path), trained_epochs, report)


def check_classes(trained: TrainedNetwork, spec: data.SetSpec) -> None:
    """Raise UsageError if the data set `spec`, read from disk, has another number of classes than the network.

    `load_trained` builds the network for the data set that the checkpoint describes. The image folders of that set may
    have changed since.
    """
    described = described_spec(trained.content, str(trained.path))
    if described is not None and described.num_classes != spec.num_classes:
        name = trained.options.data.set
        raise UsageError(f"{trained.path} has {described.num_classes} classes, but {name} now has {spec.num_classes}")


def load_weights(stored: StoredNetwork, model: nn.Module, *, whole: bool) -> str:
    """Copy the tensors of `stored` that fit into `model`, and return a sentence about those that do and do not.

    whole: every tensor must fit, and none be left over.

    Raises UsageError if nothing fits, or if a value is not a finite real number. `check_declared` checks whether the
    file is of the requested network at all.
    """
    match = match_biprop(model, _with_converted_weights(stored.state, model))
    report = _sentence(match)
    if all(key.endswith("num_batches_tracked") for key in match.loaded):
        raise UsageError(f"{stored.path} does not fit this network at all: {report}")
    if whole and not match.complete:
        raise UsageError(f"{stored.path} does not hold all of this network: {report}")
    _check_numbers(stored.path, match.merged, model)
    try:
        model.load_state_dict(match.merged)
    except RuntimeError as error:
        raise UsageError(f"{stored.path} does not fit: {str(error).splitlines()[-1].strip()}") from error
    return report


def _check_numbers(path: str, merged: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise UsageError if a number is not finite, or if integers or complex numbers stand for real numbers."""
    for name, here in model.state_dict().items():
        there = merged.get(name, here)
        if there.is_quantized:  # torch refuses to copy it
            continue
        if here.is_floating_point() and not there.is_floating_point():
            raise UsageError(f"{path} does not fit: {name} is {there.dtype}, floating-point numbers are needed")
        if not bool(torch.isfinite(there).all()):
            raise UsageError(f"{path} cannot be used: {name} is not finite")


def _with_converted_weights(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return `state` with dense weights converted for constraints that own the weight of their layer."""
    converted = dict(state)
    for name, layer in constrained_layers(model).items():
        if layer.weight is None and f"{name}.weight" in converted:
            values = layer.constraint.from_dense(converted.pop(f"{name}.weight"))
            converted |= {f"{name}.{key}": value for key, value in values.items()}
    return converted


def _sentence(match: BipropMatch) -> str:
    total = len(match.loaded) + len(match.missing) + len(match.reshaped)
    groups = {"not in the file": match.missing, "of another shape": match.reshaped, "unused": match.unused}
    parts = [f"{len(match.loaded)} of {total} tensors match"]
    for group, names in groups.items():
        more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        if names:
            parts.append(f"{group}: {', '.join(map(escaped, names[:MOST_LISTED]))}{more}")
    return "; ".join(parts)


def check_declared(stored: StoredNetwork, options: Options) -> None:
    """Raise UsageError if the file declares another network than `options`, and warn of what it does not declare."""
    m, c = options.model, options.constraint
    here = {"arch": m.arch, "conv_type": c.conv_type, "prune_rate": c.prune_rate, "readout": m.readout}
    differing = {name: value for name, value in stored.declared.items() if not _agree(value, here[name])}
    if differing:
        faults = [f"{name}: {escaped(value)} in {stored.path}, {here[name]} here" for name, value in differing.items()]
        raise UsageError(f"{'; '.join(faults)}; {_advice(differing, options)}")
    undeclared = [name for name in DECLARED if name not in stored.declared and here[name] is not None]
    if undeclared:
        warn(f"{stored.path} does not have its {' and '.join(undeclared)}: the options given here decide")


def _advice(differing: Mapping[str, Any], options: Options) -> str:
    """Return the flags with which the network of the file is used, or why this program has no such network."""
    problems = _problems(options.flat() | {"pretrained": "FILE", "resume": None} | dict(differing))
    if unknown := [name for name in differing if name in problems]:
        lines = [
            f"this program has no {name} {escaped(differing[name])}{_similar(name, differing)}" for name in unknown
        ]
        return "; ".join(lines)
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in differing.items()}
    command = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in flags.items())
    verb = "decide" if len(flags) > 1 else "decides"
    advice = f"{' and '.join(flags)} {verb}: pass {command} to use the file's network"
    return "; then ".join([advice, *problems.values()])


def _problems(values: Mapping[str, object]) -> dict[str, str]:
    """Return the error lines for `values` as options, by option."""
    try:
        from_flat(values)
    except UsageError as error:
        return {line.partition(":")[0]: line for line in split_problems(error)}
    return {}


def _similar(name: str, differing: Mapping[str, Any]) -> str:
    allowed = FIELDS[name].metadata["allowed"]
    return "" if isinstance(allowed, str) else nearest(str(differing[name])[:LONGEST_KEY], allowed)


def _agree(theirs: Any, ours: Any) -> bool:
    """Return True if the file's value of an option is ours, or one that training may start from."""
    if isinstance(theirs, str):
        return theirs == ours or (theirs, ours) in CONVERTIBLE
    return ours is not None and -1 <= theirs <= 1 and math.isclose(theirs, ours, rel_tol=1e-6)
