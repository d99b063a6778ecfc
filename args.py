"""Every option of the program, declared once, and how a command line and a YAML file become one `Options` object.

One flat name space: the field `prune_rate` is the YAML key `prune_rate` and the flag `--prune-rate` (or `--prune_rate`).
The command line beats the YAML file, the file beats the default; every value is cast by the declared type.
"""

import argparse
import difflib
import itertools
import math
import operator
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, get_args

import yaml

SETS = ["digits", "MNIST", "FashionMNIST", "CIFAR10"]
CONVNETS = [f"Conv{size}{tail}" for size in ("2", "4", "6", "8", "4Wide", "6Wide", "8Wide") for tail in ("", "_BinAct")]
ARCHS = ["FC", "MLP", *CONVNETS, "Conv8Wide_BinAct_ReLU", "Conv8Wide_BinAct_ReLU_Final_Act"]
ARCHS += [f"VGG_Small{tail}" for tail in ("", "_BinAct", "_noReLU_BinAct", "_bn_BinAct")]
ARCHS += ["Wide_VGG_Small", "Wide_VGG_Small_132"]
CONV_TYPES = ["DenseConv", "SubnetConv"]
BN_TYPES = ["LearnedBatchNorm", "AffineBatchNorm", "NonAffineBatchNorm"]
INITS = ["kaiming_normal", "kaiming_uniform", "signed_constant", "unsigned_constant", "usc_bernoulli", "bernoulli"]
INITS += ["ones", "xavier_normal", "xavier_constant", "standard", "binary"]
GAINS = ["relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear"]
POLICIES = ["constant_lr", "cosine_lr", "multistep_lr", "xnor_lr", "mpt132_w34_2_lr", "mpt11_w34_2_v2_lr"]
POLICIES += ["mpt11_w18_2_lr", "mpt11_w18_2_v2_lr", "cos_multi_lr"]


class UsageError(ValueError):
    """The user's mistake: main prints it and exits with 2. One line per problem."""


def opt(default: Any, text: str, allowed: str | Sequence[str] = "", *flags: str, maths: bool = True) -> Any:
    """One option. `allowed`: choices, or limits such as ">= 0 and < 1". `flags`: more spellings.

    `maths`: whether a resumed run with another value would be another run.
    """
    return field(default=default, metadata={"text": text, "allowed": allowed, "flags": flags, "maths": maths})


@dataclass(frozen=True)
class DataOptions:
    set: str = opt(MISSING, "data set", SETS)
    data: str = opt("./datasets", "folder of the data sets", maths=False)
    download: bool = opt(False, "fetch a missing data set", maths=False)
    val_split: float = opt(0.0, "share of the training set held out, to pick the best epoch on", ">= 0 and < 1")
    batch_size: int = opt(256, "images per step", ">= 1", "-b")
    workers: int = opt(4, "loader processes for sets too large for memory (no set of today)", ">= 0", "-j", maths=False)


@dataclass(frozen=True)
class ModelOptions:
    arch: str = opt(MISSING, "architecture", ARCHS, "-a")
    num_classes: int | None = opt(None, "outputs of the network; default: the classes of the set", ">= 1")
    width_mult: float = opt(1.0, "factor on the widths of the Wide architectures", "> 0")
    hidden: tuple[int, ...] | None = opt(None, "MLP only: widths of the hidden layers", ">= 1")
    bias: bool = opt(False, "MLP only: biases in its layers")
    activation: str | None = opt(None, "MLP only: activation", ["relu", "tanh", "sign"])
    norm: str | None = opt(None, "MLP only: normalisation", ["none", "batch_norm"])
    bn_type: str = opt("LearnedBatchNorm", "kind of batch norm", BN_TYPES)
    bn_weight_init: float | None = opt(None, "constant initial weight of batch norm")
    bn_bias_init: float | None = opt(None, "constant initial bias of batch norm")
    init: str = opt("kaiming_normal", "initial weights", INITS)
    mode: str = opt("fan_in", "the fan that init counts", ["fan_in", "fan_out"])
    nonlinearity: str = opt("relu", "the gain that init uses", GAINS)
    scale_fan: bool = opt(False, "fan times (1 - prune_rate) in init: the original's published formula")


