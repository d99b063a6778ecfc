"""Begin from, or test, the network in a checkpoint of this program or of BIPROP, or in a bare state dict.

A file holds weights and scores; what they mean the options decide: a file that says it was made with others is refused.
BIPROP divides α by int(k·n), this program by the number of weights kept: where k·n is not whole, the effective weights
of a SubnetConv layer are here those of BIPROP times int(k·n) / kept.
"""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from args import FIELDS, Options, from_flat
from models.biprop_keys import BipropMatch, match_biprop, to_biprop
from models.constraints.attachment import constrained_layers
from models.registry import ARCHS
from trainers import resume
from utils.config.yaml_loader import load_yaml
from utils.console import say, warn
from utils.errors import UsageError
from utils.records import checkpoints
from utils.text import escaped, nearest, split_problems

WITHOUT_RATE = ("DenseConv", "SampleSubnetConv")  # BIPROP stores a default or a measured share with these
SAID = ("arch", "conv_type", "prune_rate")
TAKEN_OVER = (  # (there, here): a network of the second kind may begin from one of the first
    ("SubnetConv", "FixedSubnetConv"),  # the weights train under the ticket's mask
    ("DenseConv", "ShiftQ"),
    ("DenseConv", "ShiftPS"),
)
HOLDERS = (  # keys of a network among what else a file holds; of several the first is taken
    *("model", "state_dict", "model_state_dict", "net", "network", "weights"),
    *("params", "model_state", "network_state_dict", "net_state_dict", "state"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"),
)
DEEPEST = 3  # holders within each other
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # no architecture here has a layer of such a name
NAME = 80  # characters of a name that similar ones are sought for
NAMED = 4  # names that a message lists of each kind


@dataclass(frozen=True)
class Stored:
    """The network in the file `path`: its `state` under BIPROP's keys and shapes, without `module.`.

    `said` is what the file says of arch, conv_type and prune_rate, `content` all that it holds; `ours` tells this
    program's layout (`model`, `options`) from BIPROP's (`state_dict`, or the tensors by name and nothing else).
    """

    path: str
    content: Mapping[str, Any]
    state: dict[str, Tensor]
    said: dict[str, Any]
    ours: bool


def read(path: str) -> Stored:
    """The network in a file, whoever wrote it, or in the newest checkpoint of a run's directory; nothing in it is
    executed. Raises UsageError where there is none."""
    place = Path(path)
    if not place.is_dir():
        return from_content(checkpoints.read(place), path)
    content, newest, complaints = checkpoints.newest(place / "checkpoints")
    if newest is None or content is None:
        raise UsageError("; ".join([f"{path} is no run: it has no readable checkpoint", *complaints]))
    for complaint in complaints:
        warn(f"{complaint}; {newest} is used instead")
    if (place / "config.yaml").exists():
        resume.compare(content, newest, from_flat(load_yaml(place / "config.yaml")))
    return from_content(content, str(newest))


def from_content(content: Any, path: str) -> Stored:
    """The network in what the file `path` holds. Raises UsageError where there is none."""
    content = content if isinstance(content, Mapping) else {}
    key, state = _state_in(content, path)
    ours = key == "model"
    told = content.get("options") if ours else content
    told = told if isinstance(told, Mapping) else {}
    said = {name: told[name] for name in ("arch", "conv_type", "readout") if isinstance(told.get(name), str)}
    if not ours and said.get("arch") in ARCHS and "readout" in ARCHS[said["arch"]].options:
        said["readout"] = "original40"  # BIPROP knows no other
    rate = told.get("prune_rate")
    if isinstance(rate, int | float) and said.get("conv_type") not in WITHOUT_RATE:
        said["prune_rate"] = rate
    return Stored(path, content, to_biprop(_unwrapped(state, path)), said, ours)


def _state_in(content: Mapping[Any, Any], path: str) -> tuple[str, Mapping[str, Tensor]]:
    """(key, state dict) of the first of HOLDERS that has one, within others perhaps; ("", content) where it is bare."""
    found = [*_states(content, DEEPEST)]
    if not found:
        has = ", ".join(escaped(key, NAME) for key in [*content][:NAMED])
        needed = "tensors by name are needed, bare, in `state_dict` or in `model`"
        raise UsageError(f"{path} holds no network: {needed}" + f"; it has {has}" * bool(has))
    if len(found) > 1:
        names = [key for key, _ in found]
        warn(f"{path} holds {len(found)} networks: {names[0]} is taken, not {', '.join(names[1:])}")
    return found[0]


def _states(content: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    if content and all(map(_is_entry, content.items())):
        yield "", content
    for holder in HOLDERS if depth else ():
        if isinstance(held := content.get(holder), Mapping):
            yield from ((f"{holder}.{key}".rstrip("."), state) for key, state in _states(held, depth - 1))


def _unwrapped(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """`state` without what torch.compile, DataParallel, Lightning and others put in front of each name.

    Raises UsageError where two names are then the same: the file holds several networks.
    """
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.replace("._orig_mod.", ".")
        while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
            name = name.removeprefix(wrapper)
        if name in plain:
            raise UsageError(f"{path} holds several networks: {escaped(name)} is in it twice, under other wrappers")
        plain[name] = value
    return plain


def _is_entry(entry: tuple[Any, Any]) -> bool:
    key, value = entry
    is_tensor = isinstance(value, Tensor) and value.is_cpu and value.layout == torch.strided
    return isinstance(key, str) and is_tensor


def load(stored: Stored, model: nn.Module, *, whole: bool) -> None:
    """Copy into `model` what fits of `stored`, and say what does not; `whole`: all must fit, and nothing be left over.

    Raises UsageError where nothing fits, or a value is no finite real number. Whether the file is of the network asked
    for, `compare` tells.
    """
    match = match_biprop(model, _with_dense_taken_over(stored.state, model))
    found = _in_words(match)
    if all(key.endswith("num_batches_tracked") for key in match.loaded):
        raise UsageError(f"{stored.path} does not fit this network at all: {found}")
    if whole and not match.complete:
        raise UsageError(f"{stored.path} is not all of this network, which cannot be tested so: {found}")
    _check_numbers(stored.path, match.merged, model)
    try:
        model.load_state_dict(match.merged)
    except RuntimeError as error:
        raise UsageError(f"{stored.path} does not fit: {str(error).splitlines()[-1].strip()}") from error
    say(f"{stored.path}: {found}")


def _check_numbers(path: str, merged: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises UsageError where a number is not finite, or integers or complex numbers stand for real ones."""
    for name, here in model.state_dict().items():
        there = merged.get(name, here)
        if there.is_quantized:  # torch refuses to copy it
            continue
        if here.is_floating_point() and not there.is_floating_point():
            raise UsageError(f"{path} does not fit: {name} is {there.dtype}, floating-point numbers are needed")
        if not bool(torch.isfinite(there).all()):
            raise UsageError(f"{path} cannot be used: {name} is not finite")


def _with_dense_taken_over(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state` with what constraints that own their layer's weight make of a dense one."""
    made = dict(state)
    for name, layer in constrained_layers(model).items():
        if layer.weight is None and f"{name}.weight" in made:
            values = layer.constraint.from_dense(made.pop(f"{name}.weight"))
            made |= {f"{name}.{of}": value for of, value in values.items()}
    return made


def _in_words(match: BipropMatch) -> str:
    wanted = len(match.loaded) + len(match.missing) + len(match.reshaped)
    rest = {"not in the file": match.missing, "of another shape": match.reshaped, "unused": match.unused}
    parts = [f"{len(match.loaded)} of {wanted} tensors taken"]
    for what, names in rest.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        parts += [f"{what}: {', '.join(map(escaped, names[:NAMED]))}{more}"] * bool(names)
    return "; ".join(parts)


def compare(stored: Stored, options: Options) -> None:
    """Raises UsageError for what the file says otherwise than the options; warns of what it does not say."""
    m, c = options.model, options.constraint
    here = {"arch": m.arch, "conv_type": c.conv_type, "prune_rate": c.prune_rate, "readout": m.readout}
    differ = {name: value for name, value in stored.said.items() if not _agree(value, here[name])}
    if differ:
        faults = [f"{name}: {escaped(value)} in {stored.path}, {here[name]} here" for name, value in differ.items()]
        raise UsageError(f"{'; '.join(faults)}; {_advice(differ, options)}")
    unsaid = [name for name in SAID if name not in stored.said and here[name] is not None]
    if unsaid:
        warn(f"{stored.path} does not say its {' and '.join(unsaid)}: the options given here decide")


def _advice(differ: Mapping[str, Any], options: Options) -> str:
    """What to give for the network that a file says it has, where this program has that network."""
    problems = _problems(options.flat() | {"pretrained": "FILE", "resume": None} | dict(differ))
    if unknown := [name for name in differ if name in problems]:
        return "; ".join(
            f"this program has no {name} {escaped(differ[name])}{_similar(name, differ)}" for name in unknown
        )
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in differ.items()}
    give = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in flags.items())
    advice = (
        f"{' and '.join(flags)} {'decide' if len(flags) > 1 else 'decides'}: give {give} to take the file's network"
    )
    return "; then ".join([advice, *problems.values()])


def _problems(values: Mapping[str, object]) -> dict[str, str]:
    """Option -> what is wrong with it, where `values` are the options."""
    try:
        from_flat(values)
    except UsageError as error:
        return {line.partition(":")[0]: line for line in split_problems(error)}
    return {}


def _similar(name: str, differ: Mapping[str, Any]) -> str:
    allowed = FIELDS[name].metadata["allowed"]
    return "" if isinstance(allowed, str) else nearest(str(differ[name])[:NAME], allowed)


def _agree(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, str):
        return theirs == ours or (theirs, ours) in TAKEN_OVER
    return ours is not None and -1 <= theirs <= 1 and math.isclose(theirs, ours, rel_tol=1e-6)
