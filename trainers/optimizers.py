"""Optimizers by name, and parameter groups by module type."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.registry import lookup

Groups = list[dict[str, Any]]

# Weight decay acts on scores under SGD and not under Adam: BIPROP's behaviour, which its published numbers rest on.
# "fused" does a step in one pass over the parameters instead of one per operation.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {  # (groups, lr, momentum, nesterov, eps where given)
    "sgd": lambda groups, lr, momentum, nesterov, **_eps: torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True
    ),
    "adam": lambda groups, lr, _m, _n, **eps: torch.optim.Adam(_without_decay(groups), lr=lr, fused=True, **eps),
    "adamw": lambda groups, lr, _m, _n, **eps: torch.optim.AdamW(groups, lr=lr, fused=True, **eps),
    "radam": lambda groups, lr, _m, _n, **eps: torch.optim.RAdam(_without_decay(groups), lr=lr, **eps),
    "adadelta": lambda groups, lr, _m, _n, **eps: torch.optim.Adadelta(_without_decay(groups), lr=lr, **eps),
}


def _without_decay(groups: Groups) -> Groups:
    return [group | {"weight_decay": 0.0} for group in groups]


def parameter_groups(model: nn.Module, *, weight_decay: float, no_bn_decay: bool = False) -> Groups:
    """The trainable parameters in two groups, those of batch normalisations and the rest; empty groups are left out.

    `no_bn_decay` spares the first from weight decay. Raises ValueError where nothing is trainable.
    """
    norms = [p for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters() if p.requires_grad]
    of_norms = {id(p) for p in norms}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in of_norms]
    if not norms and not rest:
        raise ValueError(
            "nothing would be trained: freeze_weights leaves no score and no batch norm; try --no-freeze-weights"
        )
    groups = [
        {"params": norms, "weight_decay": 0.0 if no_bn_decay else weight_decay},
        {"params": rest, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str, groups: Groups, *, lr: float, momentum: float = 0.9, nesterov: bool = False, eps: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer called `name` over `groups`, with torch's `eps` unless one is given. Raises ValueError for an
    unknown name."""
    _forget_compiling()
    own = {} if eps is None else {"eps": eps}
    optimizer = lookup(OPTIMIZERS, name, "optimizer")(groups, lr, momentum, nesterov, **own)
    step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    optimizer.__class__ = type(type(optimizer).__name__, (type(optimizer),), {"step": step})
    return optimizer


def _forget_compiling() -> None:
    """Spare an optimizer the import of torch._dynamo, which takes as long as that of torch (1.2 s) and which only
    torch.compile needs: fill the cache in which torch keeps each method's dynamo-free form with the method itself."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            plain.__dict__.setdefault("__dynamo_disable", plain)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def freeze_weights(
    model: nn.Module, *, learn_batchnorm: bool = False, tune_batchnorm: bool = False, bn_bias_only: bool = False
) -> None:
    """BIPROP's freezing rules, by module type: everything is frozen but the constraints' parameters (scores).

    `learn_batchnorm` also trains batch-norm weight and bias, `bn_bias_only` the bias alone; with one of them
    `tune_batchnorm` freezes the scores instead.
    """
    model.requires_grad_(False)
    scores = not (tune_batchnorm and (learn_batchnorm or bn_bias_only))
    for module in model.modules():
        constraint = getattr(module, "constraint", None)
        if constraint is not None:
            constraint.requires_grad_(scores)
        elif isinstance(module, _BatchNorm) and module.affine:
            module.weight.requires_grad_(learn_batchnorm)
            module.bias.requires_grad_(learn_batchnorm or bn_bias_only)
