"""The one training loop: fit, train an epoch, evaluate. Which network, method, device: it does not know."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers.ddp import Replicas
from trainers.methods.base import Method
from trainers.optimizers import set_rate
from utils import out_of_memory
from utils.console import Progress
from utils.distributed.batch_slice import BatchSlice
from utils.distributed.runtime import Runtime
from utils.errors import RunFailed, StoppedWaiting
from utils.records.epoch_tables import Table


class Batches(Protocol):
    """A split in batches; `epoch(e, start)` gives those of epoch `e` from number `start` on, by seed and e alone: of
    those for training this process's `share`, of others whole ones, in turn with the other processes."""

    samples: int

    def share(self, number: int) -> BatchSlice: ...

    def __len__(self) -> int: ...

    def prepare(self) -> None: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass
class Parts:
    """What is trained, on what, and how."""

    model: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    train: Batches
    held_out: Batches  # picks the best epoch: the validation share, or the test set as in BIPROP
    rate: Callable[[int], float]  # epoch -> learning rate
    clip: bool = False
    look_every: int = 10  # batches between looks at the running loss, each of which waits for the device
    replicas: Replicas = field(default_factory=Replicas)


@dataclass
class Score:
    """Mean loss and accuracies (%) over a split."""

    loss: float
    top1: float
    top5: float

    def named(self) -> dict[str, float]:
        return {"loss": self.loss, "acc@1": self.top1, "acc@5": self.top5}


@dataclass
class State:
    """How far a run has come: all that a checkpoint needs besides the parts' own states."""

    epoch: int = 0  # epochs done
    step: int = 0  # batches done in the epoch after them
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)  # of that epoch so far
    train_seconds: float = 0.0
    train_images: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)  # held-out measures of the last epoch
    best: dict[str, float] = field(default_factory=dict)  # of the best epoch, with its number
    best_train: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


class Callbacks(Protocol):
    """What the loop tells the run it belongs to."""

    def stop_asked(self) -> bool: ...

    def save_due(self) -> bool: ...

    def save(self, state: State, *, is_best: bool) -> None: ...

    def tables(self, epoch: int, tables: dict[str, Table]) -> None: ...

    def epoch_done(self, state: State, train: Score, held_out: Score, rate: float, *, is_best: bool) -> None: ...

    def stopped(self, state: State) -> None: ...


def fit(parts: Parts, state: State, epochs: int, events: Callbacks) -> None:
    """Train from where `state` says up to `epochs` epochs, or until asked to stop; `state` follows.

    Raises RunFailed when the loss is not finite.
    """
    parts.method.begin(parts.model, parts.optimizer, len(parts.train), epochs, parts.runtime)
    while state.epoch < epochs:
        epoch, began = state.epoch, time.perf_counter()
        rate = parts.rate(epoch)
        set_rate(parts.optimizer, rate)
        parts.method.before_epoch(parts.model, epoch)
        if parts.method.resets_best(epoch):
            state.best, state.best_train = {}, {}
        title = f"epoch {epoch + 1}/{epochs}"
        finished = train_one_epoch(parts, state, title, events)
        if not finished:
            state.seconds += time.perf_counter() - began
            events.stopped(state)
            return
        train = score_of(state.sums)
        parts.method.after_epoch(parts.model, epoch)
        parts.replicas.broadcast_statistics(parts.model)
        held_out = evaluate(parts.model, parts.held_out, parts.method, parts.runtime)
        events.tables(epoch + 1, parts.method.tables(parts.model, parts.held_out, parts.runtime, epoch + 1, epochs))
        state.seconds += time.perf_counter() - began
        _finite(held_out, title, state.step)
        _finite_parameters(parts.model, title)
        is_best = _advance(state, train, held_out)
        events.epoch_done(state, train, held_out, rate, is_best=is_best)
        if state.epoch < epochs and parts.runtime.any(events.stop_asked()):
            events.stopped(state)
            return


