"""Plain convolutional networks: Conv2–8, VGG-Small and their wide and binary-activation relatives, LeNets.

A network is a *plan*: one string per group of convolutions and one per hidden linear layer, each letter a layer:

    C convolution to the group's width · L linear layer · B batch normalisation · R ReLU · S binary activation ·
    P 2×2 max-pool · D dropout, of whole channels in a group of convolutions

Layer i of the plan has index i in its Sequential, so parameters carry the names of BIPROP's checkpoints
(`convs.5.weight`).
Widths: Frankle & Carbin, ICLR 2019, fig. 2 (ConvN); Zhang et al., ECCV 2018 (VGG-Small).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from models.activations import Sign
from models.layers import batch_norm, require_size, scaled


@dataclass(frozen=True)
class Plan:
    """`groups[i]` has width `widths[i]`, `hidden[i]` width `units[i]`; a linear layer of one unit a class ends it.

    Convolutions are kernel × kernel with `padding` zeros on each side; `bias` is that of every layer; `dropout` has the
    probabilities of D among the convolutions and among the linear layers.
    """

    widths: tuple[int, ...]
    groups: tuple[str, ...]
    units: tuple[int, ...] = ()
    hidden: tuple[str, ...] = ()
    kernel: int = 3
    padding: int = 1
    bias: bool = False
    dropout: tuple[float, float] = (0.25, 0.5)


def _conv(groups: int, pair: str, hidden: str, last_pair: str = "", last_hidden: str = "") -> Plan:
    """ConvN: `groups` pairs of convolutions of doubling width and two hidden layers of 256 units."""
    pairs = (pair,) * (groups - 1) + (last_pair or pair,)
    return Plan(tuple(64 * 2**i for i in range(groups)), pairs, (256, 256), (hidden, last_hidden or hidden))


def _vgg(first: str, middle: str, last: str, width: int = 128) -> Plan:
    return Plan((width, 2 * width, 4 * width), (first, middle, last))


def _conv_family() -> dict[str, Plan]:
    plans = {}
    for layers in (2, 4, 6, 8):
        plans[f"Conv{layers}"] = _conv(layers // 2, "CRCRP", "LR")
        plans[f"Conv{layers}_BinAct"] = _conv(layers // 2, "CBSCPBS", "LBS")
    for layers in (4, 6, 8):
        plans[f"Conv{layers}Wide"] = plans[f"Conv{layers}"]
        plans[f"Conv{layers}Wide_BinAct"] = plans[f"Conv{layers}_BinAct"]
    return plans


PLANS: dict[str, Plan] = {
    **_conv_family(),
    "Conv8Wide_BinAct_ReLU": _conv(4, "CSCPBRS", "LS", last_pair="CSCPBR", last_hidden="LBR"),
    "Conv8Wide_BinAct_ReLU_Final_Act": _conv(4, "CBSCPBS", "LBS", last_hidden="LBR"),
    # VGG_Small really has neighbouring convolutions with nothing between them: the published numbers come from it.
    "VGG_Small": _vgg("CRCPB", "CCPB", "CCPBR"),
    "VGG_Small_BinAct": _vgg("CSCPBS", "CSCPBS", "CSCPBR"),
    "VGG_Small_noReLU_BinAct": _vgg("CSCPBS", "CSCPBS", "CSCPBR"),
    "VGG_Small_bn_BinAct": _vgg("CBSCPBS", "CBSCPBS", "CBSCPBR"),
    "Wide_VGG_Small": _vgg("CBSCPBS", "CBSCPBS", "CBSCPBR", width=16),
    "Wide_VGG_Small_132": _vgg("CBRCPBR", "CBRCPBR", "CBRCPBR", width=16),
    # LeCun et al. 1998 with ReLU and max-pools, as in PyTorch's tutorials; Caffe's LeNet; PyTorch's MNIST example.
    "LeNet5": Plan((6, 16), ("CRP", "CRP"), (120, 84), ("LR", "LR"), kernel=5, padding=0, bias=True),
    "LeNet5_Caffe": Plan((20, 50), ("CRP", "CRP"), (500,), ("LR",), kernel=5, padding=0, bias=True),
    "MNISTNet": Plan((32, 64), ("CR", "CRPD"), (128,), ("LRD",), padding=0, bias=True),
}


class ConvNet(nn.Module):
    """(B, C, H, W) images to (B, num_classes) logits by a `Plan`.

    Raises ValueError where the image is too small for the plan's pools or the width multiplier leaves no channel.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        num_classes: int,
        in_shape: tuple[int, int, int],
        bn_type: str = "LearnedBatchNorm",
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        letters = "".join(plan.groups)
        if plan.padding:
            require_size(in_shape, letters.count("P"), "2x2 pools")
        widths, units = (tuple(scaled(w, width_mult) for w in ws) for ws in (plan.widths, plan.units))
        self.convs = _sequence(plan, plan.groups, widths, channels, bn_type)
        features = widths[-1] * _side_behind(plan, letters, height) * _side_behind(plan, letters, width)
        if not features:
            raise ValueError(
                f"a {height}x{width} image is too small: its {plan.kernel}x{plan.kernel} convolutions and "
                "pools leave nothing of it"
            )
        self.linear = _sequence(plan, plan.hidden, units, features, bn_type)
        self.linear.append(nn.Linear(units[-1] if units else features, num_classes, bias=plan.bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


def _side_behind(plan: Plan, letters: str, side: int) -> int:
    """What the layers of `letters` leave of an image's `side`; 0 where that is nothing."""
    for letter in letters:
        side += (letter == "C") * (2 * plan.padding + 1 - plan.kernel)
        side = max(0, side >> (letter == "P"))
    return side


def _sequence(
    plan: Plan, groups: tuple[str, ...], widths: tuple[int, ...], channels: int, bn_type: str
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for letters, width in zip(groups, widths, strict=True):
        for letter in letters:
            layers.append(_layer(plan, letter, channels, width, bn_type, spatial="C" in letters))
            channels = width
    return nn.Sequential(*layers)


def _layer(plan: Plan, letter: str, channels: int, width: int, bn_type: str, *, spatial: bool) -> nn.Module:
    match letter:
        case "C":
            return nn.Conv2d(channels, width, plan.kernel, padding=plan.padding, bias=plan.bias)
        case "L":
            return nn.Linear(channels, width, bias=plan.bias)
        case "B":
            return batch_norm(bn_type, width, spatial=spatial)
        case "R":
            return nn.ReLU(inplace=True)
        case "S":
            return Sign()
        case "P":
            return nn.MaxPool2d(2)
        case "D":
            return nn.Dropout2d(plan.dropout[0]) if spatial else nn.Dropout(plan.dropout[1])
    raise AssertionError(f"plan letter {letter!r}")
