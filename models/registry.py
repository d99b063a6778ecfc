"""Registry of architectures, and the allowed values of their options. Importable without torch.

To add an architecture, add a plan here, or a file with an nn.Module and a row in ARCHS. Add a case to tests/cases.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from utils.registry import load_object

if TYPE_CHECKING:
    from torch import nn

# name -> has weight and bias
BN_TYPES = {"LearnedBatchNorm": True, "AffineBatchNorm": True, "NonAffineBatchNorm": False}
READOUTS = ("pooled", "original40")
GAINS = ("relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear")  # of nn.init.calculate_gain
ACTIVATIONS = {  # name -> constructor
    "relu": "models.activations:inplace_relu",
    "tanh": "torch.nn:Tanh",
    "sign": "models.activations:Sign",
}
MLP_NORMS = {  # name -> constructor, called with (bn_type, width)
    "none": None,
    "batch_norm": "models.layers:batch_norm_1d",
    "hard_invert": "models.layers:hard_invert",
    "soft_invert": "models.layers:soft_invert",
}


@dataclass(frozen=True)
class Init:
    """Weight initialization by a distribution and a scale, a row of the registry INITS.

    distribution: "normal", "uniform" (both of standard deviation 1), "uniform_1" (on [-1, 1]), "signs" (±1), "coin"
        (0 or 1) or "constant" (1).
    scale: "gain" (gain / √fan), "xavier" (√(2 / (fan_in + fan_out))), "default" (1 / √fan_in) or "one".
    scale_fan: the option scale_fan applies, as in BIPROP.

    models/initial.py computes the weights.
    """

    distribution: str
    scale: str
    scale_fan: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the command-line options that affect this initialization."""
        by_gain = ("mode", "nonlinearity") if self.scale == "gain" else ()
        return (*by_gain, "scale_fan") if self.scale_fan else by_gain


INITS = {
    "kaiming_normal": Init("normal", "gain", scale_fan=True),
    "kaiming_uniform": Init("uniform", "gain"),
    "signed_constant": Init("signs", "gain", scale_fan=True),
    "unsigned_constant": Init("constant", "gain", scale_fan=True),
    "usc_bernoulli": Init("coin", "gain", scale_fan=True),
    "bernoulli": Init("coin", "one"),
    "ones": Init("constant", "one"),
    "xavier_normal": Init("normal", "xavier"),
    "xavier_uniform": Init("uniform", "xavier"),
    "xavier_constant": Init("signs", "xavier"),
    "standard": Init("uniform_1", "default"),
    "binary": Init("signs", "one"),
}


@dataclass(frozen=True)
class ConvPlan:
    """Layers of a plain convolutional network, as strings of one letter per layer.

    There is one string per group of convolutions and per hidden linear layer. Each letter of a string stands for a
    layer:

        C  convolution to the width of the group     R  ReLU
        L  linear layer                              S  binary activation (sign)
        B  batch normalisation                       P  2×2 max-pooling
        D  dropout; in a group of convolutions it drops whole channels

    `groups[i]` has `widths[i]` channels and `hidden[i]` has `units[i]` units. A linear layer with one unit per class
    follows. Convolutions are kernel × kernel with `padding` zeros on each side. `bias` applies to every layer.
    `dropout` holds two probabilities, the first for the groups of convolutions, the second for the linear layers.
    """

    widths: tuple[int, ...]
    groups: tuple[str, ...]
    units: tuple[int, ...] = ()
    hidden: tuple[str, ...] = ()
    kernel: int = 3
    padding: int = 1
    bias: bool = False
    dropout: tuple[float, float] = (0.25, 0.5)

    @property
    def has_batch_norm(self) -> bool:
        """True if at least one layer of the network is a batch norm."""
        return any("B" in letters for letters in (*self.groups, *self.hidden))


def _convn(groups: int, pair: str, hidden: str, last_pair: str = "", last_hidden: str = "") -> ConvPlan:
    """Return the layers of a ConvN network, such as Conv4.

    They are `groups` times the layers `pair`, then two times the layers `hidden`. Each string has one letter per layer
    (see ConvPlan). A pair has two convolutions and twice the channels of the pair before. A hidden layer has 256 units.
    `last_pair` and `last_hidden` replace the last of each.
    """
    pairs = (pair,) * (groups - 1) + (last_pair or pair,)
    return ConvPlan(tuple(64 * 2**i for i in range(groups)), pairs, (256, 256), (hidden, last_hidden or hidden))


def _vgg(first: str, middle: str, last: str, width: int = 128) -> ConvPlan:
    """Return the layers of a VGG_Small network.

    The strings `first`, `middle` and `last` have one letter per layer of a group (see ConvPlan). The convolutions of
    the groups have 1, 2 and 4 times `width` channels.
    """
    return ConvPlan((width, 2 * width, 4 * width), (first, middle, last))


