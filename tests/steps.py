"""One training step and one evaluation of a configured run on random images, without reading a data set."""

import math
from dataclasses import dataclass, replace

import torch

import args
import data
from models.constraints import weight_layers, weight_shape
from trainers.experiment import build
from trainers.loop import Callbacks, TrainingSetup, evaluate, train_one_epoch
from trainers.methods.default import Default
from trainers.optimizers import make_optimizer
from trainers.registry import TRAINERS
from trainers.schedules import schedule
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

LIGHT = 5_500_000  # number of weights: a step of a larger network takes more than a second on one core


SMALL_IMAGENET = replace(data.SETS["CIFAR10"], in_shape=(3, 64, 64))
IMAGENET = replace(data.SETS["CIFAR10"], in_shape=(3, 224, 224), num_classes=1000)


def spec_of(name):
    """Return the spec of a data set, with 64x64 images for ImageNet."""
    return SMALL_IMAGENET if name == "ImageNet" else data.SETS[name]


@dataclass
class OneBatch:
    """A split of one batch: `samples` random images of the shape in `spec`."""

    spec: data.SetSpec
    samples: int = 2

    def __len__(self):
        return 1

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(0, self.spec.num_classes, (self.samples,), generator=generator)
        yield torch.randn(self.samples, *self.spec.in_shape, generator=generator), labels


def make_method(trainer, **changes):
    """Return the training method `trainer`, a name or a class, with the default of every option except `changes`."""
    rows = {name: row.load() for name, row in TRAINERS.items() if name != "default"}
    name = trainer if isinstance(trainer, str) else next(n for n, kind in rows.items() if issubclass(trainer, kind))
    options = {option: args.FIELDS[option].default for option in TRAINERS[name].options}
    return (rows.get(name, Default) if trainer == name else trainer)(**options | changes)


def on_meta(options, spec):
    """Return the network on the meta device, where tensors have shapes but no storage."""
    with torch.device("meta"):
        return build(options, spec)[0]


def logits_shape(model, spec):
    """Return the shape of the logits for two images; `model` is on the meta device."""
    return tuple(model.eval()(torch.empty(2, *spec.in_shape, device="meta")).shape)


def weight_count(model):
    return sum(weight_shape(layer).numel() for layer in weight_layers(model).values())


def take_a_step(options):
    """Train one step, evaluate once, check that only trainable parameters changed, and return the network.

    A network of more than `LIGHT` weights runs forward on the meta device, and trains at a quarter of its width.
    """
    spec, o = spec_of(options.data.set), options.optim
    whole = on_meta(options, spec)
    if weight_count(whole) > LIGHT:
        assert logits_shape(whole, spec) == (2, spec.num_classes)
        options = options.replace(width_mult=options.model.width_mult / 4)
    model, method = build(options, spec)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    runtime.put(model)
    factor = schedule(o.lr_policy, epochs=o.epochs, warmup=o.warmup_length, step=o.lr_adjust, gamma=o.lr_gamma)
    groups = method.parameter_groups(model)
    optimizer = make_optimizer(o.optimizer, groups, lr=o.lr * factor(0), momentum=o.momentum, nesterov=o.nesterov)
    batch = OneBatch(spec)
    setup = TrainingSetup(model, method, optimizer, runtime, batch, batch, learning_rate=factor, clip=o.grad_clip)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.before_epoch(model, 0)
    assert train_one_epoch(setup, TrainingState(), "a step", Callbacks())  # raises if the loss is not finite
    after = dict(model.named_parameters())
    changed = {name for name, p in after.items() if not torch.equal(p, before[name])}
    assert changed and changed <= {name for name, p in after.items() if p.requires_grad}
    assert math.isfinite(evaluate(model, batch, method, runtime).loss)
    return model
