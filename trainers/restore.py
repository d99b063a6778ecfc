"""Put a checkpoint back: every entry is checked first, so that a damaged one is one line and changes nothing."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.loop import TrainingSetup
from trainers.metrics import Metrics
from trainers.training_state import TrainingState
from utils.console import warn
from utils.errors import RunFailed, UsageError
from utils.random_state import set_rng_state
from utils.records import checkpoints
from utils.records.run import Run
from utils.records.tensorboard import check_sizes
from utils.text import shown

Snapshot = Mapping[str, Any]
WRONG = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError)
MEASURED = {*Metrics(0, 0, 0).as_dict()}


def put_back(path: Path | str, snapshot: Snapshot, **loaders: Callable[[Any], object]) -> None:
    """Give each loader the entry of its name. Raises UsageError with the entry that is missing or does not fit."""
    for name, load in loaders.items():
        try:
            if not isinstance(snapshot[name], Mapping):
                raise TypeError(f"it is {shown(snapshot[name])}")
            load(snapshot[name])
        except WRONG as error:
            said = str(error).strip().splitlines() or [repr(error)]
            reason = said[-1].strip() if name in snapshot else "it is missing"
            raise UsageError(f"{path} is damaged or of another run: {name}: {reason}") from error


def restore(parts: TrainingSetup, snapshot: Snapshot, path: Path, best_epoch: int | None) -> TrainingState:
    """Put a snapshot back into `parts` and every generator; returns how far its run had come, of whose best.pt
    `best_epoch` is the epoch. Raises UsageError where the snapshot does not fit."""
    state = progress(path, snapshot)
    if snapshot.get("events") is not None:  # an older checkpoint has none
        put_back(path, snapshot, events=check_sizes)
    begun = state.train_images > 0
    if begun:  # what this freezes needs no state of the optimizer
        parts.method.before_epoch(parts.model, max(state.epoch - (state.step == 0), 0))
    put_back(
        path,
        snapshot,
        model=lambda saved: load_model(parts.model, saved),
        optimizer=lambda saved: load_optimizer(parts.optimizer, saved, begun=begun),
        method=parts.method.load_state_dict,
        rng=load_generators,
    )
    if state.step and state.step >= len(parts.train):
        raise UsageError(f"{path} is damaged: it has {state.step} batches of an epoch of {len(parts.train)}")
    if state.best and best_epoch != state.best["epoch"] and not is_best(snapshot):
        state.best = {}  # best.pt is from epochs that are now trained again: best is picked anew from here on
    return state


def load_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Load weights, scores and buffers. Raises ValueError or RuntimeError where they do not fit."""
    for name, values in model.state_dict().items():
        if name in saved and saved[name].dtype != values.dtype:
            raise ValueError(f"{name} is {saved[name].dtype}, {values.dtype} expected")
    model.load_state_dict(saved)
    for name, values in model.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} is not finite")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], *, begun: bool) -> None:
    """Load, and check what torch does not: the settings, and names and shapes of each parameter's state, which every
    parameter that trains has once training has begun.

    Raises ValueError where one is not what the options make it; the learning rate is set anew for every epoch.
    """
    fresh = optimizer.state_dict()["param_groups"]
    groups = [{**mine, **theirs} for mine, theirs in zip(fresh, saved["param_groups"], strict=True)]
    if not all("params" in group for group in saved["param_groups"]):
        raise ValueError("params are missing")
    for mine, theirs in zip(fresh, groups, strict=True):
        for name in mine.keys() - {"lr"}:
            if theirs[name] != mine[name]:
                raise ValueError(f"{name} is {shown(theirs[name])}, {shown(mine[name])} expected")
        if not _is_count(theirs["lr"]):
            raise ValueError(f"lr is {shown(theirs['lr'])}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _state_names(optimizer)
    for index, parameter in enumerate(parameters):
        entry = saved["state"].get(index, {})
        if entry.keys() != names and (entry or (begun and parameter.requires_grad)):
            raise ValueError(f"parameter {index} has {', '.join(entry) or 'none'}, {', '.join(names)} expected")
        for name, value in entry.items():
            kind = (value.dtype, ()) if name == "step" else (parameter.dtype, parameter.shape)
            _check_values(f"{name} of parameter {index}", value, *kind)
    known = {index: entry for index, entry in saved["state"].items() if index in range(len(parameters))}
    optimizer.load_state_dict({"state": known, "param_groups": groups})


def _check_values(name: str, values: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    if values.shape != shape or values.dtype != dtype or not values.is_floating_point():
        raise ValueError(f"{name} is of the shape {list(values.shape)}, {values.dtype}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} is not finite")


def _state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of what the optimizer keeps of a parameter, as a step on another one shows."""
    probe = nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    taken = inspect.signature(type(optimizer)).parameters
    like = type(optimizer)([probe], **{name: value for name, value in optimizer.defaults.items() if name in taken})
    like.step()
    return {*like.state[probe]}


def load_generators(saved: dict[str, Any]) -> None:
    """Set every generator. Raises ValueError for what numpy and Python take unseen: any position, any spare number."""
    _, keys, position, has_gauss, gauss = saved["numpy"]
    spares = [gauss, 0.0 if saved["python"][2] is None else saved["python"][2]]
    sound = type(position) is int and 0 <= position <= len(keys) and has_gauss in (0, 1)
    sound = sound and all(type(spare) in (int, float) and math.isfinite(spare) for spare in spares)
    if not sound or not isinstance(saved["cuda"], list):
        raise ValueError("no state of random generators")
    set_rng_state(saved)


def progress(path: Path | str, snapshot: Snapshot) -> TrainingState:
    """Return how far the run of a snapshot had come. Raises UsageError where the entry `state` or
    `events` is damaged."""
    made: list[TrainingState] = []
    put_back(path, snapshot, state=lambda saved: made.append(_state(saved, snapshot)))
    if snapshot.get("events") is not None:  # an older checkpoint has none
        put_back(path, snapshot, events=_check_sizes)
    return made[0]


def _check_sizes(saved: dict[str, Any]) -> None:
    for name, size in saved.items():
        if type(size) is not int or size < 0:
            raise ValueError(f"{shown(name)} is {shown(size)}")


def _state(saved: dict[str, Any], snapshot: Snapshot) -> TrainingState:
    start_epoch = snapshot["options"].get("start_epoch") or 0
    for field in fields(TrainingState):
        value = saved[field.name]
        kind = field.type
        if kind in (int, float):
            right = _is_count(value) and (kind is float or type(value) is int)
        elif field.name == "sums":
            right = (
                len(value) == len(TrainingState().sums)
                and all(map(_is_count, value))
                and (saved["step"] > 0 or not any(value))
            )
        else:
            right = _is_score(value, saved["epoch"] if field.name == "best" else None)
            right = right or (value == {} and (saved["step"] > 0 or saved["epoch"] <= start_epoch))
        if not right:
            raise ValueError(f"{field.name} is {shown(value)}")
    if any(saved[name] != snapshot[name] for name in ("epoch", "step")):
        raise ValueError("its epoch and step are not those of the checkpoint")
    return TrainingState(**saved)


def _is_score(measures: dict[str, Any], epochs: int | None) -> bool:
    """Return whether these are a loss and accuracies, with the epoch they are of where there have been `epochs`."""
    names = MEASURED if epochs is None else MEASURED | {"epoch"}
    right = measures.keys() == names and all(map(_is_count, measures.values()))
    right = right and all(measures[name] <= 100 + 1e-9 for name in MEASURED - {"loss"})
    return right and (epochs is None or (type(measures["epoch"]) is int and 1 <= measures["epoch"] <= epochs))


def _is_count(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def best_epoch(run: Run, snapshot: Snapshot) -> int | None:
    """The epoch whose network best.pt holds; none, with a word, where it is gone, damaged or not what `snapshot` says
    was best. Raises RunFailed where it cannot be read for another reason: a new best would be written over it."""
    path, best = run.path / "checkpoints" / "best.pt", snapshot["state"]["best"]
    try:
        content = checkpoints.load(path)
        if not best or content["epoch"] > snapshot["epoch"] or _best_in(content) == best:
            return int(content["epoch"])
        complaint = f"{path} is not of the epoch that was best in this run"
    except checkpoints.NotRead as error:
        raise RunFailed(f"{error}; nothing was changed") from error
    except UsageError as error:
        complaint = str(error)
    so_far = f"; so far it is epoch {snapshot['epoch']}, whose network is written there" * is_best(snapshot)
    warn(f"{complaint}: the best epoch is picked anew from here on{so_far}")
    return None


def _best_in(content: Snapshot) -> object:
    state = content.get("state")
    return state.get("best") if isinstance(state, Mapping) else None


def is_best(snapshot: Snapshot) -> bool:
    """Return whether the checkpoint itself holds the network of the best epoch."""
    return snapshot["step"] == 0 and snapshot["state"]["best"].get("epoch") == snapshot["epoch"]
