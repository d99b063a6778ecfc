"""Every option of the program, declared once, and how a command line and a YAML file become one `Options` object.

One flat name space: the field `prune_rate` is the YAML key `prune_rate` and the flag `--prune-rate` or `--prune_rate`.
The command line beats the YAML file, the file beats the default; every value is cast by the declared type.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from utils import choices
from utils.config.biprop_folders import FOREIGN, is_foreign
from utils.config.checks import ALIASES, DEAD, ERRORS, REMARKS, RENAMED, pruned
from utils.config.config_file import config_path
from utils.config.fields import BUT, STEPPED, TYPED, Reader, help_lines, opt
from utils.config.yaml_loader import load_yaml, read
from utils.errors import UsageError
from utils.paths import stem
from utils.text import combined_error, nearest, shown

__all__ = ["Options", "UsageError", "changed_mathematics", "from_flat", "load_yaml", "nearest", "parse"]

MOVES = "SparseConv: steps between moves of connections; default: 100 with a prune_rate, else an epoch's"
LIVES = """SparseConv without prune_rate: share of a filter that lives, the rest of it redrawn; with drop random, the
probability that a weight lives"""
MOVED = "SparseConv: share of training in which connections move; default: 0.75 with a prune_rate, else 1"
PIXEL_TEXT = """what pixels become: standard (mean 0, deviation 1 over the set), unit (0 to 1), signed (-1 to 1), binary
(1 from a half of full brightness on, else 0)"""
DECAY = """weight decay; with SGD (and AdamW, decoupled) it acts on the scores too, as in the original; Adam, RAdam and
Adadelta use none"""


@dataclass(frozen=True)
class DataOptions:
    set: str = opt(MISSING, "data set", choices.SETS)
    data: str = opt("./datasets", "folder of the data sets", maths=False, path="new")
    download: bool = opt(False, "fetch a missing data set", maths=False)
    val_split: float = opt(0.0, "share of the training set held out, to pick the best epoch on", ">= 0 and < 1")
    batch_size: int = opt(256, "images per step, of all processes together", ">= 1 and <= 1e7", "-b")
    test_batch_size: int | None = opt(None, "images per step of an evaluation; default: batch_size", ">= 1 and <= 1e7")
    pixels: str = opt("standard", PIXEL_TEXT, choices.PIXELS)
    workers: int = opt(
        4, "loader processes, where images are read or augmented one by one", ">= 0 and <= 256", "-j", maths=False
    )
    image_size: int | None = opt(
        None, "crop of ImageNet, TinyImageNet, BigCIFAR10, ImageFolder; default: the set's", ">= 8 and <= 4096"
    )
    low_data: float = opt(1.0, "share of the training images used", "> 0 and <= 1")
    one_batch: bool = opt(False, "train on one batch, a step an epoch: can the network learn it at all?")
    gaussian_aug: bool = opt(False, "Gaussian noise on training images")
    std_gauss: float = opt(0.1, "standard deviation of that noise, pixels being 0 to 1", "> 0 and <= 1000")
    p_clean: float = opt(1.0, "with gaussian_aug: share of images left without noise", ">= 0 and <= 1")
    augmix: bool = opt(False, "AugMix on training images")
    all_augmix_augmentations: bool = opt(False, "with augmix: also color, contrast, brightness, sharpness")
    mixture_width: int = opt(3, "with augmix: chains mixed", ">= 1 and <= 100")
    mixture_depth: int = opt(-1, "with augmix: operations in a chain; 0 and -1: 1 to 3 at random", ">= -1 and <= 100")
    aug_severity: int = opt(3, "with augmix: strength of the operations", ">= 1 and <= 10")
    jsd: bool = opt(False, "Jensen-Shannon loss over a clean and two augmented views; with augmix or gaussian_aug")


@dataclass(frozen=True)
class ModelOptions:
    arch: str = opt(MISSING, "architecture", choices.ARCHS, "-a")
    num_classes: int | None = opt(None, "outputs of the network; default: the classes of the set", ">= 1 and <= 1e6")
    width_mult: float = opt(1.0, "factor on the widths of the Wide architectures", "> 0 and <= 100")
    hidden: tuple[int, ...] | None = opt(None, "MLP, CircuitMLP only: widths of the hidden layers", ">= 1 and <= 1e7")
    bias: bool = opt(False, "MLP, CircuitMLP only: biases in its layers")
    activation: str | None = opt(None, "MLP, CircuitMLP only: activation", ["relu", "tanh", "sign"])
    norm: str | None = opt(None, "MLP, CircuitMLP only: normalisation", choices.NORMS)
    dropout: float = opt(0.0, "MLP, CircuitMLP only: dropout behind the hidden layers", ">= 0 and < 1")
    readout: str = opt(
        "pooled", "cResNet20 to 110 only: original40 has the original's four outputs a class", choices.READOUTS
    )
    bn_type: str = opt("LearnedBatchNorm", "kind of batch norm", choices.BN_TYPES)
    bn_weight_init: float | None = opt(None, "constant initial weight of batch norm", ">= -1e6 and <= 1e6")
    bn_bias_init: float | None = opt(None, "constant initial bias of batch norm", ">= -1e6 and <= 1e6")
    bn_eps: float | None = opt(None, "epsilon of batch norm; default 1e-5", "> 0 and <= 1000")
    bn_momentum: float | None = opt(None, "momentum of batch norm, as torch's; default 0.1", "> 0 and <= 1")
    init: str = opt("kaiming_normal", "initial weights", choices.INITS)
    mode: str = opt("fan_in", "fan by which init scales", ["fan_in", "fan_out"])
    nonlinearity: str = opt("relu", "nonlinearity whose gain init uses", choices.GAINS)
    scale_fan: bool = opt(False, "fan times (1 - prune_rate) in init: the original's published formula")


@dataclass(frozen=True)
class ConstraintOptions:
    conv_type: str = opt("DenseConv", "constraint on the weights of the layers", choices.CONV_TYPES)
    prune_rate: float | None = opt(
        None, "fraction of the weights KEPT (its name is historic): > 0 and <= 1", "", "--density"
    )
    prune_rate_epoch: int = opt(
        10, "GlobalSubnetConv: epochs in which it goes from 0.5 down to prune_rate", ">= 0 and <= 1e6"
    )
    score_init_constant: float | None = opt(
        None, "SampleSubnetConv: initial score of every weight", ">= -1e6 and <= 1e6"
    )
    initial_ones: float = opt(0.001, "BinaryConv: share of ones among the initial weights", ">= 0 and <= 1")
    first_layer_dense: bool = opt(False, "leave the first layer unconstrained")
    last_layer_dense: bool = opt(False, "leave the last layer unconstrained")
    first_layer_type: str | None = opt(None, "conv_type of the first layer alone", choices.CONV_TYPES)
    drop: str = opt("hebbian", "SparseConv: dropped are the lowest by this; SET's: magnitude_per_sign", choices.DROPS)
    grow: str = opt("hebbian", "SparseConv: the connections grown are the highest by this", choices.GROWS)
    update_interval: int = opt(20, "SparseConv: steps between those on which strengths are counted", ">= 1 and <= 1e9")
    progress_interval: int | None = opt(None, MOVES, ">= 1 and <= 1e9")
    progress_until: float | None = opt(None, MOVED, "> 0 and <= 1")
    drop_fraction: float = opt(0.3, "SparseConv: share replaced at first, falling to 0 by a cosine", "> 0 and <= 1")
    keep_share: float = opt(0.1, "SparseConv without prune_rate: share of a filter that stays as it is", "> 0 and <= 1")
    live_share: float = opt(0.15, LIVES, "> 0 and <= 1")
    layer_density: str = opt("uniform", "SparseConv: how prune_rate is spread over the layers", choices.SPREADS)
    density_schedule: str = opt("constant", "SparseConv: cubic falls from 0.5 to prune_rate", choices.SCHEDULES)
    sparse_hold: bool = opt(True, "SparseConv: what is dropped stays 0; else it is set to 0 and trains on")
    freeze_weights: bool = opt(False, "train the scores alone: all weights, biases and batch norms stay")
    learn_batchnorm: bool = opt(False, "with freeze_weights: train batch norm as well")
    tune_batchnorm: bool = opt(False, "with learn_batchnorm or bn_bias_only: train batch norm, not the scores")
    bn_bias_only: bool = opt(False, "with freeze_weights: train the biases of batch norm as well")
    weight_bits: int = opt(5, "ShiftQ, ShiftPS: bits of a weight, sign and shift", ">= 2 and <= 8")
    rounding: str = opt("deterministic", "ShiftQ, ShiftPS: of shifts in training", ["deterministic", "stochastic"])
    activation_bits: tuple[int, ...] | None = opt(
        None,
        "ShiftQ, ShiftPS: bits before and behind the point of all inputs, biases; default: 16,16 of most",
        ">= 0 and <= 64",
    )
    shift_depth: int | None = opt(
        None, "ShiftQ, ShiftPS: so many layers from the output on; default: all", ">= 1 and <= 1000"
    )
    shift_update: str = opt("ste", "ShiftQ: what is rounded: a copy, or (crude) what is stored", ["ste", "crude"])
    shift_init: str = opt("uniform", "ShiftPS: first shifts and signs, drawn or of weights", ["uniform", "weights"])
    freeze_sign: bool = opt(False, "ShiftPS: train the shifts alone")

    @property
    def density(self) -> float:
        """The fraction of weights kept: `prune_rate` under its right name, 1.0 where nothing is pruned."""
        return 1.0 if self.prune_rate is None else self.prune_rate


@dataclass(frozen=True)
class OptimOptions:
    trainer: str = opt("default", "training method; default: that of the conv_type", choices.TRAINERS)
    dense_epochs: int = opt(
        6, "trainer lottery: epochs in which all weights train, before the ticket is drawn", ">= 1 and <= 1e6"
    )
    score_l1: float = opt(1e-8, "trainer ss: weight of the sum of sigmoid(scores) in the loss", ">= 0 and <= 1e6")
    epsilon: float = opt(1.0, "trainer binary: chance that a step's ones are worth more than 1", ">= 0 and <= 1")
    random_mag: float = opt(0.0, "trainer binary: how much more they are worth at most", ">= 0 and <= 1e6")
    sweep_on: str = opt("0:4:0.1", "trainer binary: values of the ones that are tested: " + STEPPED, maths=False)
    sweep_every: int = opt(
        10, "trainer binary: epochs between these tests; the last epoch has one", ">= 1 and <= 1e6", maths=False
    )
    optimizer: str = opt("sgd", "optimizer", ["sgd", "adam", "adamw", "radam", "adadelta"])
    lr: float = opt(0.1, "learning rate", "> 0 and <= 1e6", "--learning-rate")
    lr_policy: str = opt("constant_lr", "learning rate from epoch to epoch", choices.POLICIES)
    lr_adjust: int = opt(20, "epochs between the steps of multistep_lr", ">= 1 and <= 1e6")
    lr_gamma: float = opt(0.1, "factor of a step of multistep_lr", "> 0 and <= 1000")
    warmup_length: int = opt(0, "epochs of warm-up", ">= 0 and <= 1e6")
    optimizer_eps: float | None = opt(
        None, "epsilon of adam, adamw, radam and adadelta; default: torch's", "> 0 and <= 1000"
    )
    momentum: float = opt(0.9, "momentum of sgd", ">= 0 and < 1")
    weight_decay: float = opt(1e-4, DECAY, ">= 0 and <= 1000", "--wd")
    nesterov: bool = opt(False, "Nesterov's momentum; sgd only")
    no_bn_decay: bool = opt(False, "no weight decay on batch norm")
    label_smoothing: float | None = opt(None, "share of each label spread over all classes", ">= 0 and < 1")
    grad_clip: bool = opt(False, "clamp every element of the gradient to [-1, 1]")
    epochs: int = opt(90, "epochs", ">= 1 and <= 1e6", maths=False)
    start_epoch: int | None = opt(None, "begin the schedule of a fresh run at this epoch, < epochs", ">= 0 and <= 1e6")


@dataclass(frozen=True)
class RunOptions:
    config: str | None = opt(None, "the YAML file", maths=False)
    name: str | None = opt(None, "name of the run, one path component; default: the config's stem", maths=False)
    log_dir: str | None = opt(None, "root of the run directories; default: runs", maths=False, path="new")
    results: str = opt("runs/results.csv", "table with a row for every finished run", maths=False, path="new")
    seed: int | None = opt(None, "random seed; default: drawn and recorded", ">= 0 and < 9223372036854775808")
    resume: str | None = opt(
        None, "run to continue: directory, checkpoint, or auto: newest unfinished", maths=False, path="old"
    )
    evaluate: bool = opt(False, "test the network of --resume or --pretrained; writes nothing", "", "-e", maths=False)
    pretrained: str | None = opt(
        None, "checkpoint, or run with some, to take the network from", maths=False, path="old"
    )
    save_minutes: float = opt(
        10.0, "minutes between checkpoints within a long epoch; 0: none", ">= 0 and <= 1e6", maths=False
    )
    save_every: int = opt(-1, "epochs between checkpoints that stay; 0 and -1: never", ">= -1 and <= 1e6", maths=False)
    histograms: bool = opt(False, "weights, scores and gradients in TensorBoard", maths=False)
    detect_anomaly: bool = opt(False, "autograd's search for the origin of a NaN: slow", maths=False)
    print_freq: int = opt(
        10, "batches between updates of the bar and looks for divergence", ">= 1 and <= 1e9", "-p", maths=False
    )
    dry_run: int | None = opt(None, "one epoch of this many batches, all the way through", ">= 1 and <= 1e9")
    check: bool = opt(False, "validate, print the layers and the resolved options, stop", maths=False)
    precision: str = opt(
        "auto", "auto: bf16 where the hardware does it natively, but for shifts", ["auto", "fp32", "bf16"]
    )
    device: str = opt("auto", "where to compute", ["auto", "cpu", "cuda"], maths=False)
    multigpu: tuple[int, ...] | None = opt(
        None, "the GPU to use, or several, a process on each", ">= 0 and <= 1023", maths=False
    )
    sync_bn: bool = opt(False, "several processes: batch norm over the whole batch, not each process's share of it")
    grad_compression: str = opt("none", "several processes: gradients as they are sent", choices.COMPRESSIONS)
    init_timeout: float = opt(300.0, "several processes: seconds to find each other in", "> 0 and <= 1e6", maths=False)
    deterministic: bool = opt(False, "deterministic kernels only", maths=False)

    @property
    def stem(self) -> str:
        """The config's file name without its ending."""
        return stem(self.config or "")


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


