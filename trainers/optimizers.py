"""Creation of optimizers, their parameter groups by module type, and BIPROP's rules for frozen parameters."""

from typing import Any

import torch
from torch import nn

from trainers.registry import OPTIMIZERS
from utils.registry import lookup
from utils.torch_compat import AnyBatchNorm, without_dynamo

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, *, weight_decay: float, no_bn_decay: bool = False) -> Groups:
    """Split the trainable parameters into two optimizer groups, batch norms and all others.

    An empty group is left out. `no_bn_decay` sets the weight decay of the batch norms to 0. Raises ValueError if no
    parameter is trainable.
    """
    norms = [p for m in model.modules() if isinstance(m, AnyBatchNorm) for p in m.parameters() if p.requires_grad]
    of_norms = {id(p) for p in norms}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in of_norms]
    if not norms and not rest:
        raise ValueError(
            "nothing would be trained: freeze_weights leaves neither scores nor batch norm; pass --no-freeze-weights"
        )
    groups = [
        {"params": norms, "weight_decay": 0.0 if no_bn_decay else weight_decay},
        {"params": rest, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str, groups: Groups, *, lr: float, momentum: float = 0.0, nesterov: bool = False, eps: float | None = None
) -> torch.optim.Optimizer:
    """Create the optimizer `name` for these parameter groups.

    Settings that the optimizer does not have are ignored. `eps` None means torch's default. Without "weight_decay"
    among the options of its row in OPTIMIZERS, the optimizer sets the weight decay of all groups to 0, as in BIPROP.
    Raises ValueError for an unknown name.
    """
    row = lookup(OPTIMIZERS, name, "optimizer")
    if "weight_decay" not in row.options:
        groups = [group | {"weight_decay": 0.0} for group in groups]
    own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov} if "momentum" in row.options else {}
    if "optimizer_eps" in row.options and eps is not None:
        own["eps"] = eps
    if row.fused:  # a fused step makes one pass over the parameters instead of one pass per operation
        own["fused"] = True
    optimizer: torch.optim.Optimizer = without_dynamo(row.load())(groups, lr=lr, **own)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def freeze_weights(
    model: nn.Module, *, learn_batchnorm: bool = False, tune_batchnorm: bool = False, bn_bias_only: bool = False
) -> None:
    """Freeze the weights and biases of `model`, so that only the parameters of its constraints train.

    These are scores, for example. The rules are BIPROP's. The flags let batch-norm parameters train too, or instead.
    With `learn_batchnorm`, batch-norm weights and biases are trained too. With `bn_bias_only`, only batch-norm biases
    are. If `tune_batchnorm` is added to one of these two flags, the scores are frozen.
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