@dataclass(frozen=True)
class ConstraintOptions:
    conv_type: str = opt("DenseConv", "constraint on the weights of the layers", CONV_TYPES)
    prune_rate: float | None = opt(None, "fraction of the weights KEPT (its name is historic): > 0 and <= 1")
    first_layer_dense: bool = opt(False, "leave the first layer unconstrained")
    last_layer_dense: bool = opt(False, "leave the last layer unconstrained")
    first_layer_type: str | None = opt(None, "conv_type of the first layer alone", CONV_TYPES)
    freeze_weights: bool = opt(False, "train scores, not weights")
    learn_batchnorm: bool = opt(False, "with freeze_weights: train batch norm as well")
    tune_batchnorm: bool = opt(False, "with learn_batchnorm or bn_bias_only: train batch norm, not the scores")
    bn_bias_only: bool = opt(False, "with freeze_weights: train the biases of batch norm as well")

    @property
    def density(self) -> float:
        """The fraction of weights kept: `prune_rate` under its right name, 1.0 where nothing is pruned."""
        return 1.0 if self.prune_rate is None else self.prune_rate


DECAY = """weight decay; with SGD (and AdamW, decoupled) it acts on the scores too, as in the original; Adam, RAdam and
Adadelta use none"""


@dataclass(frozen=True)
class OptimOptions:
    trainer: str = opt("default", "training method", ["default", "prune_score"])
    optimizer: str = opt("sgd", "optimizer", ["sgd", "adam", "adamw", "radam", "adadelta"])
    lr: float = opt(0.1, "learning rate", "> 0", "--learning-rate")
    lr_policy: str = opt("constant_lr", "learning rate from epoch to epoch", POLICIES)
    lr_adjust: int = opt(20, "epochs between the steps of multistep_lr", ">= 1")
    lr_gamma: float = opt(0.1, "factor of a step of multistep_lr", "> 0")
    warmup_length: int = opt(0, "epochs of warm-up", ">= 0")
    momentum: float = opt(0.9, "momentum of sgd", ">= 0 and < 1")
    weight_decay: float = opt(1e-4, DECAY, ">= 0", "--wd")
    nesterov: bool = opt(False, "Nesterov's momentum; sgd only")
    no_bn_decay: bool = opt(False, "no weight decay on batch norm")
    label_smoothing: float | None = opt(None, "share of each label spread over all classes", ">= 0 and < 1")
    grad_clip: bool = opt(False, "clamp every element of the gradient to [-1, 1]")
    epochs: int = opt(90, "epochs", ">= 1", maths=False)
    start_epoch: int | None = opt(None, "begin the schedule of a fresh run at this epoch, < epochs", ">= 0")


@dataclass(frozen=True)
class RunOptions:
    config: str | None = opt(None, "the YAML file", maths=False)
    name: str | None = opt(None, "name of the run, one path component; default: the config's stem", maths=False)
    log_dir: str | None = opt(None, "root of the run directories; default: runs", maths=False)
    results: str = opt("runs/results.csv", "table with a row for every finished run", maths=False)
    seed: int | None = opt(None, "default: drawn and recorded", ">= 0 and <= 9223372036854775807")
    resume: str | None = opt(None, "run to continue: directory, checkpoint, or auto: newest unfinished", maths=False)
    evaluate: bool = opt(False, "test the network of --resume or --pretrained; writes nothing", "", "-e", maths=False)
    pretrained: str | None = opt(None, "checkpoint to take the network from", maths=False)
    save_every: int = opt(-1, "epochs between checkpoints that stay; 0 and -1: never", ">= -1", maths=False)
    histograms: bool = opt(False, "scores and weights in TensorBoard", maths=False)
    print_freq: int = opt(10, "batches between looks at the running loss (bar, divergence)", ">= 1", "-p", maths=False)
    dry_run: int | None = opt(None, "one epoch of this many batches, all the way through", ">= 1")
    check: bool = opt(False, "validate, print the layers and the resolved options, stop", maths=False)
    precision: str = opt("auto", "auto: bf16 where the hardware does it natively", ["auto", "fp32", "bf16"])
    device: str = opt("auto", "where to compute", ["auto", "cpu", "cuda"], maths=False)
    multigpu: tuple[int, ...] | None = opt(None, "the GPU to use", ">= 0", maths=False)
    deterministic: bool = opt(False, "deterministic kernels only", maths=False)

    @property
    def stem(self) -> str:
        """The config's file name without its ending."""
        return Path(self.config or "").stem


