"""Declarations of the options of data, model and constraint. A new option is one field, plus the code that uses it.

`run_option_groups` has the options of training and of the run.

No two options have the same name, whatever their group. The field `prune_rate` is the YAML key `prune_rate` and the
flag `--prune-rate`.
"""

from dataclasses import MISSING, dataclass

from data.registry import PIXELS, SETS
from models.constraints.registry import (
    CONV_TYPES,
    DENSITY_SCHEDULES,
    DENSITY_START,
    DROP_CRITERIA,
    GROW_CRITERIA,
    LAYER_DENSITIES,
    REWIRE_EVERY,
    REWIRE_UNTIL,
    ROUNDINGS,
    SHIFT_INITS,
    SHIFT_UPDATES,
    ConvType,
)
from models.registry import ACTIVATIONS, ARCHS, BN_TYPES, GAINS, INITS, MLP_NORMS, READOUTS
from utils.config.fields import opt
from utils.registry import either

PIXEL_TEXT = """scale of the pixels: standard (mean 0, standard deviation 1 over the set), unit (0 to 1), signed
(-1 to 1), binary (1 from half of the full brightness, 0 below)"""
NORM_TEXT = "normalisation of the hidden layers; hard_invert: 1 - x, soft_invert: learned between x and 1 - x"
SHIFT_UPDATE_TEXT = "ste: each forward pass rounds a copy of the weights; crude: it rounds the weights in place"
# Names of the registry rows with a property, for help texts.
SIZED_SETS = ", ".join(name for name, row in SETS.items() if row.margin is not None)
SHIFT_TYPES = either(name for name, row in CONV_TYPES.items() if row.trainer == "shift")
KEPT = "a float > 0 and <= 1"  # values of prune_rate; files of BIPROP also have -1 and 0
FALLING = either(name for name, row in CONV_TYPES.items() if row.density_falls)


@dataclass(frozen=True)
class DataOptions:
    """Options of the data set, its batches and its augmentation."""

    set: str = opt(MISSING, "data set", SETS)
    data: str = opt("./datasets", "folder of the data sets", maths=False, path="new")
    download: bool = opt(False, "download the data set if it is missing", maths=False)
    val_split: float = opt(0.0, "share of the training set held out to pick the best epoch", ">= 0 and < 1")
    batch_size: int = opt(256, "images per training step, summed over all processes", ">= 1 and <= 1e7", "-b")
    test_batch_size: int | None = opt(None, "images per evaluation step", ">= 1 and <= 1e7", unset="batch_size")
    pixels: str = opt("standard", PIXEL_TEXT, PIXELS)
    workers: int = opt(
        4,
        "processes that load images, for augmix and sets with image_size; 0: none",
        ">= 0 and <= 256",
        "-j",
        maths=False,
    )
    image_size: int | None = opt(
        None, f"image height and width of {SIZED_SETS}", ">= 8 and <= 4096", unset="that of the set"
    )
    low_data: float = opt(1.0, "share of the training images that is used", "> 0 and <= 1")
    one_batch: bool = opt(False, "train on a single batch, one step per epoch, to test whether the network fits it")
    augment: bool = opt(True, "crop and flip training images at random, where the set does so", off=True)
    gaussian_aug: bool = opt(False, "add Gaussian noise to training images", warn_in_files=True)
    std_gauss: float = opt(
        0.1, "standard deviation of the noise for pixels in [0, 1]", "> 0 and <= 1000", needs="gaussian_aug"
    )
    p_clean: float = opt(1.0, "share of the training images without noise", ">= 0 and <= 1", needs="gaussian_aug")
    augmix: bool = opt(False, "apply AugMix to training images")
    all_augmix_augmentations: bool = opt(False, "add color, contrast, brightness, sharpness to AugMix", needs="augmix")
    mixture_width: int = opt(3, "number of AugMix chains per image", ">= 1 and <= 100", needs="augmix")
    mixture_depth: int = opt(
        -1, "operations per AugMix chain; 0 and -1: 1 to 3 at random", ">= -1 and <= 100", needs="augmix"
    )
    aug_severity: int = opt(3, "strength of the AugMix operations", ">= 1 and <= 10", needs="augmix")
    jsd: bool = opt(False, "add the Jensen-Shannon loss over three views; needs augmix or gaussian_aug")


