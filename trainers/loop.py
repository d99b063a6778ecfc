"""The training loop of all methods: fit, train one epoch, train on one batch, evaluate."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.device_batches import Batches
from trainers.ddp import Replicas
from trainers.methods.base import Method
from trainers.metrics import Metrics, add_batch, metrics_of
from trainers.optimizers import set_learning_rate
from trainers.training_state import TrainingState
from utils import out_of_memory
from utils.console import Progress
from utils.distributed.runtime import Runtime
from utils.errors import RunFailed, StoppedWaiting
from utils.records.epoch_tables import Table


@dataclass
class TrainingSetup:
    """Network, training method, optimizer, device and data of a training run."""

    model: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    train: Batches
    held_out: Batches  # picks the best epoch: the validation split, or the test set as in BIPROP
    learning_rate: Callable[[int], float]  # epoch (from 0) -> learning rate
    clip: bool = False  # clip every gradient entry to [-1, 1]
    sync_every: int = 10  # batches between two transfers of the running sums to the host, which wait for the device
    replicas: Replicas = field(default_factory=Replicas)


class Callbacks:
    """Base class of callbacks, to which the training loop reports its progress.

    The loop also asks the callbacks when to stop or save. The methods of this class record nothing and never stop the
    loop. A callback never changes the training.
    """

    def stop_asked(self) -> bool:
        """Return True if this process was asked to stop."""
        return False

    def save_due(self) -> bool:
        """Return True if a checkpoint is due before the end of the epoch."""
        return False

    def save(self, state: TrainingState, *, is_best: bool) -> None:
        """Write a checkpoint of `state`."""

    def tables(self, epoch: int, tables: dict[str, Table]) -> None:
        """Record the tables that the training method returns after an epoch.

        `tables` maps file name to table. `epoch` is counted from 1.
        """

    def epoch_done(
        self, state: TrainingState, train: Metrics, held_out: Metrics, learning_rate: float, *, is_best: bool
    ) -> None:
        """Record the metrics of the epoch just finished, and write a checkpoint of `state`."""

    def stopped(self, state: TrainingState) -> None:
        """Write a checkpoint when a request to stop ends the loop early."""


def fit(setup: TrainingSetup, state: TrainingState, epochs: int, callbacks: Callbacks) -> None:
    """Train from `state` until `epochs` epochs are finished or a process is asked to stop.

    `state` is updated in place. Raises RunFailed if a loss or a trained parameter is not finite, or if memory runs out.
    """
    model, method, runtime = setup.model, setup.method, setup.runtime
    method.before_fit(model, setup.optimizer, len(setup.train), epochs, runtime)
    while state.epoch < epochs:
        start = time.perf_counter()
        title = f"epoch {state.epoch + 1}/{epochs}"
        learning_rate = setup.learning_rate(state.epoch)
        set_learning_rate(setup.optimizer, learning_rate)
        method.before_epoch(model, state.epoch)
        if method.resets_best(state.epoch):
            state.reset_best()
        if not train_one_epoch(setup, state, title, callbacks):
            state.seconds += time.perf_counter() - start
            callbacks.stopped(state)
            return
        train = metrics_of(state.sums)
        method.after_epoch(model, state.epoch)
        setup.replicas.broadcast_statistics(model)
        held_out = evaluate(model, setup.held_out, method, runtime)
        callbacks.tables(state.epoch + 1, method.tables(model, setup.held_out, runtime, state.epoch + 1, epochs))
        state.seconds += time.perf_counter() - start
        _check_loss(held_out, title, state.step)
        _check_parameters(model, title)
        is_best = state.finish_epoch(train, held_out)
        callbacks.epoch_done(state, train, held_out, learning_rate, is_best=is_best)
        if state.epoch < epochs and runtime.any(callbacks.stop_asked()):
            callbacks.stopped(state)
            return


def train_one_epoch(setup: TrainingSetup, state: TrainingState, title: str, callbacks: Callbacks) -> bool:
    """Train for the rest of an epoch, from batch `state.step` on.

    Return False if stopped before the last batch. `title`, such as "epoch 3/10", is for the progress bar and error
    messages.
    """
    setup.model.train()
    network = setup.replicas.wrap(setup.model)
    sums = torch.tensor(state.sums, dtype=torch.float64, device=setup.runtime.device)
    sums *= setup.runtime.first  # the stored sums are of all processes, so only rank 0 continues them
    start, seconds_before, total = time.perf_counter(), state.train_seconds, len(setup.train)
    with Progress(title, total, state.step) as progress, out_of_memory.explained(title, out_of_memory.BATCH_ADVICE):
        for step, (images, labels) in enumerate(_remaining_batches(setup, state), state.step):
            state.train_images += train_on_batch(setup, network, step, images, labels, sums)
            state.step = step + 1
            progress.advance()
            sync_due = state.step % setup.sync_every == 0 or state.step == total
            # Several processes agree on a stop only when they sync. A process that left alone would block the others.
            if sync_due or (setup.runtime.alone and callbacks.stop_asked()):
                state.train_seconds = seconds_before + time.perf_counter() - start
                stop = _sync(setup, state, sums, title, callbacks)
                running = metrics_of(state.sums)
                progress.show(state.step, running.loss, running.top1, state.train_images / state.train_seconds)
                if stop and state.step < total:
                    return False
    if state.step < total:
        state.sums, state.train_seconds = sums.tolist(), seconds_before + time.perf_counter() - start
    return state.step == total


def train_on_batch(
    setup: TrainingSetup, network: nn.Module, step: int, images: Tensor, labels: Tensor, sums: Tensor
) -> int:
    """Take one optimizer step on this rank's slice of a global batch.

    Add the loss and correct predictions of the slice to `sums`. Return the size of the global batch. `network` is
    `setup.model` or its DistributedDataParallel wrapper.
    """
    model, method, optimizer = setup.model, setup.method, setup.optimizer
    share = setup.replicas.next_slice(setup.train, step, len(labels))
    method.before_step(model, step)
    logits = forward(network, images, setup.runtime)
    loss = method.loss(logits, labels)
    optimizer.zero_grad()
    (loss * share.weight).backward()  # weighted, so that the average over ranks is the mean over the global batch
    if setup.clip:
        torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
    optimizer.step()
    method.after_step(model, step)
    add_batch(sums, loss.detach(), logits.detach(), labels)
    return share.total


def forward(network: nn.Module, images: Tensor, runtime: Runtime) -> Tensor:
    """Return the logits of a batch in float32, computed in the precision of the run.

    Autocast may compute logits in bfloat16, in which the loss would be too coarse.
    """
    with runtime.precision():
        logits: Tensor = network(images)
    return logits.float()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, method: Method, runtime: Runtime) -> Metrics:
    """Return the mean loss and accuracy of `model` over all images of `batches`.

    `model` stays in evaluation mode. The states of the random generators are restored.
    """
    model.eval()
    method.before_evaluation(model)
    sums = torch.zeros(4, dtype=torch.float64, device=runtime.device)
    with runtime.preserve_generators(), out_of_memory.explained("an evaluation", out_of_memory.EVALUATION_ADVICE):
        for images, labels in batches.epoch(0):
            logits = forward(model, images, runtime)
            add_batch(sums, method.loss(logits, labels), logits, labels)
    return metrics_of(runtime.total(sums).tolist())


def _remaining_batches(setup: TrainingSetup, state: TrainingState) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the remaining batches of the current epoch, as (images, labels).

    The first is batch `state.step`, counted from 0. The data loader raises StoppedWaiting if the process is asked to
    stop while no batch arrives. A single process then ends the epoch early and saves. Several processes cannot agree on
    a stop here, so the exception ends them.
    """
    try:
        yield from setup.train.epoch(state.epoch, state.step)
    except StoppedWaiting:
        if not setup.runtime.alone:
            raise


def _sync(setup: TrainingSetup, state: TrainingState, sums: Tensor, title: str, callbacks: Callbacks) -> bool:
    """Sum the running metrics over all processes, and save a checkpoint if one is due.

    `sums` holds the metrics of this process. Their total is stored in `state`. Return True if any process was asked to
    stop.
    """
    requests = sums.new_tensor([callbacks.stop_asked(), callbacks.save_due()])
    *state.sums, stop, save = setup.runtime.total(torch.cat([sums, requests])).tolist()
    _check_loss(metrics_of(state.sums), title, state.step)
    if save and not stop and state.step < len(setup.train):
        callbacks.save(state, is_best=False)
    return bool(stop)


def _check_loss(metrics: Metrics, title: str, step: int) -> None:
    if not math.isfinite(metrics.loss):
        raise RunFailed(f"diverged: the loss is {metrics.loss} in {title}, batch {step}; a smaller --lr may help")


def _check_parameters(model: nn.Module, title: str) -> None:
    # The loss does not show every fault: a mask of NaN scores is still a mask, and the loss under it can be finite.
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise RunFailed(f"diverged: a trained parameter is not finite after {title}; a smaller --lr may help")
