"""The losses of ten training steps equal recorded values, so that a change of the computation is noticed.

After an intended change, `python -m tests.golden.test_losses` in the root of the project rewrites losses.json.
"""

import json
from pathlib import Path

import pytest
import torch

import models
from models.constraints import constrain
from models.initial import initialise
from tests.steps import make_method
from trainers.loop import Callbacks, TrainingSetup, train_one_epoch
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

FILE = Path(__file__).with_name("losses.json")
STEPS, BATCH, CLASSES = 10, 32, 10
BIAS = 0.0173  # bias of the batch norms: at 0 a rounding error would decide the sign of an activation
# MPT-1/1 starts from ±1 weights: their sums are exact in any order, so ties in max-pooling stay ties.
RUNS = {  # (arch, conv_type, trainer, optimizer, learning rate, init)
    "MPT-1/32": ("Conv2", "SubnetConv", "prune_score", "sgd", 0.1, "kaiming_normal"),
    "MPT-1/1": ("Conv2_BinAct", "SubnetConv", "prune_score", "adam", 0.1, "binary"),
    "dense": ("Conv2", "DenseConv", "default", "sgd", 0.01, "kaiming_normal"),
}


class Blobs:
    """8x8 images like the digits: one random prototype per class plus noise, from `generator`."""

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


def losses_of(name):
    """Return the loss of every step, in float32 on one thread."""
    arch, conv_type, trainer, optimizer, lr, init = RUNS[name]
    generator = torch.Generator().manual_seed(0)
    batches = Blobs(generator)
    model = models.build(arch, num_classes=CLASSES, in_shape=(1, 8, 8), width_mult=0.25, bn_type="AffineBatchNorm")
    initialise(model, init, fan_scale=0.5 if conv_type == "SubnetConv" else 1, bn_bias=BIAS, generator=generator)
    constrain(model, conv_type, density=0.5, generator=generator)
    if conv_type == "SubnetConv":
        freeze_weights(model)
    method, losses = make_method(trainer, weight_decay=1e-4), []
    true_loss = method.loss
    method.loss = lambda *inputs: losses.append(true_loss(*inputs)) or losses[-1]
    method.prepare(model)
    optimizer = make_optimizer(optimizer, method.parameter_groups(model), lr=lr, momentum=0.9)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    setup = TrainingSetup(model, method, optimizer, runtime, batches, batches, lambda epoch: lr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_one_epoch(setup, TrainingState(), "golden", Callbacks())
    finally:
        torch.set_num_threads(threads)
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("name", RUNS)
def test_losses_equal_the_recorded_values(name):
    found, recorded = losses_of(name), json.loads(FILE.read_text())[name]
    assert found == pytest.approx(recorded, rel=1e-4)
    assert len(recorded) == STEPS


@pytest.mark.parametrize("name", RUNS)
def test_recorded_losses_fall(name):
    recorded = json.loads(FILE.read_text())[name]
    assert min(recorded[-3:]) < 0.7 * recorded[0]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: losses_of(name) for name in RUNS}, indent=2) + "\n")
