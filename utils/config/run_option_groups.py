"""Declarations of the options of training and of the run. `option_groups` has those of data, model and constraint."""

from dataclasses import dataclass
from pathlib import Path

from models.constraints.registry import CONV_TYPES
from trainers.registry import GRAD_COMPRESSIONS, OPTIMIZERS, TRAINERS
from trainers.schedules import POLICIES
from utils.config.fields import opt
from utils.paths import stem
from utils.records.registry import RECORDERS
from utils.steps import STEPS

TRAINER_TEXT = """training method; default: that of conv_type, lottery: dense training before that of scores, ss: with a
penalty on the scores"""
RUNS = "runs"  # the default folder of the run directories
DECAY = "weight decay (decoupled for adamw); it acts on scores too, as in BIPROP"
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
FP32_TYPES = " and ".join(name for name, row in CONV_TYPES.items() if row.needs_fp32)


@dataclass(frozen=True)
class OptimOptions:
    """Options of the training method, the optimizer and the learning-rate schedule."""

    trainer: str = opt("default", TRAINER_TEXT, TRAINERS)
    dense_epochs: int = opt(6, "epochs of dense training before the weights are frozen", ">= 1 and <= 1e6")
    score_l1: float = opt(1e-8, "factor of the penalty sum(sigmoid(scores)) in the loss", ">= 0 and <= 1e6")
    epsilon: float = opt(1.0, "probability that random_mag applies in a training step", ">= 0 and <= 1")
    random_mag: float = opt(
        0.0, "in training weights of 1 are drawn from 1 to 1 + random_mag; 0: never", ">= 0 and <= 1e6"
    )
    sweep_on: str = opt("0:4:0.1", f"values that replace the weights of 1 in extra evaluations: {STEPS}", maths=False)
    sweep_every: int = opt(10, "epochs between these evaluations; also after the last", ">= 1 and <= 1e6", maths=False)
    optimizer: str = opt("sgd", "optimizer", OPTIMIZERS)
    lr: float = opt(0.1, "learning rate", "> 0 and <= 1e6", "--learning-rate")
    lr_policy: str = opt("constant_lr", "learning-rate schedule", POLICIES)
    lr_adjust: int = opt(20, "epochs between learning-rate steps", ">= 1 and <= 1e6", needs="lr_policy multistep_lr")
    lr_gamma: float = opt(0.1, "factor of each learning-rate step", "> 0 and <= 1000", needs="lr_policy multistep_lr")
    warmup_length: int = opt(
        0,
        "epochs of linear learning-rate warm-up",
        ">= 0 and <= 1e6",
        needs="lr_policy constant_lr, cosine_lr or cos_multi_lr",
    )
    optimizer_eps: float | None = opt(
        None, "epsilon of the optimizer", "> 0 and <= 1000", unset="that of torch", warn_in_files=True
    )
    momentum: float = opt(0.9, "momentum", ">= 0 and < 1")
    weight_decay: float = opt(1e-4, DECAY, ">= 0 and <= 1000", "--wd", off=0)
    nesterov: bool = opt(False, "use Nesterov momentum", strict=True)
    no_bn_decay: bool = opt(False, "no weight decay on the weights and biases of batch norm", off=False)
    label_smoothing: float | None = opt(None, "share of each label spread over all classes", ">= 0 and < 1", unset="0")
    grad_clip: bool = opt(False, "clamp every element of the gradient to [-1, 1]")
    epochs: int = opt(90, "number of training epochs", ">= 1 and <= 1e6", maths=False)
    start_epoch: int | None = opt(
        None, "epoch, from 0, at which a new run starts; schedules skip earlier epochs", ">= 0 and <= 1e6", unset="0"
    )


@dataclass(frozen=True)
class RunOptions:
    """Options of the files, checkpoints, precision and devices of the run."""

    config: str | None = opt(None, "YAML file of options; without it, --resume must name a run", maths=False)
    plugins: tuple[str, ...] = opt(
        (), "Python files or modules to execute first, which register parts of runs; repeatable", "", "--plugin"
    )
    name: str | None = opt(None, "name of the run, for its directory", maths=False, unset="name of the YAML file")
    log_dir: str | None = opt(None, "root of the run directories", maths=False, path="new", unset=RUNS)
    results: str = opt(f"{RUNS}/results.csv", "CSV table with one row per finished run", maths=False, path="new")
    seed: int | None = opt(
        None, "random seed", ">= 0 and < 9223372036854775808", unset="drawn, and stored with the run"
    )
    resume: str | None = opt(
        None, "run directory or checkpoint to resume, or auto for the newest unfinished run", maths=False, path="old"
    )
    evaluate: bool = opt(False, "evaluate the network of --resume or --pretrained and exit", "", "-e", maths=False)
    pretrained: str | None = opt(None, "checkpoint or run directory whose network is loaded", maths=False, path="old")
    save_minutes: float = opt(
        10.0, "minutes between checkpoints within an epoch; 0: only at its end", ">= 0 and <= 1e6", maths=False
    )
    save_every: int = opt(
        -1, "epochs between checkpoints kept besides last and best; 0 and -1: none", ">= -1 and <= 1e6", maths=False
    )
    histograms: bool = opt(False, "log histograms of weights, scores and gradients to TensorBoard", maths=False)
    tracker: tuple[str, ...] = opt(
        (), "also record metrics, tables and histograms with this package; repeatable", RECORDERS, maths=False
    )
    detect_anomaly: bool = opt(False, "let autograd report the operation that produced a NaN; slow", maths=False)
    print_freq: int = opt(
        10, "batches between updates of the bar and checks for divergence", ">= 1 and <= 1e9", "-p", maths=False
    )
    dry_run: int | None = opt(
        None, "test run: one epoch of this many batches, with evaluation; it adds no row to results", ">= 1 and <= 1e9"
    )
    check: bool = opt(False, "validate the options, print them and the layers, and exit", maths=False)
    precision: str = opt("auto", f"number format; auto: bf16 if supported, but fp32 for {FP32_TYPES}", PRECISIONS)
    device: str = opt("auto", "device to compute on", DEVICES, maths=False)
    multigpu: tuple[int, ...] | None = opt(
        None, "numbers of the GPUs to use, such as 0,1; one process each", ">= 0 and <= 1023", maths=False
    )
    sync_bn: bool = opt(False, "with several processes: batch norm uses statistics of the global batch")
    grad_compression: str = opt("none", "with several processes: compression of exchanged gradients", GRAD_COMPRESSIONS)
    init_timeout: float = opt(
        300.0, "with several processes: seconds to wait for all to start", "> 0 and <= 1e6", maths=False
    )
    deterministic: bool = opt(False, "use only deterministic kernels", maths=False)

    @property
    def root(self) -> Path:
        """Folder of the run directories."""
        return Path(self.log_dir or RUNS)

    @property
    def stem(self) -> str:
        """Name of the YAML file given with --config, without folder and suffix, or the name of a run without a file."""
        return stem(self.config or "") or self.name or ""
