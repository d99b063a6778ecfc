"""Checkpoints in BIPROP's keys, shapes, types and file formats, made from our networks."""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

import models
from models.constraints import constrain, weight_layers


def small_net(arch="Conv2_BinAct", conv_type="SubnetConv", seed=0, num_classes=3, density=0.3, **options):
    """Return a network of a few thousand weights that has seen one batch; k·n is not whole in all layers."""
    torch.manual_seed(seed)
    model = models.build(arch, num_classes=num_classes, in_shape=(1, 4, 4), width_mult=0.125, **options)
    constrain(model, conv_type, density=density)
    model(torch.randn(8, 1, 4, 4))
    return model.eval()


def logits(model):
    """Return the logits of five fixed images."""
    return model.eval()(torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)))


def original_state(model, module=True):
    """Return BIPROP's `state_dict` of the same network, where linear layers are 1×1 convolutions."""
    linear = {name for name, layer in weight_layers(model).items() if isinstance(layer, nn.Linear)}
    state = OrderedDict()
    for key, value in model.state_dict().items():
        layer, _, of = key.replace(".constraint.", ".").rpartition(".")
        matrix = layer in linear and of in ("weight", "scores")
        state["module." * module + f"{layer}.{of}"] = value.clone()[:, :, None, None] if matrix else value.clone()
    return state


def original(model, module=True, **changes):
    """Return the checkpoint of BIPROP's main.py after epoch 7 of an MPT-1/32 run with cosine_lr, with `changes`.

    The learning rate is a numpy float64, as in BIPROP.
    """
    scores = [p.detach().clone() for key, p in model.named_parameters() if "scores" in key]
    groups = [{"params": [], "lr": np.float64(0.1)}, {"params": list(range(len(scores))), "lr": np.float64(0.05)}]
    return {
        "epoch": 7,
        "arch": "Conv2_BinAct",
        "state_dict": original_state(model, module),
        "best_acc1": 61.5,
        "best_acc5": 95.25,
        "best_train_acc1": 60.0,
        "best_train_acc5": 94.0,
        "optimizer": {
            "state": {i: {"momentum_buffer": torch.ones_like(s)} for i, s in enumerate(scores)},
            "param_groups": groups,
        },
        "curr_acc1": 61.0,
        "curr_acc5": 95.0,
        "conv_type": "SubnetConv",
        "prune_rate": 0.3,
        "train_augmentation": "Default",
        "p_clean": 1.0,
        **changes,
    }


def before_2022(content):
    """Return `content` without the entries that parallel_main.py and main.py before February 2022 do not write."""
    return {key: value for key, value in content.items() if key in list(content)[: list(content).index("conv_type")]}


def write(content, path, legacy=False, old_numpy=False):
    """Write `content` to `path` and return it: in the format of torch < 1.6 if `legacy`, as numpy < 2 if `old_numpy`.

    numpy < 2 stores its scalars under another module name; `old_numpy` needs `legacy`.
    """
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if old_numpy:
        data = path.read_bytes()
        assert b"cnumpy._core.multiarray\nscalar\n" in data
        path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return path