def _conv_family() -> dict[str, ConvPlan]:
    plans = {}
    for layers in (2, 4, 6, 8):
        plans[f"Conv{layers}"] = _convn(layers // 2, "CRCRP", "LR")
        plans[f"Conv{layers}_BinAct"] = _convn(layers // 2, "CBSCPBS", "LBS")
    for layers in (4, 6, 8):
        plans[f"Conv{layers}Wide"] = plans[f"Conv{layers}"]
        plans[f"Conv{layers}Wide_BinAct"] = plans[f"Conv{layers}_BinAct"]
    return plans


CONV_PLANS: dict[str, ConvPlan] = {
    **_conv_family(),
    "Conv8Wide_BinAct_ReLU": _convn(4, "CSCPBRS", "LS", last_pair="CSCPBR", last_hidden="LBR"),
    "Conv8Wide_BinAct_ReLU_Final_Act": _convn(4, "CBSCPBS", "LBS", last_hidden="LBR"),
    # VGG_Small has adjacent convolutions with nothing between them, as in the original: the published numbers need it.
    "VGG_Small": _vgg("CRCPB", "CCPB", "CCPBR"),
    "VGG_Small_BinAct": _vgg("CSCPBS", "CSCPBS", "CSCPBR"),
    "VGG_Small_noReLU_BinAct": _vgg("CSCPBS", "CSCPBS", "CSCPBR"),
    "VGG_Small_bn_BinAct": _vgg("CBSCPBS", "CBSCPBS", "CBSCPBR"),
    "Wide_VGG_Small": _vgg("CBSCPBS", "CBSCPBS", "CBSCPBR", width=16),
    "Wide_VGG_Small_132": _vgg("CBRCPBR", "CBRCPBR", "CBRCPBR", width=16),
    # LeCun et al. 1998 with ReLU and max-pools, as in PyTorch's tutorials; Caffe's LeNet; PyTorch's MNIST example.
    "LeNet5": ConvPlan((6, 16), ("CRP", "CRP"), (120, 84), ("LR", "LR"), kernel=5, padding=0, bias=True),
    "LeNet5_Caffe": ConvPlan((20, 50), ("CRP", "CRP"), (500,), ("LR",), kernel=5, padding=0, bias=True),
    "MNISTNet": ConvPlan((32, 64), ("CR", "CRPD"), (128,), ("LRD",), padding=0, bias=True),
}


@dataclass(frozen=True)
class ResNetPlan:
    """Layers of a residual network, which has a stem and several stages of blocks.

    Stage i has `depths[i]` blocks of `widths[i]` channels. Every stage but the first halves the image. `stem` is
    "cifar" (3×3) or "imagenet" (7×7 of stride 2 and a max-pool). `norm` is "v1", "v2" or "v2_twice" (see
    models/resnet.py). `act` is "relu" or "sign". A bottleneck block has base_width / 64 times the width of its stage
    inside and 4 times that width at its output.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = "imagenet"
    bottleneck: bool = False
    base_width: int = 64
    norm: str = "v1"
    act: str = "relu"

    @property
    def halvings(self) -> int:
        """Number of times that the network halves the height and width of the image."""
        return len(self.widths) - 1 + 2 * (self.stem == "imagenet")


def _wide(plan: ResNetPlan, factor: float) -> ResNetPlan:
    """Return a ResNet plan with wider stages.

    The stages have 64, then 64, 128 and 256 times (factor + 1) channels.
    """
    return replace(plan, widths=(64, *(int(width * (factor + 1)) for width in (64, 128, 256))))


VARIANTS: dict[str, dict[str, str]] = {
    "": {},
    "_BinAct": {"act": "sign"},
    "_v2": {"norm": "v2"},
    "_BinAct_v2": {"act": "sign", "norm": "v2"},
}


def _variants(name: str, plan: ResNetPlan, *variants: str) -> dict[str, ResNetPlan]:
    """Return the plans of several variants of an architecture, by name.

    `variants` has one name suffix per variant, such as "_BinAct" (see VARIANTS).
    """
    return {f"{name}{variant}": replace(plan, **VARIANTS[variant]) for variant in variants}  # type: ignore[arg-type]


R18, R34 = ResNetPlan((2, 2, 2, 2)), ResNetPlan((3, 4, 6, 3))
R50, R101 = ResNetPlan((3, 4, 6, 3), bottleneck=True), ResNetPlan((3, 4, 23, 3), bottleneck=True)
WR50, WR101 = replace(R50, base_width=128), replace(R101, base_width=128)
C18, C34, C50, C101 = (replace(plan, stem="cifar") for plan in (R18, R34, R50, R101))
SMALL = {depth: ResNetPlan(3 * ((depth - 2) // 6,), (16, 32, 64), "cifar") for depth in (20, 32, 44, 56, 110)}
NORM_TWICE = {"ResNet18": R18, "ResNet34": R34, "WideResNet18": _wide(R18, 2), "WideResNet34_2": _wide(R34, 2)}

RESNET_PLANS: dict[str, ResNetPlan] = {
    **_variants("cResNet18", C18, *VARIANTS),
    **_variants("cResNet34", C34, "_BinAct"),
    **_variants("cResNet50", C50, ""),
    **_variants("cResNet101", C101, ""),
    **_variants("cWideResNet18_2", _wide(C18, 2), "", "_BinAct"),
    **_variants("cWideResNet18_3", _wide(C18, 3), "_BinAct"),
    **{
        name: p
        for depth, plan in SMALL.items()
        for name, p in _variants(f"cResNet{depth}", plan, "", "_BinAct").items()
    },
    **_variants("ResNet18", R18, "", "_BinAct"),
    **_variants("ResNet34", R34, "", "_BinAct", "_BinAct_v2"),
    **_variants("ResNet50", R50, *VARIANTS),
    **_variants("ResNet101", R101, "", "_BinAct"),
    **_variants("WideResNet18_2", _wide(R18, 2), "_BinAct", "_BinAct_v2"),
    **_variants("WideResNet18_3", _wide(R18, 2.5), "_BinAct"),
    **_variants("WideResNet34_2", _wide(R34, 2), "", "_BinAct", "_BinAct_v2"),
    **_variants("WideResNet34_3", _wide(R34, 3), "_BinAct", "_BinAct_v2"),
    **_variants("WideResNet50_2", WR50, "", "_BinAct", "_v2"),
    # This network widens both its stages and its bottlenecks: 152 million weights, as in the original.
    **_variants("WideResNet50_2", _wide(WR50, 2), "_BinAct_v2"),
    **_variants("WideResNet101_2", WR101, ""),
    **{f"{name}_v2": replace(plan, norm="v2_twice") for name, plan in NORM_TWICE.items()},
    # Networks for ImageNet, stem included, in spite of their names. In BIPROP the wide ones fail, with factors 2 and 3.
    **_variants("cifarResNet18", R18, "_BinAct"),
    **_variants("cifarWideResNet18_2", _wide(R18, 2), "_BinAct"),
    **_variants("cifarWideResNet18_3", _wide(R18, 3), "_BinAct"),
}


@dataclass(frozen=True)
class Arch:
    """Constructor and command-line options of an architecture, a row of the registry ARCHS.

    constructor: path "package.module:name" of the nn.Module, or a function that returns an nn.Module. It is called with
        `arguments`, the command-line options in `options`, and those of num_classes, in_shape, bn_type and width_mult
        that it takes.
    options: names of the command-line options that this architecture has and others do not.
    has_batch_norm: the network has batch norm; None if the option `norm` decides.
    dense_head_bias: an unconstrained last layer has a bias, as in BIPROP.
    takes_bn_type: the constructor takes bn_type.
    """

    constructor: "str | Callable[..., nn.Module]"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    has_batch_norm: bool | None = None
    dense_head_bias: bool = False
    takes_bn_type: bool = True

    def load(self) -> "Callable[..., nn.Module]":
        """Import and return the nn.Module class of this architecture, or a function that returns the network."""
        constructor: Callable[..., nn.Module] = load_object(self.constructor)
        return constructor

    def normalises(self, norm: str | None) -> bool:
        """Return True if the network has batch norm.

        `norm` is the value of the command-line option --norm, or None.
        """
        norm = norm or self.arguments.get("norm", "none")
        return norm == "batch_norm" if self.has_batch_norm is None else self.has_batch_norm


MLP, CONVNET, RESNET = "models.mlp:MLP", "models.convnets:ConvNet", "models.resnet:ResNet"
MLP_OPTIONS = ("hidden", "bias", "activation", "norm", "dropout")
CIRCUIT = {"hidden": (4000, 4000, 4000), "activation": "tanh", "norm": "batch_norm", "norm_last": True}


def _own_options(name: str) -> tuple[str, ...]:
    """Return the names of the command-line options that are specific to an architecture.

    Most other architectures do not have these options.
    """
    width = ("width_mult",) if "Wide" in name else ()
    return (*width, "readout") if name.removesuffix("_BinAct") in map("cResNet{}".format, SMALL) else width


ARCHS: dict[str, Arch] = {
    "FC": Arch(MLP, has_batch_norm=False),
    "MLP": Arch(MLP, options=MLP_OPTIONS),
    "CircuitMLP": Arch(MLP, CIRCUIT, MLP_OPTIONS),
    **{
        name: Arch(CONVNET, {"plan": plan}, _own_options(name), plan.has_batch_norm)
        for name, plan in CONV_PLANS.items()
    },
    **{
        name: Arch(RESNET, {"plan": plan}, _own_options(name), has_batch_norm=True, dense_head_bias=True)
        for name, plan in RESNET_PLANS.items()
    },
}
