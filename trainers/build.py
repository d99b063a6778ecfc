"""Build the parts of a training run from its options: network, training method, batches and optimizer."""

from typing import Any

import torch
from torch import nn

import data
import models
from args import FIELDS, Options
from data.device_batches import Batches
from models.constraints.apply import constrain
from models.constraints.forward_order import layers_in_forward_order
from models.constraints.registry import CONV_TYPES
from models.initial import initialise
from trainers import network_memory
from trainers.ddp import Replicas
from trainers.loop import TrainingSetup
from trainers.methods.base import Method
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.plugin_network import check_output, is_from_plugin
from trainers.registry import TRAINERS
from trainers.schedules import schedule
from utils import out_of_memory, plugin_files
from utils.console import warn
from utils.distributed.batch_slice import check_batch
from utils.distributed.runtime import Runtime
from utils.errors import RunFailed, UsageError
from utils.random_state import seed_everything
from utils.registry import accepted

SYNC_EVERY = 10  # batches after which all processes know at the latest that one of them was asked to stop


def build(options: Options, spec: data.SetSpec | None = None) -> tuple[nn.Module, Method]:
    """Build the constrained network and the training method that `options` describe, on the CPU.

    The network has its initial weights. `spec` describes the data set, and is looked up by default. Raises UsageError
    if options contradict each other or the data set.
    """
    m, c = options.model, options.constraint
    spec = spec or set_spec(options)
    if m.num_classes not in (None, spec.num_classes):
        raise UsageError(
            f"num_classes: {m.num_classes} given, but {options.data.set} has {spec.num_classes}; leave it out"
        )
    assert options.run.seed is not None
    seed_everything(options.run.seed)
    generator = torch.Generator().manual_seed(options.run.seed)
    try:
        network = network_options(options, spec)
        network_memory.check(options, spec, network)
        model = models.build(**network)
        initialise(
            model,
            m.init,
            mode=m.mode,
            nonlinearity=m.nonlinearity,
            fan_scale=1 - c.density if m.scale_fan else 1.0,
            bn_weight=m.bn_weight_init,
            bn_bias=m.bn_bias_init,
            bn_eps=m.bn_eps,
            bn_momentum=m.bn_momentum,
            generator=generator,
        )
        constrain(
            model,
            c.conv_type,
            density=c.density,
            first_layer_type=None if c.first_layer_dense else c.first_layer_type,
            dense=dense_layers(options, model),
            generator=generator,
            **{name: options.value(name) for row in c.rows for name in row.options},
        )
        if is_from_plugin(options):
            check_output(model, m.arch, spec)
        if c.freeze_weights:
            freeze_weights(
                model, learn_batchnorm=c.learn_batchnorm, tune_batchnorm=c.tune_batchnorm, bn_bias_only=c.bn_bias_only
            )
        method = make_method(options)
        method.prepare(model)
        method.parameter_groups(model)
    except Exception as error:  # the code of a plug-in can raise any type
        if isinstance(error, UsageError | RunFailed) or out_of_memory.is_out_of_memory(error):
            raise
        if plugin_files.place(error):
            raise UsageError(plugin_files.one_line(error)) from error
        if not isinstance(error, ValueError | OverflowError | RuntimeError):
            raise
        raise UsageError((str(error).splitlines() or [type(error).__name__])[0]) from error
    return model, method


def network_options(options: Options, spec: data.SetSpec) -> dict[str, Any]:
    """Return the arguments of `models.build` for the network that the options select.

    `spec` describes the data set. The arguments are plain values, which checkpoints can store.
    """
    m = options.model
    data_set = {"num_classes": spec.num_classes, "in_shape": spec.in_shape}
    return {"name": m.arch, **data_set, "bn_type": m.bn_type, "width_mult": m.width_mult, **arch_options(options)}


