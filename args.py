"""Every option of the program, declared once, and how a command line and a YAML file become one `Options` object.

One flat name space: the field `prune_rate` is the YAML key `prune_rate` and the flag `--prune-rate` or `--prune_rate`.
The command line beats the YAML file, the file beats the default; every value is cast by the declared type.
"""

import argparse
import contextlib
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
from typing import Any, get_args

import yaml

Ints = tuple[int, ...]
NOUNS = {int: "an int", float: "a float", str: "text", bool: "true or false (flag: no value)", Ints: "a list of ints"}
COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class UsageError(ValueError):
    """The user's mistake: main prints it and exits with 2. One line per problem."""


def opt(default: Any, text: str, allowed: str | Sequence[str] = "", *flags: str, maths: bool = True) -> Any:
    """One option. `allowed`: choices, or limits such as ">= 0 and < 1". `flags`: more spellings.

    `maths`: whether a resumed run with another value would be another run.
    """
    return field(default=default, metadata={"text": text, "allowed": allowed, "flags": flags, "maths": maths})


def shown(value: object) -> str:
    plain = {"None": "null", "True": "true", "False": "false", "''": "no value"}
    return plain.get(repr(value), f"{value!r:.200}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of the names, as a remark to end a message with; empty when none is similar."""
    spelled = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""


def wanted(option: Any) -> str:
    """What an option takes, in words: "an int >= 1"."""
    kind, allowed = (get_args(option.type) or (option.type,))[0], option.metadata["allowed"]
    return f"{NOUNS[kind]} {allowed}".rstrip() if isinstance(allowed, str) else f"one of {', '.join(allowed)}"


def fits(value: Any, allowed: str | Sequence[str]) -> bool:
    if not isinstance(allowed, str):
        return value in allowed
    limits = (limit.split() for limit in allowed.split(" and ") if limit)
    return all(COMPARE[sign](value, float(number)) for sign, number in limits)


def plain(kind: Any, value: Any) -> Any:
    """An int, float, str or bool; what int() or float() would bend (2.5, true) is refused."""
    bent = isinstance(value, bool) != (kind is bool) or (kind is int and isinstance(value, float))
    if bent or (kind is str and not (isinstance(value, str) and value.strip() and value.isprintable())):
        raise ValueError
    if kind is float and not math.isfinite(float(value)):
        raise ValueError
    return kind(value)


def cast(option: Any, value: Any) -> Any:
    """A value as the option's declared type. Raises ValueError, TypeError or OverflowError where it is none."""
    kind, *nullable = get_args(option.type) or (option.type,)
    if nullable and value in (None, "null"):
        return None
    listed = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    items = tuple(plain(int, item) for item in listed) if kind == Ints else (plain(kind, value),)
    if not items or not all(fits(item, option.metadata["allowed"]) for item in items):
        raise ValueError
    return items if kind == Ints else items[0]


class UniqueKeys(yaml.SafeLoader):
    """YAML's plain values, where a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value).replace("-", "_") for key, _ in node.value]
        for (key, _), name in zip(node.value, names, strict=True):
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {name!r} is given twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file; hyphens in its keys become underscores. Raises UsageError with file and line."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
        if not isinstance(content, dict):
            raise ValueError(f"it holds no `key: value` lines but {shown(content)}")
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or " ".join(str(error).split())
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"config: {path}{line} cannot be read: {reason}; give a YAML file") from error
    return {str(key).replace("-", "_"): value for key, value in content.items()}


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
DECAY = """weight decay; with SGD (and AdamW, decoupled) it acts on the scores too, as in the original; Adam, RAdam and
Adadelta use none"""


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


DEAD = ["world_size", "rank", "low_data", "one_batch", "random_subnet", "debug", "multistep_lr_adjust"]
DEAD += ["multistep_lr_gamma"]
LATER = ["score_init_constant", "prune_rate_epoch", "gaussian_aug", "std_gauss", "p_clean", "augmix", "jsd"]
LATER += ["all_augmix_augmentations", "mixture_width", "mixture_depth", "aug_severity"]
ALIASES = {"learning_rate": "lr", "wd": "weight_decay"}  # flags, but no YAML keys
MLP_ONLY = ("hidden", "bias", "activation", "norm")
BN_TRAINED = ("learn_batchnorm", "tune_batchnorm", "bn_bias_only")
TYPED = "on the command line"
NOT_DENSE = "it contradicts first_layer_dense; leave out one of the two"
NO_AFFINE = "NonAffineBatchNorm has neither weight nor bias; it needs another bn_type"
GIVE_IT = "it must be given: the fraction of weights kept, e.g. --prune-rate 0.5 (-1 leaves it to the command line)"
FRESH = "a resumed run goes on where it stopped; leave out this or resume"
TESTED = "it needs a trained network: --resume PATH or --pretrained FILE"


def pruned(v: Any) -> bool:
    """Whether any layer has scores."""
    return "SubnetConv" in (v.conv_type, v.first_layer_type)


def no_share(v: Any) -> bool:
    """Whether prune_rate is neither a fraction nor a word for none: -1, and 0 where nothing is pruned."""
    return v.prune_rate not in (None, -1) and not 0 < v.prune_rate <= 1 and (v.prune_rate != 0 or pruned(v))


def tunes_alone(v: Any) -> bool:
    return v.tune_batchnorm and v.freeze_weights and not (v.learn_batchnorm or v.bn_bias_only)


def writable(folder: str) -> bool:
    """Whether a folder, or else the lowest existing one above it, can be written."""
    lowest = next(path for path in (Path(folder), *Path(folder).parents) if os.access(path, os.F_OK))
    return os.access(lowest, os.W_OK | os.X_OK) and lowest.is_dir()


# (option, when it is wrong, what would be right). A rule that looks at a value that is wrong by itself is skipped.
Rule = tuple[str, Callable[[Any], object], str]
ERRORS: list[Rule] = [
    *((n, lambda v, n=n: getattr(v, n) and v.arch != "MLP", "it needs arch MLP, not {arch}") for n in MLP_ONLY),
    ("bn_weight_init", lambda v: v.bn_weight_init is not None and v.bn_type == "NonAffineBatchNorm", NO_AFFINE),
    ("bn_bias_init", lambda v: v.bn_bias_init is not None and v.bn_type == "NonAffineBatchNorm", NO_AFFINE),
    ("first_layer_type", lambda v: v.first_layer_dense and v.first_layer_type == "SubnetConv", NOT_DENSE),
    ("prune_rate", lambda v: pruned(v) and v.prune_rate in (None, -1), GIVE_IT),
    ("prune_rate", no_share, "it must be a float > 0 and <= 1: the fraction of weights kept"),
    ("scale_fan", lambda v: v.scale_fan and pruned(v) and v.prune_rate == 1, "the fan is 0; it needs prune_rate < 1"),
    ("trainer", lambda v: v.trainer == "prune_score" and not pruned(v), "it needs scores: conv_type SubnetConv"),
    ("nesterov", lambda v: v.nesterov and v.optimizer != "sgd", "it needs optimizer sgd, not {optimizer}"),
    ("nesterov", lambda v: v.nesterov and v.momentum == 0, "it needs momentum > 0"),
    ("start_epoch", lambda v: v.start_epoch is not None and v.start_epoch >= v.epochs, "it must be < epochs, {epochs}"),
    ("start_epoch", lambda v: "start_epoch" in v.typed and v.resume, FRESH),
    ("pretrained", lambda v: v.pretrained and v.resume, FRESH),
    ("evaluate", lambda v: v.evaluate and not (v.resume or v.pretrained), TESTED),
    ("name", lambda v: v.name and not re.fullmatch(r"(?!\.\.?$)[^/]{1,99}", v.name), "it must be one path component"),
    ("log_dir", lambda v: "log_dir" in v.typed and not writable(v.log_dir or ""), "it must be a folder one can write"),
    ("multigpu", lambda v: v.multigpu and len(v.multigpu) > 1, "several GPUs are not supported yet; name one"),
    ("multigpu", lambda v: v.multigpu and v.device == "cpu", "device is cpu; leave out one of the two"),
]
REMARKS: list[Rule] = [
    ("prune_rate", lambda v: not pruned(v) and v.prune_rate not in (None, -1, 0, 1), "conv_type SubnetConv"),
    ("scale_fan", lambda v: not pruned(v) and v.scale_fan, "conv_type SubnetConv"),
    *((n, lambda v, n=n: getattr(v, n) and not v.freeze_weights, "freeze_weights") for n in BN_TRAINED),
    ("tune_batchnorm", tunes_alone, "learn_batchnorm or bn_bias_only"),
]


def flags(name: str) -> list[str]:
    """All spellings of an option's flag; the last one of a boolean option switches it off."""
    option, long = FIELDS.get(name), "--" + name.replace("_", "-")
    if option is None:
        return [long]
    off = long.replace("--no-", "--") if long.startswith("--no-") else long.replace("--", "--no-")
    return [*option.metadata["flags"], long, *([off] if option.type is bool else [])]


def config_path(typed: Mapping[str, list[Any]]) -> str:
    """The YAML file to read: --config, else the one that the run named by --resume keeps."""
    if "config" in typed:
        return str(typed["config"][-1])
    run = Path(typed.get("resume", ["auto"])[-1])
    path = (run.parent.parent if run.parent.name == "checkpoints" else run) / "config.yaml"
    if run == Path("auto") or not os.access(path, os.F_OK):
        raise UsageError(f"config: no YAML file {TYPED}; give --config FILE, or --resume with a run's directory")
    return str(path)


FOREIGN: dict[str, Callable[[str], bool]] = {"data": lambda path: os.access(path, os.F_OK), "log_dir": writable}


class Reader:
    """Takes values from the weakest source to the strongest and gathers all that is wrong with them."""

    def __init__(self) -> None:
        self.v = SimpleNamespace(typed={}, **{name: option.default for name, option in FIELDS.items()})
        self.said = {name: f"{name}: no value given" for name in FIELDS}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.bad: set[str] = set()

    def take(self, name: str, value: Any, where: str) -> None:
        """One value as written; `where` is "in FILE" or "on the command line"."""
        if name in DEAD:
            self.warnings.append(f"{name} has no effect; the original never read it")
        elif name in LATER:
            self.problems.append(f"{name}: {shown(value)} {where}, but that is not supported yet; leave it out")
        elif name not in FIELDS:
            hint = nearest(ALIASES.get(name, name), FIELDS)
            self.problems.append(f"{name}: unknown option {where}{hint}; see --help")
        else:
            self.said[name] = f"{name}: {shown(value)} {where}"
            try:
                setattr(self.v, name, cast(FIELDS[name], value))
            except (ValueError, TypeError, OverflowError):
                allowed = FIELDS[name].metadata["allowed"]
                hint = "" if isinstance(allowed, str) else nearest(str(value), allowed)
                self.problems.append(f"{self.said[name]}, but it must be {wanted(FIELDS[name])}{hint}")
                self.bad.add(name)

    def command_line(self, argv: Sequence[str]) -> None:
        """Split into `v.typed`: option -> its texts in order, "" for no text, a bool for a flag alone."""
        if {"-h", "--help"} & {*argv}:
            print(help_text())
            raise SystemExit(0)
        parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
        parser._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own takes -1e-4 for a flag
        for name in [*FIELDS, *DEAD, *LATER]:
            switch = name in FIELDS and FIELDS[name].type is bool
            for flag in flags(name):
                alone = flag != flags(name)[-1] if switch else ""
                parser.add_argument(flag, dest=name, nargs="?", action="append", const=alone)
        tokens = [re.sub("^--[^=]+", lambda long: long[0].replace("_", "-"), token) for token in argv]
        typed, strays = parser.parse_known_args(tokens)
        self.v.typed = vars(typed)
        pairs = set(itertools.pairwise(tokens))
        for before, stray in itertools.pairwise(["", *strays]):
            if stray[:1] == "-" and stray.strip("-"):
                hint = nearest(stray.partition("=")[0], [flag for name in FIELDS for flag in flags(name)])
                self.problems.append(f"{stray}: unknown option {TYPED}{hint}; see --help")
            elif before[:1] != "-" or "=" in before or (before, stray) not in pairs:  # else: an unknown option's value
                self.problems.append(f"{stray!r}: stray word {TYPED}; an option starts with --")

    def file(self, path: str) -> None:
        """The values of a YAML file, without what only its author's machine or its own past run had."""
        for name, value in load_yaml(path).items():
            if (name == "config" and value is None) or (name == "pretrained" and "config" not in self.v.typed):
                continue
            self.take(name, value, f"in {path}")
            if name in FOREIGN and name not in self.bad | self.v.typed.keys():
                folder, option = getattr(self.v, name), FIELDS[name]
                if folder and Path(folder).is_absolute() and not FOREIGN[name](folder):
                    self.warnings.append(f"{self.said[name]} cannot be used here; using {option.default or 'runs'}")
                    setattr(self.v, name, option.default)

    def found(self, rules: Iterable[Rule], joint: str) -> list[str]:
        lines = []
        for name, wrong, right in rules:
            with contextlib.suppress(AttributeError):
                if wrong(self.v):
                    lines.append(self.said[name] + joint + right.format(**vars(self.v)))
        return lines

    def options(self) -> Options:
        """All that was taken. Raises UsageError with every problem."""
        for name, option in FIELDS.items():
            if option.default is MISSING and getattr(self.v, name) is MISSING and name not in self.bad:
                self.take(name, "", "in the YAML file and on the command line")
        for name in self.bad:
            delattr(self.v, name)
        self.problems += self.found(ERRORS, ", but ")
        self.warnings += self.found(REMARKS, " has no effect without ")
        if problems := list(dict.fromkeys(self.problems)):
            raise UsageError("\n".join([f"{len(problems)} problems:"] * (len(problems) > 1) + problems))
        if not pruned(self.v):
            self.v.prune_rate, self.v.scale_fan = None, False
        self.v.name = self.v.name or Path(self.v.config or "").stem or None
        made = {group: kind(**{name: getattr(self.v, name) for name in NAMES[group]}) for group, kind in GROUPS.items()}
        return Options(**made, warnings=tuple(dict.fromkeys(self.warnings)))


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line and its YAML file. Raises UsageError with every problem of both together."""
    reader = Reader()
    reader.command_line(argv)
    typed = reader.v.typed
    try:
        path = config_path(typed)
        reader.take("config", path, TYPED)  # a run's config.yaml names the file it came from: that one then counts
        reader.file(path)
    except UsageError as error:
        reader.problems.append(str(error))
        reader.bad |= FIELDS.keys() - typed.keys()  # the file may have had them: judge only what was typed
    for name, values in typed.items():
        for value in values if name != "config" else []:
            reader.take(name, value, TYPED)
    return reader.options()


def from_flat(values: Mapping[str, object]) -> Options:
    """The inverse of `Options.flat`, checked as a YAML file is. Raises UsageError."""
    reader = Reader()
    for name, value in values.items():
        reader.take(name, value, "in the stored configuration")
    return reader.options()


def changed_mathematics(old: Options, new: Options) -> list[str]:
    """One line for every differing option that makes another run; `epochs` is left to the caller."""
    before, after = old.flat(), new.flat()
    names = [name for name, option in FIELDS.items() if option.metadata["maths"] and before[name] != after[name]]
    return [f"{name}: {shown(before[name])} in the run, {shown(after[name])} now" for name in names]


HELP = """usage: python main.py --config FILE [options]

Trains a network with constrained weights. --prune-rate on the command line is prune_rate in the YAML file; the command
line beats the file, the file beats the default.
{}
Exit codes: 0 done; 1 the run failed; 2 bad input; 75 stopped by SIGTERM, SIGUSR2 or the first Ctrl-C after saving,
can be resumed (--resume).

Example: python main.py --config configs/quickstart.yml --prune-rate 0.3 --seed 1"""


def help_text() -> str:
    lines = []
    for group, kind in GROUPS.items():
        lines.append(f"\n{group.capitalize()} options:")
        for option in fields(kind):
            default = "required" if option.default is MISSING else f"default {shown(option.default)}"
            takes = "flag" if option.type is bool else wanted(option)
            start = f"  {', '.join(flags(option.name)):<32}  "
            text = f"{option.metadata['text']} [{takes}; {default}]".replace("default null", "no default")
            lines.append(textwrap.fill(text, 118, initial_indent=start, subsequent_indent=" " * 36))
    return HELP.format("\n".join(lines) + "\n")
