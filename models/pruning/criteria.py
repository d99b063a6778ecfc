"""Pruning criteria for a trained plain network: the importance of weights and units, and the masks to prune by.

Of n weights or units with importances s, pruning p percent removes those with s < percentile_p(s). The percentile is
interpolated linearly between order statistics, which is numpy's default. The output layer is never pruned.

    criterion    importance of a weight w        importance of a unit, over its incoming weights
    magnitude    |w|                             sum
    l2           w²                              square root of the sum: the Euclidean norm
    random       drawn from U(0, 1)              drawn from U(0, 1)
    taylor       Σ over batches |w · ∂loss/∂w|   sum

taylor is the first-order change of the loss without the weight (Molchanov et al., CVPR 2019, eq. 8, with |·| in place
of the square).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.constraints.attachment import weight_layers
from models.constraints.forward_order import recorded_calls
from models.pruning.channel_cut import UnitGroup
from utils.registry import lookup

SCOPES = ("layer", "global")
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (weight, saliency of taylor) -> importance
    "magnitude": lambda weight, _: weight.abs(),
    "l2": lambda weight, _: weight.square(),
    "random": lambda weight, _: torch.rand(weight.shape),
    "taylor": lambda _, saliency: saliency,
}
Weights = Mapping[str, Tensor]  # layer name -> its weight, or a tensor of the weight's shape


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of every Conv2d and Linear layer by layer name."""
    return {name: layer.weight.detach() for name, layer in weight_layers(model).items()}


def hidden_weights(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the weights of all layers except the output layer, by layer name.

    The layers are the Conv2d and Linear layers, in the order of the forward pass. The output layer is the last layer
    that a forward pass over `images` calls. Raises ValueError if the network has no other layer.
    """
    weights = layer_weights(model)
    calls = [name for name in recorded_calls(model, images) if name in weights]
    hidden = {name: weights[name] for name in calls if name != calls[-1]}
    if not hidden:
        raise ValueError("nothing to prune: the network has only an output layer")
    return hidden


def taylor_saliencies(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the Taylor saliency of every weight, by layer name.

    The saliency of a weight w of a Conv2d or Linear layer is Σ |w · ∂loss/∂w| over `losses`. The losses are scalars
    computed with `model`, one per batch.
    """
    weights = {name: layer.weight for name, layer in weight_layers(model).items()}
    # A float32 sum over many batches would lose what the late batches add.
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            sums[name] += (weight.detach() * gradient).abs()
    return {name: total.to(weights[name].dtype) for name, total in sums.items()}


def weight_scores(weights: Weights, criterion: str = "magnitude", saliencies: Weights | None = None) -> list[Tensor]:
    """Return the importance of every weight by a pruning criterion, as one tensor per layer.

    Each tensor has the shape of the weight. `weights` maps layer names to weights. Criterion taylor requires
    `saliencies`, the result of `taylor_saliencies`. Criterion random draws from torch's global generator. Raises
    ValueError if the criterion is unknown.
    """
    score = lookup(CRITERIA, criterion, "criterion")
    return [score(weight, weight if saliencies is None else saliencies[name]) for name, weight in weights.items()]


def unit_scores(
    weights: Weights, groups: Sequence[UnitGroup], criterion: str = "l2", saliencies: Weights | None = None
) -> list[Tensor]:
    """Return the importance of every unit (output channel), computed from its incoming weights.

    There is one float64 tensor (width,) for each group of units in `groups`. `weights` has the weight of every writer.
    `criterion` and `saliencies` are as in `weight_scores`.
    """
    if criterion == "random":
        return [torch.rand(group.width, dtype=torch.float64) for group in groups]
    scores = []
    for group in groups:
        written = {name: weights[name].double() for name in group.writers}
        total = torch.zeros(group.width, dtype=torch.float64)
        for units, score in zip(group.writers.values(), weight_scores(written, criterion, saliencies), strict=True):
            total.index_add_(0, units[units >= 0], score.flatten(1).sum(1).double().cpu()[units >= 0])
        scores.append(total.sqrt() if criterion == "l2" else total)
    return scores


def keep_masks(scores: Sequence[Tensor], percent: float, scope: str = "layer") -> list[Tensor]:
    """Return bool masks that are False for the scores below the `percent`-th percentile.

    There is one mask per tensor of `scores`, by the percentile of this tensor. With `scope="global"`, the percentile is
    that of all tensors together, and each tensor keeps at least its largest score. Raises ValueError for a percentage
    outside [0, 100] or an unknown scope.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent: {percent:g} given, 0 to 100 expected")
    lookup(dict.fromkeys(SCOPES), scope, "scope")
    arrays = [score.double().cpu().numpy() for score in scores]  # float32 would round the interpolated percentile
    if scope == "global":
        limit = np.percentile(np.concatenate([array.ravel() for array in arrays]), percent)
        return [torch.from_numpy(array >= min(limit, array.max())) for array in arrays]
    return [torch.from_numpy(array >= np.percentile(array, percent)) for array in arrays]


@torch.no_grad()
def zero_weights(model: nn.Module, kept: Weights) -> None:
    """Set the pruned weights of a network to zero in place.

    `kept` maps layer names to bool masks, False for pruned weights. Each mask has the shape of the weight. Layers
    without a mask stay as they are.
    """
    layers = weight_layers(model)
    for name, mask in kept.items():
        layers[name].weight.masked_fill_(~mask.to(layers[name].weight.device), 0)
