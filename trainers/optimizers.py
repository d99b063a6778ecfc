"""Optimizers by name, parameter groups by module type, and BIPROP's rules of freezing."""

from typing import Any

import torch
from torch import nn

from trainers.registry import OPTIMIZERS
from utils.registry import lookup
from utils.torch_compat import AnyBatchNorm, without_dynamo

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, *, weight_decay: float, no_bn_decay: bool = False) -> Groups:
    """Return the trainable parameters in two groups, those of batch norms and the rest, without empty groups.

    `no_bn_decay` sets the weight decay of the first group to 0. Raises ValueError if no parameter is trainable.
    """
    norms = [p for m in model.modules() if isinstance(m, AnyBatchNorm) for p in m.parameters() if p.requires_grad]
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
    """Return the optimizer `name` of OPTIMIZERS over parameter groups; `eps` None means torch's default.

    Raises ValueError for an unknown name.
    """
    row = lookup(OPTIMIZERS, name, "optimizer")
    if "weight_decay" not in row.options:
        groups = [group | {"weight_decay": 0.0} for group in groups]
    own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov} if "momentum" in row.options else {}
    if "optimizer_eps" in row.options and eps is not None:
        own["eps"] = eps
    if row.fused:
        own["fused"] = True
    optimizer: torch.optim.Optimizer = without_dynamo(row.load())(groups, lr=lr, **own)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def freeze_weights(
    model: nn.Module, *, learn_batchnorm: bool = False, tune_batchnorm: bool = False, bn_bias_only: bool = False
) -> None:
    """Freeze all parameters of `model` except the constraints' own, such as scores: BIPROP's rules, by module type.

    `learn_batchnorm` also trains weights and biases of batch norms, `bn_bias_only` their biases alone. With one of
    these, `tune_batchnorm` freezes the scores instead.
    """
    model.requires_grad_(False)
    trains_scores = not (tune_batchnorm and (learn_batchnorm or bn_bias_only))
    for module in model.modules():
        constraint = getattr(module, "constraint", None)
        if constraint is not None:
            constraint.requires_grad_(trains_scores)
        elif isinstance(module, AnyBatchNorm) and module.affine:
            module.weight.requires_grad_(learn_batchnorm)
            module.bias.requires_grad_(learn_batchnorm or bn_bias_only)