def take_file(reader: Reader, path: str) -> None:
    """The values of a YAML file, without what only its own past run had."""
    values, lines = read(path)
    for alias in ALIASES.keys() & values.keys():
        if ALIASES[alias] in values:
            raise UsageError(f"{alias}: {path} has {ALIASES[alias]} too, which is the same option; leave out one")
        values[ALIASES[alias]], lines[ALIASES[alias]] = values.pop(alias), lines[alias]
    resumed = "config" not in reader.v.typed
    for name, value in values.items():
        if (name == "config" and value is None) or (name == "pretrained" and resumed):
            continue
        reader.take(name, value, f"in {path}", lines.get(name))
    reader.v.chosen |= set() if resumed else values.keys()


def leave_foreign_folders(reader: Reader) -> None:
    """Put the default in the place of a folder of the authors of BIPROP that a file names and this machine lacks."""
    for name in FOREIGN:
        if name not in reader.bad | reader.v.typed.keys() and is_foreign(name, reader.v):
            default = FIELDS[name].default
            reader.warnings.append(f"{reader.said[name]} cannot be used here; using {default or 'runs'}")
            setattr(reader.v, name, default)


def finished(reader: Reader) -> Options:
    """All that was taken. Raises UsageError with every problem."""
    for name, option in FIELDS.items():
        if option.default is MISSING and getattr(reader.v, name) is MISSING and name not in reader.bad:
            reader.take(name, "", "in the YAML file and on the command line")
    for name in reader.bad:
        delattr(reader.v, name)
    reader.problems += reader.found(ERRORS, BUT)
    reader.warnings += reader.found(REMARKS, " has no effect without ")
    if reader.problems:
        raise combined_error(reader.problems)
    if not pruned(reader.v):
        reader.v.prune_rate, reader.v.scale_fan = None, False
    if reader.v.prune_rate in (-1, 0):  # no density is given, and none is needed
        reader.v.prune_rate = None
    if reader.v.device == "cpu":
        reader.v.multigpu = None
    if "Wide" not in reader.v.arch:
        reader.v.width_mult = 1.0
    reader.v.name = reader.v.name or stem(reader.v.config or "") or None
    made = {group: kind(**{name: getattr(reader.v, name) for name in NAMES[group]}) for group, kind in GROUPS.items()}
    return Options(**made, warnings=tuple(dict.fromkeys(reader.warnings)))


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line and its YAML file. Raises UsageError with every problem of both together."""
    reader = Reader(FIELDS, DEAD, RENAMED)
    if {"-h", "--help"} & {*argv}:
        with contextlib.suppress(OSError):  # `--help | head`, a full disk
            print(help_text(), flush=True)
            raise SystemExit(0)
        os._exit(0)  # else the interpreter would flush again, and complain
    reader.command_line(argv)
    typed = reader.v.typed
    reader.v.chosen |= typed.keys()
    try:
        path = config_path(typed)
        reader.take("config", path, TYPED)  # a run's config.yaml names the file it came from: that one then counts
        take_file(reader, path)
    except UsageError as error:
        reader.problems.append(str(error))
        reader.bad |= FIELDS.keys() - typed.keys()  # the file may have had them: judge only what was typed
    for name, values in typed.items():
        for value in values if name != "config" else []:
            reader.take(name, value, TYPED)
    leave_foreign_folders(reader)
    return finished(reader)


def from_flat(values: Mapping[str, object]) -> Options:
    """The inverse of `Options.flat`, checked as a YAML file is. Raises UsageError."""
    reader = Reader(FIELDS, DEAD, RENAMED)
    for name, value in values.items():
        reader.take(name, value, "in the stored configuration")
    return finished(reader)


def changed_mathematics(old: Options, new: Options) -> list[str]:
    """One line for every differing option that makes another run; `epochs` is left to the caller."""
    before, after = old.flat(), new.flat()
    names = [name for name, option in FIELDS.items() if option.metadata["maths"] and before[name] != after[name]]
    return [f"{name}: {shown(before[name])} in the run, {shown(after[name])} now" for name in names]


HELP = """usage: python main.py --config FILE [options]

Trains a network with constrained weights. --prune-rate on the command line is prune_rate in the YAML file; the command
line beats the file, the file beats the default. In paths ~, ~user and $NAME are replaced, in the file too.
{}
Exit codes: 0 done; 1 the run failed; 2 bad input; 69 another process is training this run (--resume auto); 75 stopped
by SIGTERM, SIGUSR2, SIGHUP or the first Ctrl-C, saved, can be resumed (--resume); 130 left by Ctrl-C, nothing to save.

Example: python main.py --config configs/quickstart.yml --prune-rate 0.3 --seed 1"""


def help_text() -> str:
    parts = [
        f"\n{group.capitalize()} options:\n" + "\n".join(help_lines(fields(kind))) for group, kind in GROUPS.items()
    ]
    return HELP.format("\n".join(parts) + "\n")
