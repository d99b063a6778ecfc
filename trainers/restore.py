"""Restore a checkpoint. Each entry is checked, so that a damaged file gives a one-line error and no file changes."""

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from utils.records.tensorboard import check_event_sizes
from utils.text import shown

T = TypeVar("T")
Checkpoint = Mapping[str, Any]
# Errors that torch, numpy or this program raise when they read a value of the wrong type or content.
DAMAGE_ERRORS = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError)
METRIC_NAMES = {*Metrics(0, 0, 0).as_dict()}


def load_entry(path: Path, checkpoint: Checkpoint, name: str, load: Callable[[Any], T]) -> T:
    """Return `load(checkpoint[name])`, the result of loading one entry of a checkpoint.

    Raises UsageError, which names `path` and the entry, if the entry is missing or no mapping, or if `load` fails.
    """
    try:
        if not isinstance(checkpoint[name], Mapping):
            raise TypeError(f"it is {shown(checkpoint[name])}")
        return load(checkpoint[name])
    except DAMAGE_ERRORS as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        reason = lines[-1].strip() if name in checkpoint else "it is missing"
        raise UsageError(f"{path} is damaged or of another run: {name}: {reason}") from error


def restore(setup: TrainingSetup, checkpoint: Checkpoint, path: Path, best_epoch: int | None) -> TrainingState:
    """Restore a training run from a checkpoint, and return the progress of the run.

    The checkpoint is loaded into the model, optimizer and method of `setup` and into the random generators.
    `best_epoch` is the epoch of the run's best.pt, None if that file is lost. Raises UsageError, which names `path`, if
    an entry is missing, damaged or does not fit.
    """
    state = training_state(path, checkpoint)
    has_trained = state.train_images > 0
    if has_trained:  # before the optimizer is loaded, because the method may freeze parameters, which have no state
        setup.method.before_epoch(setup.model, max(state.epoch - (state.step == 0), 0))
    load_entry(path, checkpoint, "model", partial(load_model, setup.model))
    load_entry(path, checkpoint, "optimizer", partial(load_optimizer, setup.optimizer, has_trained=has_trained))
    load_entry(path, checkpoint, "method", setup.method.load_state_dict)
    load_entry(path, checkpoint, "rng", load_generators)
    if state.step and state.step >= len(setup.train):
        raise UsageError(f"{path} is damaged: it has {state.step} batches of an epoch of {len(setup.train)}")
    if state.best and best_epoch != state.best["epoch"] and not is_best(checkpoint):
        state.best = {}  # best.pt is lost, or its epoch is trained again: the best epoch is picked anew
    return state


def load_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Load a saved state dict into `model`. Raises ValueError or RuntimeError if it does not fit or is not finite."""
    for name, values in model.state_dict().items():
        if name in saved and saved[name].dtype != values.dtype:
            raise ValueError(f"{name} is {saved[name].dtype}, {values.dtype} expected")
    model.load_state_dict(saved)
    for name, values in model.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} is not finite")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], *, has_trained: bool) -> None:
    """Check a saved state dict and load it into `optimizer`.

    Raises ValueError if its settings or its tensors do not fit the optimizer, which torch hardly checks. The saved
    settings must equal those of `optimizer`, except the learning rate, which every epoch sets anew. Saved tensors must
    be finite and have the shape of their parameter. If the run `has_trained`, every trainable parameter must have
    state.
    """
    own_groups = optimizer.state_dict()["param_groups"]
    groups = [{**own, **group} for own, group in zip(own_groups, saved["param_groups"], strict=True)]
    if not all("params" in group for group in saved["param_groups"]):
        raise ValueError("params are missing")
    for own, group in zip(own_groups, groups, strict=True):
        for name in own.keys() - {"lr"}:
            if group[name] != own[name]:
                raise ValueError(f"{name} is {shown(group[name])}, {shown(own[name])} expected")
        if not _is_non_negative(group["lr"]):
            raise ValueError(f"lr is {shown(group['lr'])}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _state_names(optimizer)
    for index, parameter in enumerate(parameters):
        entry = saved["state"].get(index, {})
        if entry.keys() != names and (entry or (has_trained and parameter.requires_grad)):
            raise ValueError(f"parameter {index} has {', '.join(entry) or 'none'}, {', '.join(names)} expected")
        for name, value in entry.items():
            kind = (value.dtype, ()) if name == "step" else (parameter.dtype, parameter.shape)
            _check_values(f"{name} of parameter {index}", value, *kind)
    # State beyond the last parameter would stay in the optimizer and in every later checkpoint.
    known = {index: entry for index, entry in saved["state"].items() if index in range(len(parameters))}
    optimizer.load_state_dict({"state": known, "param_groups": groups})


def _check_values(name: str, values: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Raise ValueError if a tensor is not finite or not of the expected dtype and shape."""
    if values.shape != shape or values.dtype != dtype or not values.is_floating_point():
        raise ValueError(f"{name} is of the shape {list(values.shape)}, {values.dtype}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} is not finite")