def dense_layers(options: Options, model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of `model` that stay unconstrained, in forward order."""
    c = options.constraint
    by_depth = c.shift_depth if CONV_TYPES[c.conv_type].trainer == "shift" else None
    if not (c.first_layer_dense or c.last_layer_dense or by_depth):
        return ()
    names = list(layers_in_forward_order(model))
    dense = set(names[:-by_depth] if by_depth else [])
    if by_depth and by_depth >= len(names):
        warn(f"shift_depth: {by_depth} has no effect: the network has {len(names)} layers")
    if c.first_layer_dense:
        dense.add(names[0])
    if c.last_layer_dense:
        dense.add(names[-1])
    return tuple(name for name in names if name in dense)


def arch_options(options: Options) -> dict[str, object]:
    """Return the architecture's non-default options, as arguments of `models.build`."""
    chosen = {name: options.value(name) for name in options.arch_row.options if name != "width_mult"}
    chosen = {name: value for name, value in chosen.items() if value != FIELDS[name].default}
    if options.constraint.last_layer_dense and options.arch_row.dense_head_bias:
        chosen["head_bias"] = True
    return chosen


def make_method(options: Options) -> Method:
    """Create the training method that the options select, such as Default or Sparse."""
    row = TRAINERS[options.trainer]
    usual = {name: options.value(name) for name in ("weight_decay", "no_bn_decay", "histograms")}
    usual["label_smoothing"] = options.optim.label_smoothing or 0.0
    constructor = row.load()
    method: Method = constructor(**accepted(constructor, usual), **{name: options.value(name) for name in row.options})
    return method


def set_spec(options: Options) -> data.SetSpec:
    """Return the description of the data set (image shape, classes, normalisation). No image is read."""
    d = options.data
    return data.spec(d.set, d.data, image_size=d.image_size, pixels=d.pixels, augment=d.augment)


def load_set(options: Options) -> data.ImageSet:
    """Read and verify the data set that the options name, and return its splits.

    With --download, download the data set first if it is missing.
    """
    d = options.data
    return data.load(
        d.set,
        d.data,
        download=d.download,
        val_split=d.val_split,
        low_data=d.low_data,
        image_size=d.image_size,
        pixels=d.pixels,
        augment=d.augment,
    )


def batches(options: Options, runtime: Runtime, image_set: data.ImageSet, split: data.AnySplit) -> Batches:
    """Return the batches of a split on the device, as an iterable.

    The training split is shuffled and augmented. Raises UsageError if the processes cannot share a training batch.
    """
    d, train, process = options.data, split is image_set.train, runtime.process
    if train:
        check_batch(d.batch_size, len(split), process.world)
    return data.make_batches(
        split,
        image_set.spec,
        device=runtime.device,
        batch_size=d.batch_size if train else d.test_batch_size or d.batch_size,
        seed=options.run.seed,
        train=train,
        limit=options.run.dry_run,
        workers=d.workers,
        augmentation=data.Augmentation(
            gaussian=d.gaussian_aug,
            std_gauss=d.std_gauss,
            p_clean=d.p_clean,
            augmix=d.augmix,
            all_ops=d.all_augmix_augmentations,
            width=d.mixture_width,
            depth=d.mixture_depth,
            severity=d.aug_severity,
            jsd=d.jsd,
        ),
        one_batch=d.one_batch and train,
        part=(process.rank, process.world),
    )


def assemble(
    options: Options, runtime: Runtime, model: nn.Module, method: Method, image_set: data.ImageSet
) -> TrainingSetup:
    """Make the optimizer, learning-rate schedule and batches for a network, as a TrainingSetup.

    `model` moves to the device.
    """
    o = options.optim
    replicas = Replicas(runtime, compression=options.run.grad_compression, sync_bn=options.run.sync_bn)
    replicas.prepare(model)
    runtime.put(model)
    factor = schedule(o.lr_policy, epochs=o.epochs, warmup=o.warmup_length, step=o.lr_adjust, gamma=o.lr_gamma)
    try:
        for epoch in range(o.epochs):
            factor(epoch)
    except OverflowError as error:
        raise UsageError(
            f"lr_gamma: {o.lr_gamma} makes the learning rate infinite; it is a factor, such as 0.1"
        ) from error
    groups = method.parameter_groups(model)
    held_out = image_set.test if image_set.val is None else image_set.val
    return TrainingSetup(
        model,
        method,
        make_optimizer(o.optimizer, groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, eps=o.optimizer_eps),
        runtime,
        batches(options, runtime, image_set, image_set.train),
        batches(options, runtime, image_set, held_out),
        learning_rate=lambda epoch: o.lr * factor(epoch),
        clip=o.grad_clip,
        sync_every=options.run.print_freq if runtime.alone else min(options.run.print_freq, SYNC_EVERY),
        replicas=replicas,
    )
