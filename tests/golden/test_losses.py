"""The losses of ten training steps are what they were: a change of the mathematics cannot go unnoticed.

After a change that was meant: `python -m tests.golden.test_losses` in the root of the project writes losses.json anew.
"""

import json
from pathlib import Path

import pytest
import torch

import models
from models.constraints import constrain
from models.initial import initialise
from tests.steps import make_method
from trainers.loop import TrainingSetup, train_one_epoch
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

FILE = Path(__file__).with_name("losses.json")
STEPS, BATCH, CLASSES = 10, 32, 10
BIAS = 0.0173  # of batch norm: off 0, where a rounding error would decide a sign
# MPT-1/1 starts from ±1 weights: their sums are exact, so ties in pools are ties whatever the order of summation.
RUNS = {  # arch, conv_type, trainer, optimizer, rate, init
    "MPT-1/32": ("Conv2", "SubnetConv", "prune_score", "sgd", 0.1, "kaiming_normal"),
    "MPT-1/1": ("Conv2_BinAct", "SubnetConv", "prune_score", "adam", 0.1, "binary"),
    "dense": ("Conv2", "DenseConv", "default", "sgd", 0.01, "kaiming_normal"),
}


class Blobs:
    """Images like the digits: 8x8, one blurred prototype a class, noise upon it; from a fixed generator."""

    samples = STEPS * BATCH

    def __init__(self, generator):
        prototypes = torch.rand(CLASSES, 1, 8, 8, generator=generator).round()
        self.labels = torch.randint(0, CLASSES, (self.samples,), generator=generator)
        noise = torch.randn(self.samples, 1, 8, 8, generator=generator)
        self.images = (prototypes[self.labels] - 0.5) * 2 + 0.5 * noise

    def __len__(self):
        return STEPS

    def epoch(self, epoch, start=0):
        return zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True)


class NoEvents:
    def stop_asked(self):
        return False

    def save_due(self):
        return False


def losses(name):
    """Loss of every step, in float32 on one thread."""
    arch, conv_type, trainer, optimizer, rate, init = RUNS[name]
    generator = torch.Generator().manual_seed(0)
    batches = Blobs(generator)
    model = models.build(arch, num_classes=CLASSES, in_shape=(1, 8, 8), width_mult=0.25, bn_type="AffineBatchNorm")
    initialise(model, init, fan_scale=0.5 if conv_type == "SubnetConv" else 1, bn_bias=BIAS, generator=generator)
    constrain(model, conv_type, density=0.5, generator=generator)
    if conv_type == "SubnetConv":
        freeze_weights(model)
    method, found = make_method(trainer, weight_decay=1e-4), []
    true_loss = method.loss
    method.loss = lambda *inputs: found.append(true_loss(*inputs)) or found[-1]
    method.prepare(model)
    trained = make_optimizer(optimizer, method.parameter_groups(model), lr=rate)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    parts = TrainingSetup(model, method, trained, runtime, batches, batches, lambda epoch: rate)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_one_epoch(parts, TrainingState(), "golden", NoEvents())
    finally:
        torch.set_num_threads(threads)
    return [loss.item() for loss in found]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_what_they_were(name):
    found, recorded = losses(name), json.loads(FILE.read_text())[name]
    assert found == pytest.approx(recorded, rel=1e-4)
    assert len(recorded) == STEPS


@pytest.mark.parametrize("name", RUNS)
def test_the_recorded_runs_learn(name):
    recorded = json.loads(FILE.read_text())[name]
    assert min(recorded[-3:]) < 0.7 * recorded[0]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: losses(name) for name in RUNS}, indent=2) + "\n")