def _state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of the state that `optimizer` keeps per parameter, such as "exp_avg" for Adam.

    A new optimizer with the same settings takes one step on a dummy parameter, and its state shows the names.
    """
    dummy = nn.Parameter(torch.zeros(1))
    dummy.grad = torch.zeros(1)
    arguments = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in arguments}
    copy = type(optimizer)([dummy], **settings)
    copy.step()
    return {*copy.state[dummy]}


def load_generators(saved: dict[str, Any]) -> None:
    """Set the states of all random generators (Python, numpy, torch, CUDA) to the saved ones.

    Raises ValueError for invalid values that numpy and Python would accept without an error: the position in the
    random stream, and the cached second number of a Gaussian pair.
    """
    _, keys, position, has_gauss, gauss = saved["numpy"]
    cached = [gauss, 0.0 if saved["python"][2] is None else saved["python"][2]]
    sound = type(position) is int and 0 <= position <= len(keys) and has_gauss in (0, 1)
    sound = sound and all(type(number) in (int, float) and math.isfinite(number) for number in cached)
    if not sound or not isinstance(saved["cuda"], list):
        raise ValueError("not the state of random generators")
    set_rng_state(saved)


def training_state(path: Path, checkpoint: Checkpoint) -> TrainingState:
    """Return the progress of a run from its checkpoint.

    The checkpoint stores the progress in the entry `state`. Raises UsageError, which names `path`, if this entry or the
    entry `events` (sizes of the TensorBoard files) is damaged.
    """
    state = load_entry(path, checkpoint, "state", lambda saved: _checked_state(saved, checkpoint))
    if checkpoint.get("events") is not None:  # checkpoints of earlier versions have none
        load_entry(path, checkpoint, "events", check_event_sizes)
    return state


def _checked_state(saved: dict[str, Any], checkpoint: Checkpoint) -> TrainingState:
    """Convert the entry `state` of a checkpoint to a TrainingState.

    `saved` is this entry of `checkpoint`. Raises ValueError for invalid values.
    """
    start_epoch = checkpoint["options"].get("start_epoch") or 0
    for field in fields(TrainingState):
        value = saved[field.name]
        if field.type in (int, float):
            sound = _is_non_negative(value) and (field.type is float or type(value) is int)
        elif field.name == "sums":
            sound = len(value) == len(TrainingState().sums) and all(map(_is_non_negative, value))
            sound = sound and (saved["step"] > 0 or not any(value))
        else:
            sound = _are_valid_metrics(value, saved["epoch"] if field.name == "best" else None)
            sound = sound or (value == {} and (saved["step"] > 0 or saved["epoch"] <= start_epoch))
        if not sound:
            raise ValueError(f"{field.name} is {shown(value)}")
    if any(saved[name] != checkpoint[name] for name in ("epoch", "step")):
        raise ValueError("its epoch and step differ from those of the checkpoint")
    return TrainingState(**saved)


def _are_valid_metrics(metrics: dict[str, Any], epochs: int | None) -> bool:
    """Return True if `metrics` has valid values for loss and accuracies (%), and no other keys.

    If `epochs` is given, `metrics` must also have the number of an epoch, from 1 to `epochs`.
    """
    names = METRIC_NAMES if epochs is None else METRIC_NAMES | {"epoch"}
    sound = metrics.keys() == names and all(map(_is_non_negative, metrics.values()))
    sound = sound and all(metrics[name] <= 100 + 1e-9 for name in METRIC_NAMES - {"loss"})
    if epochs is not None:
        sound = sound and type(metrics["epoch"]) is int and 1 <= metrics["epoch"] <= epochs
    return bool(sound)


def _is_non_negative(value: object) -> bool:
    """Return True for a finite int or float of at least 0, but not for a bool."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def read_best_epoch(run: Run, checkpoint: Checkpoint) -> int | None:
    """Return the epoch of the run's best.pt, or None if this file is unusable.

    Warn and return None if best.pt is missing, damaged, or not from the best epoch that `checkpoint` records. The run
    resumes from `checkpoint`. Raises RunFailed if the operating system cannot read best.pt, because training would
    overwrite a file that may be sound.
    """
    best = checkpoint["state"]["best"]
    if not best and not os.path.lexists(run.best):  # the run was stopped in its first epoch, or a warning was given
        return None
    try:
        content = checkpoints.load(run.best)
        state = content.get("state")
        recorded = state.get("best") if isinstance(state, Mapping) else None
        if not best or content["epoch"] > checkpoint["epoch"] or recorded == best:
            return int(content["epoch"])
        complaint = f"{run.best} is not from the best epoch of this run"
    except checkpoints.ReadFailed as error:
        raise RunFailed(f"{error}; nothing was changed") from error
    except UsageError as error:
        complaint = str(error)
    first = f"epoch {checkpoint['epoch']} (saved as best.pt now) and" if is_best(checkpoint) else "the"
    warn(f"{complaint}: the best epoch is picked again, among {first} later epochs")
    return None


def is_best(checkpoint: Checkpoint) -> bool:
    """Return True if a checkpoint was written at the end of the run's best epoch so far."""
    return bool(checkpoint["step"] == 0 and checkpoint["state"]["best"].get("epoch") == checkpoint["epoch"])
