"""The table of architectures and `build`."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature

from torch import nn

from models import convnets, resnet
from models.convnets import ConvNet
from models.mlp import MLP
from models.resnet import ResNet
from utils.registry import lookup

ARCHS: dict[str, Callable[..., nn.Module]] = {
    "FC": partial(MLP, hidden=(300, 100)),
    "MLP": MLP,
    "CircuitMLP": partial(MLP, hidden=(4000, 4000, 4000), activation="tanh", norm="batch_norm", norm_last=True),
    **{name: partial(ConvNet, plan=plan) for name, plan in convnets.PLANS.items()},
    **{name: partial(ResNet, plan=plan) for name, plan in resnet.PLANS.items()},
}
FAMILIES: dict[str, Callable[..., nn.Module]] = {"FC and MLP": MLP, "Conv and VGG": ConvNet, "the ResNets": ResNet}


def build(
    name: str,
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    bn_type: str = "LearnedBatchNorm",
    width_mult: float = 1.0,
    **arch_options: object,
) -> nn.Module:
    """A plain network from (B, *in_shape) images to (B, num_classes) logits, constrained by nothing.

    `in_shape` is (channels, height, width). `arch_options` are the architecture's own: for FC and the MLPs `hidden`,
    `bias`, `activation`, `norm` and `dropout`, for the ResNets `head_bias` and `readout`. Raises ValueError for an
    unknown name, an option of another architecture, an image too small for this one, or a `width_mult` that leaves a
    layer no channel.
    """
    make = lookup(ARCHS, name, "arch")
    try:
        _check_options(make, arch_options)
        return make(num_classes=num_classes, in_shape=in_shape, bn_type=bn_type, width_mult=width_mult, **arch_options)
    except ValueError as error:
        raise ValueError(f"arch {name}: {error}") from error


def _check_options(make: Callable[..., nn.Module], arch_options: Mapping[str, object]) -> None:
    for option in arch_options:
        if option not in signature(make).parameters:
            takers = [family for family, kind in FAMILIES.items() if option in signature(kind).parameters]
            raise ValueError(f"{option}: no such option; " + (f"{takers[0]} take it" if takers else "none takes it"))
