"""What options cannot be together, and which have no effect: lines over the values taken, checked by `args.parse`."""

import re
from typing import Any

from utils.config.fields import LARGEST_STEP, STEPPED, Renamed, Rule, stepped, writable

ALIASES = {"density": "prune_rate"}
DEAD = ["world_size", "rank", "random_subnet", "debug", "multistep_lr_adjust", "multistep_lr_gamma"]
RENAMED: Renamed = {
    ("trainer", "anomaly"): {"trainer": "default", "detect_anomaly": True},
    ("trainer", "parallel"): {"trainer": "default"},
    ("set", "CIFAR10_gaussian"): {"set": "CIFAR10", "gaussian_aug": True},
    ("set", "CIFAR10_augmix"): {"set": "CIFAR10", "augmix": True},
}
SCORED = {"SubnetConv", "GlobalSubnetConv", "SampleSubnetConv"}  # gradient descent moves their scores
SHIFTS = {"ShiftQ", "ShiftPS"}
TRAINER_OF = dict.fromkeys(SCORED, "prune_score") | {"BinaryConv": "binary", "SparseConv": "sparse"}
TRAINER_OF |= dict.fromkeys(SHIFTS, "shift")
RANKED = {"SubnetConv", "GlobalSubnetConv", "FixedSubnetConv"}  # they keep the prune_rate best
ONLY = {  # option -> the option that gives it its effect
    **dict.fromkeys(("std_gauss", "p_clean"), "gaussian_aug"),
    **dict.fromkeys(("all_augmix_augmentations", "mixture_width", "mixture_depth", "aug_severity"), "augmix"),
}
DECAYED = ("sgd", "adamw")  # the optimizers that weight_decay reaches, as in the original
FAN_SCALED = ("kaiming_normal", "signed_constant", "unsigned_constant", "usc_bernoulli")
WARMED = ("constant_lr", "cosine_lr", "cos_multi_lr")  # the lr_policies that warmup_length reaches
MLP_ONLY = ("hidden", "bias", "activation", "norm", "dropout")
MLPS = ("MLP", "CircuitMLP")
BN_TRAINED = ("learn_batchnorm", "tune_batchnorm", "bn_bias_only")
TICKETS = ("prune_score", "lottery", "ss")
SMALL_RESNET = r"cResNet(20|32|44|56|110)(_BinAct)?"
NOT_DENSE = "it contradicts first_layer_dense; leave out one of the two"
NOT_DEEP = "it contradicts shift_depth, which counts from the last layer; leave out one of the two"
NO_AFFINE = "NonAffineBatchNorm has neither weight nor bias; it needs another bn_type"
GIVE_IT = "it must be given: the fraction of weights kept, e.g. --prune-rate 0.5 (-1 leaves it to the command line)"
FRESH = "a resumed run goes on where it stopped; leave out this or resume"
TESTED = "it needs a trained network: --resume PATH or --pretrained FILE"
NEVER = "the schedule must end before the run does: prune_rate_epoch < epochs, {epochs} (0: no schedule)"
TOO_DENSE = "conv_type GlobalSubnetConv and a prune_rate below 0.5"
NO_SCORES = "it trains scores: conv_type SubnetConv, GlobalSubnetConv or SampleSubnetConv"
NO_NOISE = "p_clean below 1: every image stays clean"
UNTAUGHT = "it needs the ticket whose mask it keeps: --pretrained FILE (RGConv takes a random mask)"
NO_FOLDER = "it must be one path component of at most 99 characters (200 bytes) that does not begin with a dot"
STEPS = f"it must be {STEPPED}, such as 0:4:0.1: at most 1000 numbers from 0 to {LARGEST_STEP}"
BINARY = ("epsilon", "random_mag", "sweep_on", "sweep_every")
MIXED = "its trainer is not that of conv_type {conv_type}; a run has one"
FROZEN = "SparseConv trains its weights"
KEPT_ALL = "nothing could move: it needs to be < 1, or -1 for progress filter by filter"
NO_GROWTH = "with a constant prune_rate as many must grow as are dropped; it needs density_schedule cubic"
CONTROL = "drop random without a prune_rate is the notebook's control, which redraws at random: give grow random"
OF_LAYER = "it drops a share of a layer's weights of either sign: it needs a prune_rate"
NOT_HELD = "with a prune_rate what is dropped must stay 0; leave out one of the two"
LATE = "density_schedule cubic ends before that epoch; it must be < progress_until * epochs"
TOO_FULL = "it falls from 0.5 to prune_rate, which must be given and below that"
LESS_LIVE = "it must be at most live_share, {live_share}"
SPARSE_ONLY = ["drop", "grow", "update_interval", "progress_interval", "progress_until", "drop_fraction", "keep_share"]
SPARSE_ONLY += ["live_share", "layer_density", "density_schedule", "sparse_hold"]
BY_FILTER = ("keep_share", "live_share")  # options of SparseConv that need its prune_rate to be left out
BY_LAYER = ("drop_fraction", "layer_density")  # and those that need it given
PRUNING = "conv_type SubnetConv or another that it belongs to"
A_SHIFT = "conv_type ShiftQ or ShiftPS"
FIXED_POINT = (
    "it must be two ints: bits before the point, sign included (>= 2 and <= 25), and behind it, together <= 32"
)
NO_SCORE = "shift weights have no scores to train in their place; leave it out"
MORE_BITS = "inputs in fixed point have more bits than bf16; it must be fp32 or auto"


