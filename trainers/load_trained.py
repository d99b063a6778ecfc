"""Load a trained network, to test it, prune it, export it or start training from it.

A file holds weights and scores. The options decide how effective weights are computed from them, so a file that
declares other options is refused. The scale α of a SubnetConv layer is divided by the number of kept weights here, and
by int(k·n) in BIPROP (density k, n weights). If k·n is not an integer, the effective weights are therefore those of
BIPROP times int(k·n) / kept.
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
from trainers.checkpoint_sources import LONGEST_KEY, StoredNetwork, network_in, options_in, read_network
from trainers.methods.base import Method
from trainers.resume import read_requested
from utils.console import warn
from utils.errors import UsageError
from utils.plugin_files import other_versions
from utils.records.run import Run
from utils.run_paths import locate
from utils.text import escaped, nearest, shown, split_problems

DECLARED = ("arch", "conv_type", "prune_rate")  # options whose absence in a network file causes a warning
CONVERTIBLE = (  # (conv_type of the file, other conv_type to which its weights can be converted)
    ("SubnetConv", "FixedSubnetConv"),  # the weights train under the mask that the scores give
    ("DenseConv", "ShiftQ"),
    ("DenseConv", "ShiftPS"),
)
MOST_LISTED = 4  # names of each kind that a message lists


@dataclass(frozen=True)
class TrainedNetwork:
    """Trained network on the CPU, with its training method and options.

    model: the constrained network, in evaluation mode, with the density of the epoch in which it was trained.
    method: the training method of `options`.
    options: the options that the network was built with.
    content: everything that the file holds.
    path: the file.
    epoch: the number of epochs trained, None if the file does not say.
    report: a sentence that counts the tensors that match the network, and lists the others.
    """

    model: nn.Module
    method: Method
    options: Options
    content: Mapping[str, Any]
    path: Path
    epoch: int | None
    report: str


def load_trained(path: str | Path, *, best: bool = False, **changes: object) -> TrainedNetwork:
    """Load the trained network at `path` onto the CPU, in evaluation mode.

    path: a run directory (its newest checkpoint is loaded), a checkpoint, or a checkpoint of BIPROP.
    best: load the best checkpoint of the run directory instead of the newest one.
    changes: options by name, such as data="DIR", that replace those of the run or of the file.

    No code in the file is executed. Raises UsageError if there is no such network, the file is damaged, or the options
    do not fit the network.
    """
    paths, file = locate(Path(path))
    if best and (paths is None or file is not None):
        raise UsageError(f"{path} is not a run directory; only a run directory has a best checkpoint")
    if paths is not None and paths.exists:
        requested = str(paths.best if best else path)
        options = Run(paths.path).options().replace(**changes, resume=requested, evaluate=True)
        options, content, file = read_requested(options)
        stored = network_in(content, str(file))
    else:
        stored = read_network(str(path))
        options = options_in(stored, changes)
    spec = None if "set" in changes else described_spec(stored.content, stored.path)
    return rebuild(stored, options, spec)


def rebuild(stored: StoredNetwork, options: Options, spec: data.SetSpec | None = None) -> TrainedNetwork:
    """Build the network that `options` describe, and load the tensors of a network file into it.

    All tensors of the network file `stored` are loaded. `spec` describes the data set, by default the one that
    `options` name. Raises UsageError if the file declares other options, or if a tensor is missing, unused or does not
    fit.
    """
    check_declared(stored, options)
    trained_with = stored.content.get("options")
    plugins = trained_with.get("plugins") if isinstance(trained_with, Mapping) else None
    for name in other_versions(text for text in plugins if isinstance(text, str)) if isinstance(plugins, list) else ():
        warn(f"{stored.path} was trained with another version of {name}")
    model, method = build(options.replace(seed=options.run.seed or 0), spec)
    report = load_weights(stored, model, whole=True)
    epoch, step = stored.content.get("epoch"), stored.content.get("step")
    if isinstance(epoch, int) and isinstance(step, int):  # else no run of this program wrote the file
        # With step > 0 the checkpoint was written within the next epoch.
        method.before_epoch(model, max(epoch - (step == 0), 0))
    trained_epochs = epoch if isinstance(epoch, int) else None
    return TrainedNetwork(model.eval(), method, options, stored.content, Path(stored.path), trained_epochs, report)


def check_classes(trained: TrainedNetwork, spec: data.SetSpec) -> None:
    """Raise UsageError if the data set on disk has another number of classes than the network.

    `spec` describes the data set on disk. `load_trained` builds the network for the data set that the checkpoint
    describes. The class folders on disk may have changed since the training.
    """
    described = described_spec(trained.content, str(trained.path))
    if described is not None and described.num_classes != spec.num_classes:
        name = trained.options.data.set
        raise UsageError(f"{trained.path} has {described.num_classes} classes, but {name} now has {spec.num_classes}")


def load_weights(stored: StoredNetwork, model: nn.Module, *, whole: bool) -> str:
    """Copy the tensors of a network file into `model` where names and shapes match.

    Return a sentence that counts these tensors and lists all others. Raises UsageError if nothing fits, or if a value
    is not a finite real number. The options that the file declares are not checked here, but in `check_declared`.

    whole: every tensor of the network and of the file must match.
    """
    match = match_biprop(model, _with_converted_weights(stored.state, model))
    report = _match_report(match)
    if all(key.endswith("num_batches_tracked") for key in match.loaded):
        raise UsageError(f"{stored.path} does not fit this network at all: {report}")
    if whole and not match.complete:
        raise UsageError(f"{stored.path} does not hold exactly this network: {report}")
    _check_numbers(stored.path, match.merged, model)
    try:
        model.load_state_dict(match.merged)
    except RuntimeError as error:
        raise UsageError(f"{stored.path} does not fit: {str(error).splitlines()[-1].strip()}") from error
    return report


def _check_numbers(path: str, merged: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise UsageError if a tensor to load is not finite or not floating-point.

    `merged` is the state dict that `model` will load.
    """
    for name, current in model.state_dict().items():
        loaded = merged.get(name, current)
        if loaded.is_quantized:  # load_state_dict raises an error for it
            continue
        if current.is_floating_point() and not loaded.is_floating_point():
            raise UsageError(f"{path} does not fit: {name} is {loaded.dtype}, floating-point numbers are needed")
        if not bool(torch.isfinite(loaded).all()):
            raise UsageError(f"{path} cannot be used: {name} is not finite")