@dataclass(frozen=True)
class ModelOptions:
    """Options of the architecture, its batch norms and its initial weights."""

    arch: str = opt(MISSING, "architecture", ARCHS, "-a")
    num_classes: int | None = opt(None, "outputs of the network", ">= 1 and <= 1e6", unset="classes of the set")
    width_mult: float = opt(1.0, "factor on the widths of the layers", "> 0 and <= 100", warn_in_files=True)
    hidden: tuple[int, ...] | None = opt(
        None, "widths of the hidden layers, such as 300,100", ">= 1 and <= 1e7", unset="that of the arch", strict=True
    )
    bias: bool = opt(False, "biases in all layers", strict=True)
    activation: str | None = opt(None, "activation function", ACTIVATIONS, unset="that of the arch", strict=True)
    norm: str | None = opt(None, NORM_TEXT, MLP_NORMS, unset="that of the arch", strict=True)
    dropout: float = opt(0.0, "dropout probability after each hidden layer", ">= 0 and < 1", strict=True)
    readout: str = opt(
        "pooled", "pooled: one output per class; original40: four per class, as in BIPROP's code", READOUTS, strict=True
    )
    bn_type: str = opt("LearnedBatchNorm", "NonAffineBatchNorm has no weight and no bias, the others do", BN_TYPES)
    bn_weight_init: float | None = opt(
        None, "initial weight of every batch norm", ">= -1e6 and <= 1e6", unset="1", warn_in_files=True
    )
    bn_bias_init: float | None = opt(
        None, "initial bias of every batch norm", ">= -1e6 and <= 1e6", unset="0", warn_in_files=True
    )
    bn_eps: float | None = opt(None, "epsilon of batch norm", "> 0 and <= 1000", unset="1e-5", warn_in_files=True)
    bn_momentum: float | None = opt(
        None, "momentum of batch norm, as torch defines it", "> 0 and <= 1", unset="0.1", warn_in_files=True
    )
    init: str = opt("kaiming_normal", "distribution of the initial weights", INITS)
    mode: str = opt("fan_in", "fan that scales the initial weights", ["fan_in", "fan_out"])
    nonlinearity: str = opt("relu", "nonlinearity whose gain scales the initial weights", GAINS)
    scale_fan: bool = opt(False, "multiply mode's fan by (1 - prune_rate), as in BIPROP", warn_in_files=True)