def types(v: Any) -> set[str | None]:
    """The conv types of the network's layers."""
    return {v.conv_type, "DenseConv" if v.first_layer_dense else v.first_layer_type}


def trainers(v: Any) -> set[str]:
    """The trainers that the conv types need, but the default one."""
    return {TRAINER_OF[kind] for kind in types(v) if kind in TRAINER_OF}


def pruned(v: Any) -> bool:
    """Whether `prune_rate` means anything."""
    return bool(types(v) & (RANKED | {"RGConv", "SparseConv"}))


def no_share(v: Any) -> bool:
    """Whether prune_rate is neither a fraction nor a word for none: -1, and 0 where nothing is pruned."""
    return v.prune_rate not in (None, -1) and not 0 < v.prune_rate <= 1 and (v.prune_rate != 0 or pruned(v))


def keeps_all(v: Any) -> bool:
    """Whether prune_rate is 1, given or by default."""
    return v.prune_rate == 1 or (v.prune_rate in (None, -1) and not types(v) & RANKED)


def falls(v: Any) -> bool:
    """Whether prune_rate_epoch means anything: the global density starts from 0.5."""
    return "GlobalSubnetConv" in types(v) and 0 < (v.prune_rate or 1) < 0.5


def shifting(v: Any) -> bool:
    """Whether the options of shift weights mean anything."""
    return bool(types(v) & SHIFTS)


def is_fixed_point(bits: tuple[int, ...]) -> bool:
    """Whether [i, f] is a usable fixed point of at most 32 bits: with i = 1 the largest number, 2^(i-1) - 1, is 0, and
    beyond i = 25 it is no float32."""
    return len(bits) == 2 and 2 <= bits[0] <= 25 and bits[1] >= 0 and sum(bits) <= 32


def no_folder(name: str) -> bool:
    """Whether a name is that of no folder, a hidden one, or too long with what is added to it."""
    return not re.fullmatch(r"(?!\.)[^/]{1,99}", name) or len(name.encode()) > 200


def no_steps(text: str) -> bool:
    """Whether a sweep is not to be understood."""
    try:
        return not (stepped(text) or text == "none")
    except (ValueError, OverflowError):
        return True


def schedule_unfinished(v: Any) -> bool:
    return falls(v) and v.prune_rate_epoch >= v.epochs and not v.dry_run