GROUPS = {"data": DataOptions, "model": ModelOptions, "constraint": ConstraintOptions, "optim": OptimOptions}
GROUPS |= {"run": RunOptions}
NAMES = {group: [option.name for option in fields(kind)] for group, kind in GROUPS.items()}
FIELDS: dict[str, Any] = {option.name: option for kind in GROUPS.values() for option in fields(kind)}


@dataclass(frozen=True)
class Options:
    data: DataOptions
    model: ModelOptions
    constraint: ConstraintOptions
    optim: OptimOptions
    run: RunOptions
    warnings: tuple[str, ...] = ()

    def flat(self) -> dict[str, object]:
        """Every option by its name, in plain values that YAML can hold."""
        values = {name: getattr(getattr(self, group), name) for group, names in NAMES.items() for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def replace(self, **values: Any) -> "Options":
        """A copy with other values, by their flat names, unchecked. Raises TypeError for an unknown name."""
        if unknown := values.keys() - FIELDS.keys():
            raise TypeError(f"no such option: {sorted(unknown)}")
        own = {group: {name: values[name] for name in names if name in values} for group, names in NAMES.items()}
        return replace(self, **{group: replace(getattr(self, group), **own[group]) for group in NAMES})


UNREAD = "the original never read it"
DEAD = dict.fromkeys(["world_size", "rank"], "the launcher sets it")
DEAD |= dict.fromkeys(["low_data", "one_batch", "random_subnet", "multistep_lr_adjust", "multistep_lr_gamma"], UNREAD)
DEAD |= {"debug": "the original only fails with it"}
LATER = ["score_init_constant", "prune_rate_epoch", "gaussian_aug", "std_gauss", "p_clean", "augmix", "jsd"]
LATER += ["all_augmix_augmentations", "mixture_width", "mixture_depth", "aug_severity"]
TYPED = "on the command line"
MLP_ONLY = "it is for arch MLP only, not for {arch}; leave it out"
NO_AFFINE = "it needs another bn_type: NonAffineBatchNorm has neither weight nor bias"
ONE_OF_TWO = "resume loads its own: leave out one of the two"


def pruned(v: Any) -> bool:
    """Whether any layer has scores."""
    return "SubnetConv" in (v.conv_type, v.first_layer_type)


# Between options: (option, when it is wrong, what would be right). Not applied where a value it looks at is wrong itself.
ERRORS: list[tuple[str, Callable[[Any], object], str]] = [
    ("hidden", lambda v: v.hidden and v.arch != "MLP", MLP_ONLY),
    ("bias", lambda v: v.bias and v.arch != "MLP", MLP_ONLY),
    ("activation", lambda v: v.activation and v.arch != "MLP", MLP_ONLY),
    ("norm", lambda v: v.norm and v.arch != "MLP", MLP_ONLY),
    ("bn_weight_init", lambda v: v.bn_weight_init is not None and v.bn_type == "NonAffineBatchNorm", NO_AFFINE),
    ("bn_bias_init", lambda v: v.bn_bias_init is not None and v.bn_type == "NonAffineBatchNorm", NO_AFFINE),
]
