"""Networks: `build` makes a plain one by its name; models.constraints constrains it."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import TYPE_CHECKING, Any

from models.registry import ARCHS, Arch
from utils.registry import accepted, lookup

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHS", "build"]


def build(
    name: str,
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    bn_type: str = "LearnedBatchNorm",
    width_mult: float = 1.0,
    **arch_options: Any,
) -> nn.Module:
    """Build the network of the architecture `name` with ordinary, unconstrained layers.

    The network maps (B, *in_shape) images to (B, num_classes) logits. in_shape: (channels, height, width).
    arch_options: the options that only this architecture has. FC and the MLPs have `hidden`, `bias`, `activation`,
    `norm` and `dropout`, the ResNets `head_bias` and `readout`.

    Raises ValueError for an unknown name, an option of another architecture, an image that is too small, or a
    `width_mult` that leaves a layer without channels.
    """
    arch = lookup(ARCHS, name, "arch")
    shared = {"num_classes": num_classes, "in_shape": in_shape, "bn_type": bn_type, "width_mult": width_mult}
    try:
        constructor = arch.load()
        _check_options(arch, arch_options)
        taken = accepted(constructor, shared)
        return constructor(**taken, **{**arch.arguments, **arch_options})
    except ValueError as error:
        raise ValueError(f"arch {name}: {error}") from error


def _check_options(arch: Arch, options: Iterable[str]) -> None:
    for option in options:
        if option not in signature(arch.load()).parameters or option == "plan":
            takers = [name for name, other in ARCHS.items() if option in signature(other.load()).parameters]
            others = f" and {len(takers) - 1} others" if len(takers) > 1 else ""
            raise ValueError(f"{option}: not an option of this arch, but of {takers[0] + others if takers else 'none'}")
