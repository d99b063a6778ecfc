"""Table of test cases for all architectures, constraints, training methods and data sets, small enough to run all.

`test_cases.py` tests the requirements on every case, and fails if a registered name has no case.
"""

from dataclasses import dataclass, field
from typing import Any

CLASSES = 7  # differs from every width, so that a wrong axis is noticed


@dataclass(frozen=True)
class Case:
    """An architecture at a small size under a constraint; `options` are those of `models.build`."""

    arch: str
    in_shape: tuple[int, int, int]
    conv_type: str = "SubnetConv"
    options: dict[str, Any] = field(default_factory=dict)
    density: float = 0.4

    def __str__(self):
        extras = [f"{name}={value}" for name, value in self.options.items() if name != "width_mult"]
        return "-".join([self.arch, self.conv_type, *extras]).replace(" ", "")


NARROW = {"width_mult": 0.125}
THIN = {"width_mult": 1 / 16}
LIGHT = [  # (arch, in_shape, options): the smallest image that the pools allow, not square where this is possible
    ("FC", (1, 5, 3), NARROW),
    ("MLP", (2, 4, 4), {"hidden": (9, 8)}),
    ("MLP", (1, 4, 4), {"hidden": (9,), "bias": True, "activation": "tanh", "norm": "batch_norm"}),
    ("MLP", (1, 4, 4), {"hidden": (9,), "activation": "sign", "norm": "batch_norm", "bn_type": "NonAffineBatchNorm"}),
    ("MLP", (1, 4, 4), {"hidden": ()}),
    ("MLP", (1, 4, 4), {"hidden": (9, 8), "dropout": 0.3}),
    ("CircuitMLP", (1, 4, 4), {"hidden": (9, 8)}),
    ("CircuitMLP", (1, 4, 4), {"hidden": (9,), "norm": "hard_invert", "bias": True}),
    ("CircuitMLP", (1, 4, 4), {"hidden": (9,), "norm": "soft_invert"}),
    ("LeNet5", (3, 16, 20), {"width_mult": 0.5}),
    ("LeNet5_Caffe", (1, 20, 16), NARROW),
    ("MNISTNet", (1, 8, 6), NARROW),
    ("Conv2", (1, 8, 6), NARROW),
    ("Conv2_BinAct", (1, 8, 6), NARROW),
    *((f"Conv4{kind}", (3, 8, 4), NARROW) for kind in ("", "_BinAct", "Wide", "Wide_BinAct")),
    *((f"Conv6{kind}", (1, 8, 8), NARROW) for kind in ("", "_BinAct", "Wide", "Wide_BinAct")),
    *((f"Conv8{kind}", (3, 16, 16), NARROW) for kind in ("", "_BinAct", "Wide", "Wide_BinAct")),
    ("Conv8Wide_BinAct_ReLU", (1, 16, 16), NARROW),
    ("Conv8Wide_BinAct_ReLU_Final_Act", (1, 16, 16), NARROW),
    ("VGG_Small", (3, 8, 8), NARROW),
    ("VGG_Small", (3, 8, 8), NARROW | {"bn_type": "NonAffineBatchNorm"}),
    *((f"VGG_Small{kind}", (1, 8, 8), NARROW) for kind in ("_BinAct", "_noReLU_BinAct", "_bn_BinAct")),
    ("Wide_VGG_Small", (1, 8, 8), NARROW | {"bn_type": "NonAffineBatchNorm"}),
    ("Wide_VGG_Small_132", (3, 16, 8), {"width_mult": 0.5, "bn_type": "AffineBatchNorm"}),
    # One of each kind of ResNet: stem, block, place of the norms, activation, number of stages.
    ("cResNet18", (3, 8, 8), THIN),
    ("cResNet18_BinAct", (1, 8, 16), THIN | {"bn_type": "NonAffineBatchNorm"}),
    ("cResNet18_v2", (3, 8, 8), THIN),
    ("cResNet18_BinAct_v2", (1, 8, 8), THIN),
    ("cResNet50", (1, 8, 8), THIN),
    ("cResNet20", (3, 8, 4), {"width_mult": 0.25}),
    ("cResNet20", (1, 8, 8), {"width_mult": 0.25, "head_bias": True}),
    ("cResNet20_BinAct", (1, 8, 8), {"width_mult": 0.25}),
    ("ResNet18", (3, 32, 32), THIN | {"bn_type": "NonAffineBatchNorm"}),
    ("WideResNet18_3_BinAct", (1, 32, 32), THIN),
    ("ResNet18_v2", (1, 32, 32), THIN),
    ("WideResNet18_2_BinAct_v2", (3, 32, 32), THIN),
    ("ResNet50", (1, 32, 32), THIN),
    ("WideResNet50_2_BinAct", (1, 32, 32), THIN),
    ("ResNet50_v2", (3, 32, 32), THIN),
    ("ResNet50_BinAct_v2", (1, 32, 32), THIN),
]
CASES = [Case(arch, shape, kind, options) for arch, shape, options in LIGHT for kind in ("DenseConv", "SubnetConv")]
FEW = [  # other constraints depend only on the presence of biases, batch norms and convolutions
    ("MLP", (1, 4, 4), {"hidden": (9,), "bias": True, "activation": "tanh", "norm": "batch_norm"}),
    ("Conv2_BinAct", (1, 8, 6), NARROW),
]


