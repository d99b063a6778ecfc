"""One step of training and one of evaluation of what options ask for, on random images: no data set is read."""

import math
from dataclasses import dataclass, replace

import torch

import args
import data
from models.constraints import weight_layers, weight_shape
from trainers import METHODS
from trainers.experiment import build
from trainers.loop import TrainingSetup, evaluate, train_one_epoch
from trainers.optimizers import make_optimizer
from trainers.schedules import schedule
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

LIGHT = 5_500_000  # weights; above, a step at full width takes more than a second of one core


SMALL_IMAGENET = replace(data.SPECS["CIFAR10"], in_shape=(3, 64, 64))
IMAGENET = replace(data.SPECS["CIFAR10"], in_shape=(3, 224, 224), num_classes=1000)


def facts(name):
    """Those of the set, but ImageNet small enough for a test."""
    return SMALL_IMAGENET if name == "ImageNet" else data.SPECS[name]


@dataclass
class OneBatch:
    """Two random images of the set's shape."""

    spec: data.SetSpec
    samples: int = 2

    def __len__(self):
        return 1

    def epoch(self, epoch, start=0):
        made = torch.Generator().manual_seed(1)
        labels = torch.randint(0, self.spec.num_classes, (self.samples,), generator=made)
        yield torch.randn(self.samples, *self.spec.in_shape, generator=made), labels


class SilentExit:
    def stop_asked(self):
        return False

    def save_due(self):
        return False


def make_method(trainer, **changes):
    """Return the training method `trainer`, a name or a class, with the default of every option except `changes`."""
    kind = METHODS[trainer] if isinstance(trainer, str) else trainer
    return kind(**{name: args.FIELDS[name].default for name in kind.option_names} | changes)


def without_numbers(options, spec):
    """The network with shapes alone: any size costs nothing."""
    with torch.device("meta"):
        return build(options, spec)[0]


def logits_shape(model, spec):
    """Of a network without numbers, for two images."""
    return tuple(model.eval()(torch.empty(2, *spec.in_shape, device="meta")).shape)


def weights(model):
    return sum(weight_shape(layer).numel() for layer in weight_layers(model).values())


def take_a_step(options):
    """Train and evaluate once: something trainable moves, and nothing else. Returns the network.

    A heavy one runs whole on the meta device; the step is then that of the same network at a quarter of its width.
    """
    spec, o = facts(options.data.set), options.optim
    whole = without_numbers(options, spec)
    if weights(whole) > LIGHT:
        assert logits_shape(whole, spec) == (2, spec.num_classes)
        options = options.replace(width_mult=options.model.width_mult / 4)
    model, method = build(options, spec)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    runtime.put(model)
    factor = schedule(o.lr_policy, epochs=o.epochs, warmup=o.warmup_length, step=o.lr_adjust, gamma=o.lr_gamma)
    groups = method.parameter_groups(model)
    optimizer = make_optimizer(o.optimizer, groups, lr=o.lr * factor(0), momentum=o.momentum, nesterov=o.nesterov)
    batch = OneBatch(spec)
    parts = TrainingSetup(model, method, optimizer, runtime, batch, batch, rate=factor, clip=o.grad_clip)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.before_epoch(model, 0)
    assert train_one_epoch(parts, TrainingState(), "a step", SilentExit())  # raises where the loss is not finite
    after = dict(model.named_parameters())
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved and moved <= {name for name, p in after.items() if p.requires_grad}
    assert math.isfinite(evaluate(model, batch, method, runtime).loss)
    return model
