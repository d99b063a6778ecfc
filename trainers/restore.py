"""Put a checkpoint back: every entry is checked first, so that a damaged one is one line and changes nothing."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from args import UsageError
from trainers.loop import Parts, Score, State
from utils import checkpoints
from utils.declared import shown
from utils.files import RunFailed
from utils.progress import warn
from utils.run import Run
from utils.runtime import set_rng_state

Snapshot = Mapping[str, Any]
WRONG = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError)
MEASURED = {*Score(0, 0, 0).named()}


def put_back(path: Path | str, snapshot: Snapshot, **loaders: Callable[[Any], object]) -> None:
    """Give each loader the entry of its name. Raises UsageError with the entry that is missing or does not fit."""
    for name, load in loaders.items():
        try:
            load(snapshot[name])
        except WRONG as error:
            reason = "it is missing" if name not in snapshot else str(error).strip().splitlines()[-1:] or repr(error)
            reason = reason if isinstance(reason, str) else reason[0].strip()
            raise UsageError(f"{path} is damaged or of another run: {name}: {reason}") from error


def restore(parts: Parts, snapshot: Snapshot, path: Path, best_epoch: int | None) -> State:
    """Put a snapshot back into `parts` and every generator; returns how far its run had come, of whose best.pt
    `best_epoch` is the epoch. Raises UsageError where the snapshot does not fit."""
    put_back(
        path,
        snapshot,
        model=lambda saved: load_model(parts.model, saved),
        optimizer=lambda saved: load_optimizer(parts.optimizer, saved),
        method=parts.method.load_state_dict,
        rng=set_rng_state,
    )
    state = progress(path, snapshot)
    if state.step and state.step >= len(parts.train):
        raise UsageError(f"{path} is damaged: it has {state.step} batches of an epoch of {len(parts.train)}")
    if state.best and best_epoch != state.best["epoch"]:
        state.best = {}  # best.pt is from epochs that are now trained again: best is picked anew from here on
    return state


def load_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Load weights, scores and buffers. Raises ValueError or RuntimeError where they do not fit."""
    model.load_state_dict(saved)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{name} is not finite")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load what torch's own loading does not check: the settings, and names and shapes of each parameter's state.

    Raises ValueError where one is not what the options make it; the learning rate is set anew for every epoch.
    """
    fresh = optimizer.state_dict()["param_groups"]
    groups = [dict(mine) | theirs for mine, theirs in zip(fresh, saved["param_groups"], strict=True)]
    for mine, theirs in zip(fresh, groups, strict=True):
        for name, value in theirs.items():
            right = _is_count(value) if name == "lr" else value == mine.get(name, value)
            if not right:
                raise ValueError(f"{name} is {shown(value)}, {shown(mine.get(name))} expected")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _state_names(optimizer)
    for index, entry in saved["state"].items():
        parameter = parameters[index]
        if entry.keys() != names:
            raise ValueError(f"parameter {index} has {', '.join(map(str, entry))}, {', '.join(names)} expected")
        for name, value in entry.items():
            if name != "step" and value.shape != parameter.shape:
                raise ValueError(f"{name} of parameter {index} has the shape {list(value.shape)}")
            if not bool(torch.isfinite(torch.as_tensor(value)).all()) or torch.as_tensor(value).is_complex():
                raise ValueError(f"{name} of parameter {index} is not finite")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """What the optimizer keeps of a parameter, as a step on another one shows."""
    probe = nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    like = type(optimizer)([probe], **optimizer.defaults)
    like.step()
    return {*like.state[probe]}


def progress(path: Path | str, snapshot: Snapshot, start_epoch: int = 0) -> State:
    """How far the run of a snapshot had come. Raises UsageError where the entry `state` is damaged."""
    made: list[State] = []
    put_back(path, snapshot, state=lambda saved: made.append(_state(saved, snapshot, start_epoch)))
    return made[0]


def _state(saved: dict[str, Any], snapshot: Snapshot, start_epoch: int) -> State:
    for field in fields(State):
        value = saved[field.name]
        kind = field.type
        if kind in (int, float):
            right = _is_count(value) and (kind is float or type(value) is int)
        elif field.name == "sums":
            right = len(value) == len(State().sums) and all(map(_is_count, value))
        else:
            wanted = MEASURED | ({"epoch"} if field.name == "best" else set())
            empty = not value and (saved["step"] > 0 or saved["epoch"] <= start_epoch)
            right = empty or (value.keys() == wanted and all(map(_is_count, value.values())))
        if not right:
            raise ValueError(f"{field.name} is {shown(value)}")
    if any(saved[name] != snapshot[name] for name in ("epoch", "step")):
        raise ValueError("its epoch and step are not those of the checkpoint")
    return State(**saved)


def _is_count(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def best_epoch(run: Run) -> int | None:
    """The epoch whose network best.pt holds; none, with a word, where it is gone or damaged. Raises RunFailed where it
    cannot be read for another reason: a new best would be written over it."""
    try:
        return int(checkpoints.load(run.path / "checkpoints" / "best.pt")["epoch"])
    except checkpoints.NotRead as error:
        raise RunFailed(f"{error}; nothing was changed") from error
    except UsageError as error:
        warn(f"{error}: the best epoch is picked anew from here on")
        return None