def ticket_unfinished(v: Any) -> bool:
    late = falls(v) and v.trainer == "lottery" and v.dense_epochs + v.prune_rate_epoch >= v.epochs
    return late and not (schedule_unfinished(v) or ticket_undrawn(v) or v.dry_run)


def ticket_undrawn(v: Any) -> bool:
    return v.trainer == "lottery" and v.dense_epochs >= v.epochs and not v.dry_run


def sparse(v: Any) -> bool:
    return "SparseConv" in types(v)


def by_layer(v: Any) -> bool:
    """Whether SparseConv keeps a density: else its connections progress filter by filter."""
    return sparse(v) and v.prune_rate not in (None, -1)


def by_filter(v: Any) -> bool:
    return sparse(v) and not by_layer(v)


def never_falls(v: Any) -> bool:
    return v.density_schedule == "cubic" and sparse(v) and not (by_layer(v) and v.prune_rate < 0.5)


def begins_late(v: Any) -> bool:
    """Return whether the density of SparseConv stops falling before the first epoch."""
    falling = by_layer(v) and v.density_schedule == "cubic" and v.start_epoch is not None
    return falling and (v.progress_until or 0.75) * v.epochs <= v.start_epoch < v.epochs


def uncounted(v: Any) -> bool:
    """Whether no rule of SparseConv looks at strengths."""
    return v.drop not in ("hebbian", "correlation") and v.grow != "hebbian"


def tunes_alone(v: Any) -> bool:
    return v.tune_batchnorm and v.freeze_weights and not (v.learn_batchnorm or v.bn_bias_only)


