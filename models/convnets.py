"""Plain convolutional networks: Conv2–8, VGG-Small and their wide and binary-activation relatives, LeNets.

A plan (models/registry.py) lists the layers of a network. Layer i of the plan has index i in its Sequential, so that
parameters have the names of BIPROP's checkpoints, such as `convs.5.weight`. Sources of the widths: Frankle & Carbin,
ICLR 2019, fig. 2 (ConvN); Zhang et al., ECCV 2018 (VGG-Small).
"""

from collections.abc import Callable

from torch import Tensor, nn

from models.activations import Sign, inplace_relu
from models.layers import batch_norm, require_size, scaled
from models.registry import ConvPlan


class ConvNet(nn.Module):
    """Convolutional network with the layers that a plan lists.

    Maps (B, C, H, W) images to (B, num_classes) logits. `width_mult` multiplies the width of every layer but the last.
    Raises ValueError if the image is too small for the convolutions and pools of the plan, or if `width_mult` leaves a
    layer without channels.
    """

    def __init__(
        self,
        *,
        plan: ConvPlan,
        num_classes: int,
        in_shape: tuple[int, int, int],
        bn_type: str,
        width_mult: float,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        letters = "".join(plan.groups)
        if plan.padding:
            require_size(in_shape, letters.count("P"), "2x2 pools")
        widths, units = (tuple(scaled(w, width_mult) for w in ws) for ws in (plan.widths, plan.units))
        self.convs = _sequence(plan, plan.groups, widths, channels, bn_type)
        features = widths[-1] * _side_after(plan, letters, height) * _side_after(plan, letters, width)
        if not features:
            raise ValueError(
                f"a {height}x{width} image is too small: its {plan.kernel}x{plan.kernel} convolutions and "
                "pools leave no pixel"
            )
        self.linear = _sequence(plan, plan.hidden, units, features, bn_type)
        self.linear.append(nn.Linear(units[-1] if units else features, num_classes, bias=plan.bias))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.convs(x).flatten(1))
        return logits


def _side_after(plan: ConvPlan, letters: str, side: int) -> int:
    """Return the height or width (pixels) of an image after the given layers.

    `letters` has one letter per layer. `side` is the height or width of the input. The result is 0 if no pixel is left.
    """
    for letter in letters:
        if letter == "C":
            side = max(0, side + 2 * plan.padding + 1 - plan.kernel)
        elif letter == "P":
            side //= 2
    return side


def _sequence(
    plan: ConvPlan, groups: tuple[str, ...], widths: tuple[int, ...], channels: int, bn_type: str
) -> nn.Sequential:
    """Build the layers of all groups of a plan in sequence.

    `groups` has one string per group and one letter per layer. `widths` has the output channels of each group, and
    `channels` is the number of input channels.
    """
    layers: list[nn.Module] = []
    for letters, width in zip(groups, widths, strict=True):
        for letter in letters:
            layers.append(_layer(plan, letter, channels, width, bn_type, spatial="C" in letters))
            channels = width
    return nn.Sequential(*layers)


def _layer(plan: ConvPlan, letter: str, channels: int, width: int, bn_type: str, *, spatial: bool) -> nn.Module:
    """Build the layer that a letter stands for, such as C for a convolution.

    Convolutions and linear layers map `channels` to `width` channels.
    """
    layers: dict[str, Callable[[], nn.Module]] = {
        "C": lambda: nn.Conv2d(channels, width, plan.kernel, padding=plan.padding, bias=plan.bias),
        "L": lambda: nn.Linear(channels, width, bias=plan.bias),
        "B": lambda: batch_norm(bn_type, width, spatial=spatial),
        "R": inplace_relu,
        "S": Sign,
        "P": lambda: nn.MaxPool2d(2),
        "D": lambda: nn.Dropout2d(plan.dropout[0]) if spatial else nn.Dropout(plan.dropout[1]),
    }
    return layers[letter]()