@dataclass(frozen=True)
class ConstraintOptions:
    """Options of pruning, rewiring, freezing and quantization of the weights."""

    conv_type: str = opt("DenseConv", "constraint on the weights of the layers, see docs/concepts.md", CONV_TYPES)
    prune_rate: float | None = opt(
        None, "fraction of the weights that is KEPT (historic name)", "", "--density", warn_in_files=True, wanted=KEPT
    )
    prune_rate_epoch: int = opt(
        10,
        f"epochs in which the density of {FALLING} falls from {DENSITY_START} to prune_rate; 0: none",
        ">= 0 and <= 1e6",
    )
    score_init_constant: float | None = opt(
        None, "initial score of every weight", ">= -1e6 and <= 1e6", unset="random", strict=True
    )
    initial_ones: float = opt(0.001, "fraction of ones among the initial weights", ">= 0 and <= 1")
    first_layer_dense: bool = opt(False, "leave the first layer unconstrained")
    last_layer_dense: bool = opt(False, "leave the last layer unconstrained")
    first_layer_type: str | None = opt(None, "conv_type of the first layer", CONV_TYPES, unset="conv_type")
    drop: str = opt(
        "hebbian",
        "connections with the lowest score are dropped; hebbian: co-activation, magnitude_per_sign: as in SET",
        DROP_CRITERIA,
    )
    grow: str = opt(
        "hebbian",
        "connections with the highest score are grown; hebbian: co-activation, none: no connection grows",
        GROW_CRITERIA,
    )
    update_interval: int = opt(20, "steps between updates of the hebbian and correlation statistics", ">= 1 and <= 1e9")
    progress_interval: int | None = opt(
        None, "steps between rewirings", ">= 1 and <= 1e9", unset=f"{REWIRE_EVERY} with a prune_rate, else one epoch"
    )
    progress_until: float | None = opt(
        None,
        "fraction of training after which rewiring stops",
        "> 0 and <= 1",
        unset=f"{REWIRE_UNTIL} with a prune_rate, else 1",
    )
    drop_fraction: float = opt(
        0.3, "fraction of connections that the first rewiring replaces; decays to 0 by a cosine", "> 0 and <= 1"
    )
    keep_share: float = opt(
        0.1, "without prune_rate: fraction of each filter's weights that a rewiring does not drop", "> 0 and <= 1"
    )
    live_share: float = opt(
        0.15,
        "without prune_rate: fraction of each filter's weights that are nonzero after a rewiring; with drop random, "
        "the probability that a weight is nonzero",
        "> 0 and <= 1",
    )
    layer_density: str = opt(
        "uniform", "uniform: prune_rate in each layer; erdos_renyi_kernel: more in small layers", LAYER_DENSITIES
    )
    density_schedule: str = opt(
        "constant", f"schedule of the density; cubic falls from {DENSITY_START} to prune_rate", DENSITY_SCHEDULES
    )
    sparse_hold: bool = opt(True, "keep dropped weights at 0; if off, they are set to 0 once and train on")
    freeze_weights: bool = opt(False, "train only the scores; weights, biases and batch norms are frozen")
    learn_batchnorm: bool = opt(False, "train batch norm too", needs="freeze_weights", warn_in_files=True)
    tune_batchnorm: bool = opt(
        False, "with learn_batchnorm or bn_bias_only: freeze the scores", needs="freeze_weights", warn_in_files=True
    )
    bn_bias_only: bool = opt(
        False, "train the biases of batch norm too, but not its weights", needs="freeze_weights", warn_in_files=True
    )
    weight_bits: int = opt(5, "bits per weight, for sign and shift", ">= 2 and <= 8")
    rounding: str = opt("deterministic", "rounding of shifts in training", ROUNDINGS)
    activation_bits: tuple[int, ...] | None = opt(
        None,
        "fixed-point bits of inputs and biases before and after the point, as in 16,16",
        ">= 0 and <= 64",
        unset="16,16 in most layers",
    )
    shift_depth: int | None = opt(
        None,
        "constrain only so many layers, counted from the output",
        ">= 1 and <= 1000",
        needs=f"conv_type {SHIFT_TYPES}",
        unset="all",
    )
    shift_update: str = opt("ste", SHIFT_UPDATE_TEXT, SHIFT_UPDATES)
    shift_init: str = opt("uniform", "initial shifts and signs: random (uniform), or rounded weights", SHIFT_INITS)
    freeze_sign: bool = opt(False, "train only the shifts")

    @property
    def density(self) -> float:
        """Fraction of the weights that pruning keeps: prune_rate, or 1.0 without it."""
        return 1.0 if self.prune_rate is None else self.prune_rate

    @property
    def layer_types(self) -> set[str]:
        """Values of conv_type that the layers have, including that of the first layer."""
        first = "DenseConv" if self.first_layer_dense else self.first_layer_type or self.conv_type
        return {self.conv_type, first}

    @property
    def rows(self) -> list[ConvType]:
        """Rows of the registry CONV_TYPES that describe the constraints on the layers."""
        return [CONV_TYPES[name] for name in sorted(self.layer_types)]

    @property
    def trainers(self) -> set[str]:
        """Names of the training methods that the constraints need, besides the default one."""
        return {row.trainer for row in self.rows} - {"default"}

    @property
    def is_pruned(self) -> bool:
        """True if a constraint prunes weights, so that the option prune_rate has an effect."""
        return any(row.density != "unused" for row in self.rows)

    @property
    def needs_density(self) -> bool:
        """True if a constraint requires a density, so that the option prune_rate must be given."""
        return any(row.density == "required" for row in self.rows)

    @property
    def density_falls(self) -> bool:
        """True if the fraction of kept weights falls to prune_rate during the first prune_rate_epoch epochs."""
        return any(row.density_falls for row in self.rows) and 0 < (self.prune_rate or 1) < DENSITY_START

    @property
    def is_rewired(self) -> bool:
        """True if training drops some connections and grows others."""
        return "sparse" in self.trainers

    @property
    def rewires_layers(self) -> bool:
        """True if rewiring replaces connections layer by layer, at the density that prune_rate sets."""
        return self.is_rewired and self.prune_rate not in (None, -1)

    @property
    def rewires_filters(self) -> bool:
        """True if rewiring replaces connections filter by filter, because no prune_rate is given."""
        return self.is_rewired and not self.rewires_layers