def train_one_epoch(parts: Parts, state: State, title: str, events: Callbacks) -> bool:
    """Train the rest of the epoch; True when it is finished, False when asked to stop between two batches."""
    model, method, optimizer, runtime = parts.model, parts.method, parts.optimizer, parts.runtime
    model.train()
    network = parts.replicas.wrap(model)
    sums = torch.tensor(state.sums, dtype=torch.float64, device=runtime.device)
    sums *= runtime.first  # which has those of all
    began, already, total = time.perf_counter(), state.train_seconds, len(parts.train)
    with Progress(title, total, state.step) as progress, out_of_memory.explained(title, out_of_memory.BATCH_ADVICE):
        for step, (images, labels) in enumerate(_arriving(parts, state), state.step):
            share = parts.replicas.next_slice(parts.train, step, len(labels))
            method.before_step(model, step)
            with runtime.precision():
                logits = network(images)
            logits = logits.float()
            loss = method.loss(logits, labels)
            optimizer.zero_grad()
            (loss * share.weight).backward()
            if parts.clip:
                torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
            optimizer.step()
            method.after_step(model, step)
            add_batch(sums, loss.detach(), logits.detach(), labels)
            state.step = step + 1
            state.train_images += share.total
            progress.advance()
            due = state.step % parts.look_every == 0 or state.step == total
            if due or (runtime.alone and events.stop_asked()):  # several agree on it when they look
                state.train_seconds = already + time.perf_counter() - began
                stop = _look(parts, state, sums, title, events)
                so_far = score_of(state.sums)
                progress.show(state.step, so_far.loss, so_far.top1, state.train_images / state.train_seconds)
                if stop and state.step < total:
                    return False
    if state.step < total:
        state.sums, state.train_seconds = sums.tolist(), already + time.perf_counter() - began
    return state.step == total


def _arriving(parts: Parts, state: State) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rest of the epoch's batches. Alone, end early where the run is asked to stop and no batch comes."""
    try:
        yield from parts.train.epoch(state.epoch, state.step)
    except StoppedWaiting:
        if not parts.runtime.alone:
            raise


def _look(parts: Parts, state: State, sums: Tensor, title: str, events: Callbacks) -> bool:
    """Bring what all processes have summed up into `state`, save where that is due; whether any was asked to stop."""
    wishes = sums.new_tensor([events.stop_asked(), events.save_due()])
    *state.sums, stop, save = parts.runtime.total(torch.cat([sums, wishes])).tolist()
    _finite(score_of(state.sums), title, state.step)
    if save and not stop and state.step < len(parts.train):
        events.save(state, is_best=False)
    return bool(stop)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, method: Method, runtime: Runtime) -> Score:
    """Mean loss and accuracy of `model` over every image of `batches`, in evaluation mode."""
    model.eval()
    method.before_evaluation(model)
    sums = torch.zeros(4, dtype=torch.float64, device=runtime.device)
    with runtime.preserve_generators(), out_of_memory.explained("an evaluation", out_of_memory.EVALUATION_ADVICE):
        for images, labels in batches.epoch(0):
            with runtime.precision():
                logits = model(images)
            logits = logits.float()
            add_batch(sums, method.loss(logits, labels), logits, labels)
    return score_of(runtime.total(sums).tolist())


def add_batch(sums: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a batch to [loss, top-1, top-5, images] on the device, without waiting for it; of several views the first."""
    hits = logits[: len(labels)].topk(min(5, logits.shape[1])).indices.eq(labels[:, None])
    sums += torch.stack([loss * len(labels), hits[:, 0].sum(), hits.sum(), loss.new_full((), len(labels))])


def score_of(sums: list[float]) -> Score:
    loss, top1, top5, images = sums
    return Score(loss / images, 100 * top1 / images, 100 * top5 / images)


def _finite(score: Score, title: str, step: int) -> Score:
    if not math.isfinite(score.loss):
        raise RunFailed(f"diverged: the loss is {score.loss} in {title}, batch {step}; a smaller --lr may help")
    return score


def _finite_parameters(model: nn.Module, title: str) -> None:
    """A mask of not-a-number scores is still a mask: the loss alone would not tell."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise RunFailed(f"diverged: a trained parameter is not finite after {title}; a smaller --lr may help")


def _advance(state: State, train: Score, held_out: Score) -> bool:
    """Close the epoch in `state`; whether it is the best so far (strictly, so the first of equals)."""
    state.epoch += 1
    state.step, state.sums = 0, [0.0] * 4
    state.last = held_out.named()
    is_best = not state.best or held_out.top1 > state.best["acc@1"]
    if is_best:
        state.best = held_out.named() | {"epoch": state.epoch}
    if not state.best_train or train.top1 > state.best_train["acc@1"]:
        state.best_train = train.named()
    return is_best