@dataclass(frozen=True)
class ConstraintCase:
    """A conv_type: the trained parameters of each layer, and the kind of its non-zero effective weights.

    values: "weight" (the layer's own), "alpha" (one magnitude), "powers" (of two) or "" (anything).
    """

    moved: tuple[str, ...]
    values: str = "weight"


SCORES, SHIFTS = ("constraint.scores",), ("constraint.shift", "constraint.sign")
CONSTRAINT_CASES = {
    "DenseConv": ConstraintCase(("weight",)),
    "SubnetConv": ConstraintCase(SCORES, "alpha"),
    "GlobalSubnetConv": ConstraintCase(SCORES, "alpha"),
    "SampleSubnetConv": ConstraintCase(("weight", *SCORES)),
    "FixedSubnetConv": ConstraintCase(("weight",)),
    "RGConv": ConstraintCase(("weight",)),
    "ShiftQ": ConstraintCase(("weight",), "powers"),
    "ShiftPS": ConstraintCase(SHIFTS, "powers"),
    "BinaryConv": ConstraintCase(("weight",)),
    "SparseConv": ConstraintCase(("weight",)),
}
OTHERS = CONSTRAINT_CASES.keys() - {"DenseConv", "SubnetConv"}
CASES += [Case(arch, shape, kind, options) for arch, shape, options in FEW for kind in sorted(OTHERS)]

METHOD_CASES = {  # trainer -> a conv_type that it can train
    "default": "DenseConv",
    "binary": "BinaryConv",
    "prune_score": "SubnetConv",
    "lottery": "GlobalSubnetConv",
    "ss": "SampleSubnetConv",
    "shift": "ShiftPS",
    "sparse": "SparseConv",
}

# data set -> an architecture that fits
SET_CASES = {"digits": "Conv2", "MNIST": "FC", "FashionMNIST": "Conv4", "CIFAR10": "VGG_Small"}
SET_CASES |= {"CIFAR100": "Conv6", "SVHN": "Conv4", "BigCIFAR10": "Conv8", "TinyImageNet": "Conv8"}
SET_CASES |= {"ImageNet": "Conv8", "ImageFolder": "Conv8", "in_memory": "Conv8"}

SPARSE_DENSITY = 0.3
COUNTED, GROWTHS = ("hebbian", "correlation", "magnitude"), ("hebbian", "random", "gradient")
SPARSE_RULES = [  # (drop, grow, density) that trainer sparse accepts; without a density it rewires filter by filter
    *((drop, grow, SPARSE_DENSITY) for drop in (*COUNTED, "magnitude_per_sign", "random") for grow in GROWTHS),
    *((drop, grow, None) for drop in COUNTED for grow in (*GROWTHS, "none")),
    ("random", "random", None),
]
