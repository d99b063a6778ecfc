"""Pruning a trained plain network: how much each weight or unit matters, and which of them fall at a percentage.

With s the importance of n weights or units and p the percentage, those with s < percentile_p(s) fall; the percentile
is interpolated linearly between order statistics, as numpy does by default. The output layer is never pruned.
Importance of a weight w: |w| (magnitude), w² (l2), U(0, 1) (random), Σ over batches of |w · ∂loss/∂w| (taylor: the
first-order change of the loss without it, Molchanov et al., CVPR 2019, eq. 8, with |·| for the square). Of a unit: the
sum over its incoming weights; for l2 the root of it, the Euclidean norm; for random one draw.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.constraints import weight_layers
from models.pruning.channel_cut import Units
from utils.registry import lookup

SCOPES = ("layer", "global")
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (weight, effect) -> importance
    "magnitude": lambda weight, _: weight.abs(),
    "l2": lambda weight, _: weight.square(),
    "random": lambda weight, _: torch.rand(weight.shape),
    "taylor": lambda _, effect: effect,
}
Weights = Mapping[str, Tensor]  # layer's name -> its weight, or something of that shape


def hidden_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of every Conv2d and Linear but the last, the output layer. Raises ValueError where it is alone."""
    weights = {name: layer.weight.detach() for name, layer in list(weight_layers(model).items())[:-1]}
    if not weights:
        raise ValueError("there is nothing to prune: the network has an output layer alone")
    return weights


def effects(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Name -> Σ |w · ∂loss/∂w| over `losses`, scalars computed with `model`, for every Conv2d and Linear.

    Added up in float64: a float32 sum over many batches loses what the late ones add.
    """
    weights = {name: layer.weight for name, layer in weight_layers(model).items()}
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            sums[name] += (weight.detach() * gradient).abs()
    return {name: total.to(weights[name].dtype) for name, total in sums.items()}


def weight_scores(weights: Weights, criterion: str = "magnitude", effects: Weights | None = None) -> list[Tensor]:
    """The importance of every weight, of each tensor's shape. taylor needs `effects`; random draws from torch's own
    generator. Raises ValueError for an unknown criterion."""
    score = lookup(CRITERIA, criterion, "criterion")
    return [score(weight, weight if effects is None else effects[name]) for name, weight in weights.items()]


def unit_scores(
    weights: Weights, groups: Sequence[Units], criterion: str = "l2", effects: Weights | None = None
) -> list[Tensor]:
    """The importance of every unit, float64 (width,) for each of `groups`, over all layers that write it."""
    if criterion == "random":
        return [torch.rand(group.width, dtype=torch.float64) for group in groups]
    found = []
    for group in groups:
        rows = {name: weights[name].double() for name in group.writers}
        total = torch.zeros(group.width, dtype=torch.float64)
        for units, score in zip(group.writers.values(), weight_scores(rows, criterion, effects), strict=True):
            total.index_add_(0, units[units >= 0], score.flatten(1).sum(1).double().cpu()[units >= 0])
        found.append(total.sqrt() if criterion == "l2" else total)
    return found


def survivors(scores: Sequence[Tensor], percent: float, scope: str = "layer") -> list[Tensor]:
    """Bool masks of the shapes of `scores`, False where a score is strictly below the percentile of its own tensor.

    `scope="global"` takes one percentile of all of them together and leaves each at least its largest. Raises
    ValueError for a percentage outside [0, 100] or an unknown scope.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent: {percent:g} given, 0 to 100 expected")
    if scope not in SCOPES:
        raise ValueError(f"scope: {scope!r} is unknown; one of {', '.join(SCOPES)}")
    arrays = [score.double().cpu().numpy() for score in scores]  # in float32 numpy places the percentile too coarsely
    if scope == "global":
        limit = np.percentile(np.concatenate([array.ravel() for array in arrays]), percent)
        return [torch.from_numpy(array >= min(limit, array.max())) for array in arrays]
    return [torch.from_numpy(array >= np.percentile(array, percent)) for array in arrays]


@torch.no_grad()
def zero_weights(model: nn.Module, kept: Weights) -> None:
    """Set to 0, in place, the weights of each layer named where its bool mask of the weight's shape is False."""
    layers = weight_layers(model)
    for name, mask in kept.items():
        layers[name].weight.masked_fill_(~mask.to(layers[name].weight.device), 0)