# (option, when it is wrong, what would be right). A rule that looks at a value that is wrong by itself is skipped.
ERRORS: list[Rule] = [
    *(
        (n, lambda v, n=n: getattr(v, n) and v.arch not in MLPS, "it needs arch MLP or CircuitMLP, not {arch}")
        for n in MLP_ONLY
    ),
    (
        "readout",
        lambda v: v.readout != "pooled" and not re.fullmatch(SMALL_RESNET, v.arch),
        "it needs cResNet20 to cResNet110, not {arch}",
    ),
    ("bn_weight_init", lambda v: v.bn_weight_init is not None and v.bn_type == "NonAffineBatchNorm", NO_AFFINE),
    ("bn_bias_init", lambda v: v.bn_bias_init is not None and v.bn_type == "NonAffineBatchNorm", NO_AFFINE),
    ("first_layer_type", lambda v: v.first_layer_dense and v.first_layer_type not in (None, "DenseConv"), NOT_DENSE),
    ("first_layer_type", lambda v: v.shift_depth and v.conv_type in SHIFTS and v.first_layer_type, NOT_DEEP),
    ("prune_rate", lambda v: types(v) & RANKED and v.prune_rate in (None, -1), GIVE_IT),
    ("prune_rate", no_share, "it must be a float > 0 and <= 1: the fraction of weights kept"),
    ("prune_rate_epoch", schedule_unfinished, NEVER),
    (
        "scale_fan",
        lambda v: v.scale_fan and v.init in FAN_SCALED and pruned(v) and keeps_all(v),
        "the fan is 0; it needs prune_rate < 1",
    ),
    (
        "score_init_constant",
        lambda v: v.score_init_constant is not None and "SampleSubnetConv" not in types(v),
        "it needs conv_type SampleSubnetConv: equal scores rank nothing",
    ),
    ("gaussian_aug", lambda v: v.gaussian_aug and v.augmix, "it is one or the other; leave out this or augmix"),
    ("jsd", lambda v: v.jsd and not (v.gaussian_aug or v.augmix), "it needs augmix or gaussian_aug"),
    ("trainer", lambda v: v.trainer in TICKETS and not types(v) & SCORED, NO_SCORES),
    *(
        ("trainer", lambda v, kind=kind, of=of: v.trainer == of and kind not in types(v), f"it needs conv_type {kind}")
        for kind, of in (("BinaryConv", "binary"), ("SparseConv", "sparse"))
    ),
    ("trainer", lambda v: v.trainer == "shift" and not shifting(v), f"it needs {A_SHIFT}"),
    ("first_layer_type", lambda v: len(trainers(v)) > 1, MIXED),
    ("activation_bits", lambda v: v.activation_bits is not None and not is_fixed_point(v.activation_bits), FIXED_POINT),
    ("freeze_weights", lambda v: v.freeze_weights and shifting(v), NO_SCORE),
    ("precision", lambda v: v.precision == "bf16" and shifting(v), MORE_BITS),
    ("sweep_on", lambda v: no_steps(v.sweep_on), STEPS),
    ("freeze_weights", lambda v: v.freeze_weights and sparse(v) and not types(v) & SCORED, FROZEN),
    ("prune_rate", lambda v: v.prune_rate == 1 and sparse(v), KEPT_ALL),
    ("grow", lambda v: v.grow == "none" and by_layer(v) and v.density_schedule == "constant", NO_GROWTH),
    ("grow", lambda v: v.grow != "random" and v.drop == "random" and by_filter(v), CONTROL),
    ("drop", lambda v: v.drop == "magnitude_per_sign" and by_filter(v), OF_LAYER),
    ("density_schedule", never_falls, TOO_FULL),
    ("sparse_hold", lambda v: not v.sparse_hold and by_layer(v), NOT_HELD),
    ("keep_share", lambda v: v.keep_share > v.live_share and by_filter(v) and v.drop != "random", LESS_LIVE),
    ("dense_epochs", ticket_undrawn, "it must be < epochs, {epochs}"),
    ("dense_epochs", ticket_unfinished, "dense_epochs + prune_rate_epoch must be < epochs, {epochs}"),
    ("nesterov", lambda v: v.nesterov and v.optimizer != "sgd", "it needs optimizer sgd, not {optimizer}"),
    ("nesterov", lambda v: v.nesterov and v.momentum == 0, "it needs momentum > 0"),
    ("start_epoch", lambda v: v.start_epoch is not None and v.start_epoch >= v.epochs, "it must be < epochs, {epochs}"),
    ("start_epoch", begins_late, LATE),
    ("start_epoch", lambda v: "start_epoch" in v.typed and v.resume, FRESH),
    ("pretrained", lambda v: v.pretrained and v.resume not in (None, "auto"), FRESH),
    (
        "conv_type",
        lambda v: "FixedSubnetConv" in types(v) and not (v.pretrained or v.resume or v.check),
        UNTAUGHT,
    ),
    ("evaluate", lambda v: v.evaluate and not (v.resume or v.pretrained), TESTED),
    ("name", lambda v: v.name and no_folder(v.name), NO_FOLDER),
    ("log_dir", lambda v: "log_dir" in v.chosen and not writable(v.log_dir or ""), "it must be a folder one can write"),
    ("multigpu", lambda v: v.multigpu and len(set(v.multigpu)) < len(v.multigpu), "each GPU can be named once"),
    (
        "multigpu",
        lambda v: v.multigpu and v.device == "cpu" and "multigpu" in v.typed,
        "device is cpu; leave out one of the two",
    ),
]
REMARKS: list[Rule] = [
    ("gaussian_aug", lambda v: v.gaussian_aug and v.p_clean == 1, NO_NOISE),
    ("prune_rate", lambda v: not pruned(v) and v.prune_rate not in (None, -1, 0, 1), PRUNING),
    ("scale_fan", lambda v: not pruned(v) and v.scale_fan, PRUNING),
    (
        "scale_fan",
        lambda v: pruned(v) and v.scale_fan and v.init not in FAN_SCALED,
        f"init {', '.join(FAN_SCALED[:-1])} or {FAN_SCALED[-1]}",
    ),
    *(
        (n, lambda v, n=n: n in v.typed and v.lr_policy != "multistep_lr", "lr_policy multistep_lr")
        for n in ("lr_adjust", "lr_gamma")
    ),
    (
        "warmup_length",
        lambda v: "warmup_length" in v.typed and v.lr_policy not in WARMED,
        "lr_policy constant_lr or cosine_lr",
    ),
    ("optimizer_eps", lambda v: v.optimizer_eps is not None and v.optimizer == "sgd", "optimizer adam or another"),
    ("momentum", lambda v: "momentum" in v.typed and v.optimizer != "sgd", "optimizer sgd"),
    *(
        (n, lambda v, n=n: n in v.typed and getattr(v, n) and v.optimizer not in DECAYED, "optimizer sgd or adamw")
        for n in ("weight_decay", "no_bn_decay")
    ),
    *(
        (n, lambda v, n=n: n in v.typed and v.init not in (*FAN_SCALED, "kaiming_uniform"), "an init that scales by it")
        for n in ("mode", "nonlinearity")
    ),
    (
        "init",
        lambda v: "init" in v.typed and types(v) <= {"BinaryConv", None} and not v.last_layer_dense,
        "layers that are not BinaryConv",
    ),
    ("width_mult", lambda v: v.width_mult != 1 and "Wide" not in v.arch, "a Wide arch, such as Conv4Wide"),
    ("prune_rate_epoch", lambda v: "prune_rate_epoch" in v.typed and not falls(v), TOO_DENSE),
    ("dense_epochs", lambda v: "dense_epochs" in v.typed and v.trainer != "lottery", "trainer lottery"),
    ("initial_ones", lambda v: "initial_ones" in v.typed and "BinaryConv" not in types(v), "conv_type BinaryConv"),
    *((n, lambda v, n=n: n in v.typed and "BinaryConv" not in types(v), "trainer binary") for n in BINARY),
    ("epsilon", lambda v: "epsilon" in v.typed and "BinaryConv" in types(v) and not v.random_mag, "random_mag > 0"),
    *((n, lambda v, n=n: n in v.typed and not sparse(v), "conv_type SparseConv") for n in SPARSE_ONLY),
    *((n, lambda v, n=n: n in v.typed and by_layer(v), "leaving out prune_rate") for n in BY_FILTER),
    *((n, lambda v, n=n: n in v.typed and by_filter(v), "prune_rate") for n in BY_LAYER),
    (
        "keep_share",
        lambda v: "keep_share" in v.typed and by_filter(v) and v.drop == "random",
        "another drop than random",
    ),
    ("update_interval", lambda v: "update_interval" in v.typed and sparse(v) and uncounted(v), "a hebbian rule"),
    ("score_l1", lambda v: "score_l1" in v.typed and v.trainer != "ss", "trainer ss"),
    *(
        (n, lambda v, n=n: n in v.typed and not shifting(v), A_SHIFT)
        for n in ("weight_bits", "rounding", "activation_bits")
    ),
    (
        "weight_bits",
        lambda v: "weight_bits" in v.typed and v.shift_update == "crude" and types(v) & SHIFTS == {"ShiftQ"},
        "shift_update ste",
    ),
    ("shift_depth", lambda v: "shift_depth" in v.typed and v.conv_type not in SHIFTS, A_SHIFT),
    ("shift_update", lambda v: "shift_update" in v.typed and "ShiftQ" not in types(v), "conv_type ShiftQ"),
    *(
        (n, lambda v, n=n: n in v.typed and "ShiftPS" not in types(v), "conv_type ShiftPS")
        for n in ("shift_init", "freeze_sign")
    ),
    *((n, lambda v, n=n, of=of: n in v.typed and not getattr(v, of), of) for n, of in ONLY.items()),
    *((n, lambda v, n=n: getattr(v, n) and not v.freeze_weights, "freeze_weights") for n in BN_TRAINED),
    *((n, lambda v, n=n: getattr(v, n) and v.bn_type == "NonAffineBatchNorm", "an affine bn_type") for n in BN_TRAINED),
    ("tune_batchnorm", tunes_alone, "learn_batchnorm or bn_bias_only"),
]