def _with_converted_weights(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with the dense weights of ShiftPS layers converted.

    The constraint ShiftPS trains parameters of its own in place of a weight. `model` has the ShiftPS layers. `state`
    stays unchanged.
    """
    converted = dict(state)
    for name, layer in constrained_layers(model).items():
        if layer.weight is None and f"{name}.weight" in converted:
            values = layer.constraint.from_dense(converted.pop(f"{name}.weight"))
            converted |= {f"{name}.{key}": value for key, value in values.items()}
    return converted


def _match_report(match: BipropMatch) -> str:
    """Describe in a sentence how well the tensors of a file match a network.

    Example: "60 of 62 tensors match; not in the file: fc.bias; of another shape: fc.weight".
    """
    total = len(match.loaded) + len(match.missing) + len(match.reshaped)
    groups = {"not in the file": match.missing, "of another shape": match.reshaped, "only in the file": match.unused}
    report = [f"{len(match.loaded)} of {total} tensors match"]
    for group, names in groups.items():
        more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        if names:
            report.append(f"{group}: {', '.join(map(escaped, names[:MOST_LISTED]))}{more}")
    return "; ".join(report)


def check_declared(stored: StoredNetwork, options: Options) -> None:
    """Raise UsageError if a network file was written with other options than `options`.

    The options to compare are arch, conv_type, prune_rate and readout. Warn if the file does not record one of the
    first three.
    """
    m, c = options.model, options.constraint
    given = {"arch": m.arch, "conv_type": c.conv_type, "prune_rate": c.prune_rate, "readout": m.readout}
    differing = {name: value for name, value in stored.declared.items() if not _can_load(value, given[name])}
    if differing:
        faults = [f"{n}: {shown(value)} in {stored.path}, {shown(given[n])} here" for n, value in differing.items()]
        raise UsageError(f"{'; '.join(faults)}; {_advice(differing, options)}")
    undeclared = [name for name in DECLARED if name not in stored.declared and given[name] is not None]
    if undeclared:
        warn(f"{stored.path} does not record its {' and '.join(undeclared)}; it is loaded with the options given here")


def _advice(differing: Mapping[str, Any], options: Options) -> str:
    """Return advice for the error message about a network file with other options.

    `differing` maps the names of the options that differ from `options` to the values in the file. The advice is to
    pass the values of the file as flags, or that this program does not know a value.
    """
    problems = _problems(options.flat() | {"pretrained": "FILE", "resume": None} | dict(differing))
    if unknown := {name: value for name, value in differing.items() if name in problems}:
        return "; ".join(f"not supported: {n} {escaped(v)}{_nearest_value(n, v)}" for n, v in unknown.items())
    flags = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in differing.items()]
    return "; with that, also wrong: ".join([f"pass {' '.join(flags)} to use the file's network", *problems.values()])


def _problems(values: Mapping[str, object]) -> dict[str, str]:
    """Parse option values, and return the error messages by option name, if any."""
    try:
        from_flat(values)
    except UsageError as error:
        return {line.partition(":")[0]: line for line in split_problems(error)}
    return {}


def _nearest_value(name: str, value: object) -> str:
    """Return a suggestion for an unknown option value, or "" if there is none.

    The suggestion is " (did you mean 'X'?)", where X is the allowed value of option `name` that is most similar to
    `value`. There is none if no allowed value is similar, or if the option has no list of allowed values.
    """
    allowed = FIELDS[name].metadata["allowed"]
    return "" if isinstance(allowed, str) else nearest(str(value)[:LONGEST_KEY], allowed)


def _can_load(declared: Any, given: Any) -> bool:
    """Return True if a network stored with one option value can be loaded with another.

    `declared` is the stored value. The two values must be equal, or be two conv_types between which weights can be
    converted.
    """
    if isinstance(declared, str):
        return declared == given or (declared, given) in CONVERTIBLE
    return given is not None and -1 <= declared <= 1 and math.isclose(declared, given, rel_tol=1e-6)
