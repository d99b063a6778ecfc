"""Checks for options that contradict each other. Each returns "" or the end of a message to the user.

The whole message is "<option>: <value> in FILE, but <what the function returns>".
"""

from models.constraints.registry import CONV_TYPES, DENSITY_START, FIXED_POINT, REWIRE_UNTIL, is_fixed_point
from models.registry import BN_TYPES, INITS
from trainers.registry import TRAINERS
from utils.config.checks import LAYER_TYPES, Checks, Function, Given
from utils.config.fields import wanted
from utils.config.options import FIELDS, Options
from utils.files import writable
from utils.paths import LONGEST_NAME
from utils.registry import either
from utils.steps import LARGEST_STEP, MOST_STEPS, STEPS, stepped

ERRORS = Checks()
FRACTION_KEPT = f"it must be {wanted(FIELDS['prune_rate'])}: the fraction of weights kept"


def _needs_affine(name: str) -> Function:
    def check(o: Options, _given: Given) -> str:
        fault = f"bn_type {o.model.bn_type} has neither weight nor bias; it needs another bn_type"
        return "" if o.value(name) is None or BN_TYPES[o.model.bn_type] else fault

    return check


for _name in ("bn_weight_init", "bn_bias_init"):
    ERRORS.add(_name, "bn_type")(_needs_affine(_name))


@ERRORS.add("first_layer_type", "first_layer_dense")
def first_layer(o: Options, _given: Given) -> str:
    if o.constraint.first_layer_dense and o.constraint.first_layer_type not in (None, "DenseConv"):
        return "it contradicts first_layer_dense; leave out one of the two"
    return ""


@ERRORS.add("first_layer_type", "shift_depth conv_type")
def first_layer_and_depth(o: Options, _given: Given) -> str:
    c = o.constraint
    if c.shift_depth and c.first_layer_type and CONV_TYPES[c.conv_type].trainer == "shift":
        return "it contradicts shift_depth, which picks the layers to constrain; leave out one of the two"
    return ""


@ERRORS.add("first_layer_type", LAYER_TYPES)
def one_trainer(o: Options, _given: Given) -> str:
    if len(o.constraint.trainers) > 1:
        return f"it needs another trainer than conv_type {o.constraint.conv_type}, and a run has only one"
    return ""


@ERRORS.add("conv_type", f"{LAYER_TYPES} pretrained resume check")
def ticket(o: Options, _given: Given) -> str:
    if any(row.needs_ticket for row in o.constraint.rows) and not (o.run.pretrained or o.run.resume or o.run.check):
        return "it takes its mask from a trained network: pass --pretrained FILE, or use RGConv for a random mask"
    return ""


@ERRORS.add("prune_rate")
def fraction_kept(o: Options, _given: Given) -> str:
    rate = o.constraint.prune_rate
    return "" if rate in (None, -1, 0) or (rate is not None and 0 < rate <= 1) else FRACTION_KEPT


@ERRORS.add("prune_rate", LAYER_TYPES)
def prune_rate(o: Options, _given: Given) -> str:
    c = o.constraint
    if c.prune_rate in (None, -1) and c.needs_density:
        return "it must be given: the fraction of weights kept, e.g. --prune-rate 0.5 (-1 in a file means not given)"
    if c.prune_rate == 0 and c.is_pruned:
        return FRACTION_KEPT
    if c.prune_rate == 1 and c.is_rewired:
        return "a network without zeros has nothing to rewire: it must be < 1, or -1 to rewire filter by filter"
    return ""


@ERRORS.add("prune_rate_epoch", f"{LAYER_TYPES} prune_rate epochs dry_run")
def prune_rate_epoch(o: Options, _given: Given) -> str:
    c, epochs = o.constraint, o.optim.epochs
    if c.density_falls and c.prune_rate_epoch >= epochs and not o.run.dry_run:
        return f"the density must reach prune_rate before the run ends: it must be < epochs ({epochs}); 0: no schedule"
    return ""


@ERRORS.add("scale_fan", f"init prune_rate {LAYER_TYPES}")
def scale_fan(o: Options, _given: Given) -> str:
    c = o.constraint
    keeps_all = c.prune_rate == 1 or (c.prune_rate in (None, -1) and not c.needs_density)
    if o.model.scale_fan and INITS[o.model.init].scale_fan and c.is_pruned and keeps_all:
        return "it scales the fan by 1 - prune_rate, which is 0 here; it needs prune_rate < 1"
    return ""


@ERRORS.add("gaussian_aug", "augmix")
def one_augmentation(o: Options, _given: Given) -> str:
    return "it contradicts augmix; leave out one of the two" if o.data.gaussian_aug and o.data.augmix else ""


@ERRORS.add("jsd", "augmix gaussian_aug")
def jsd(o: Options, _given: Given) -> str:
    return "it needs augmix or gaussian_aug" if o.data.jsd and not (o.data.gaussian_aug or o.data.augmix) else ""


@ERRORS.add("trainer", LAYER_TYPES)
def trainer(o: Options, _given: Given) -> str:
    wanted = TRAINERS[o.optim.trainer].variant_of or o.optim.trainer
    types = [name for name, row in CONV_TYPES.items() if row.trainer == wanted]
    return "" if wanted in {"default", *o.constraint.trainers} else f"it needs conv_type {either(types)}"


@ERRORS.add("activation_bits")
def activation_bits(o: Options, _given: Given) -> str:
    bits = o.constraint.activation_bits
    return "" if bits is None or is_fixed_point(bits) else FIXED_POINT


@ERRORS.add("freeze_weights", LAYER_TYPES)
def freeze_weights(o: Options, _given: Given) -> str:
    trained = [name for name in sorted(o.constraint.layer_types) if not CONV_TYPES[name].freezable]
    scored = any(row.scores for row in o.constraint.rows)
    if o.constraint.freeze_weights and trained and not scored:
        return f"conv_type {trained[0]} trains its weights and has no scores; leave out freeze_weights"
    return ""


@ERRORS.add("precision", LAYER_TYPES)
def precision(o: Options, _given: Given) -> str:
    if o.run.precision == "bf16" and o.needs_fp32:
        return "fixed-point inputs have more bits than bf16; it must be fp32 or auto"
    return ""


@ERRORS.add("sweep_on")
def sweep_on(o: Options, _given: Given) -> str:
    try:
        stepped(o.optim.sweep_on)
    except (ValueError, OverflowError):
        return f"it must be {STEPS}, such as 0:4:0.1, with at most {MOST_STEPS} numbers from 0 to {LARGEST_STEP}"
    return ""


@ERRORS.add("grow", f"drop density_schedule prune_rate {LAYER_TYPES}")
def grow(o: Options, _given: Given) -> str:
    c = o.constraint
    if c.grow == "none" and c.rewires_layers and c.density_schedule == "constant":
        return "at a constant density as many connections must grow as are dropped; it needs density_schedule cubic"
    if c.grow != "random" and c.drop == "random" and c.rewires_filters:
        return "drop random without a prune_rate also grows at random; it must be random"
    return ""


@ERRORS.add("drop", f"prune_rate {LAYER_TYPES}")
def drop(o: Options, _given: Given) -> str:
    if o.constraint.drop == "magnitude_per_sign" and o.constraint.rewires_filters:
        return "it drops a fraction of each layer's weights of either sign, and that needs a prune_rate"
    return ""


@ERRORS.add("density_schedule", f"prune_rate {LAYER_TYPES}")
def density_schedule(o: Options, _given: Given) -> str:
    c = o.constraint
    falls = c.rewires_layers and c.prune_rate is not None and c.prune_rate < DENSITY_START
    if c.density_schedule == "cubic" and c.is_rewired and not falls:
        return f"the density falls from {DENSITY_START} to prune_rate: it needs a prune_rate below {DENSITY_START}"
    return ""


@ERRORS.add("sparse_hold", f"prune_rate {LAYER_TYPES}")
def sparse_hold(o: Options, _given: Given) -> str:
    if not o.constraint.sparse_hold and o.constraint.rewires_layers:
        return "with a prune_rate dropped weights must stay 0; leave out one of the two options"
    return ""


@ERRORS.add("keep_share", f"live_share drop prune_rate {LAYER_TYPES}")
def keep_share(o: Options, _given: Given) -> str:
    c = o.constraint
    if c.keep_share > c.live_share and c.rewires_filters and c.drop != "random":
        return f"it must be at most live_share ({c.live_share})"
    return ""


@ERRORS.add("dense_epochs", f"trainer epochs dry_run prune_rate prune_rate_epoch {LAYER_TYPES}")
def dense_epochs(o: Options, _given: Given) -> str:
    c, dense, epochs = o.constraint, o.optim.dense_epochs, o.optim.epochs
    if o.optim.trainer != "lottery" or o.run.dry_run:
        return ""
    if dense >= epochs:
        return f"it must be < epochs ({epochs})"
    if c.density_falls and c.prune_rate_epoch < epochs <= dense + c.prune_rate_epoch:
        return f"dense_epochs + prune_rate_epoch must be < epochs ({epochs})"
    return ""


@ERRORS.add("nesterov", "momentum")
def nesterov(o: Options, _given: Given) -> str:
    return "it needs momentum > 0" if o.optim.nesterov and o.optim.momentum == 0 else ""


@ERRORS.add("start_epoch", "epochs resume")
def start_epoch(o: Options, given: Given) -> str:
    if o.optim.start_epoch is not None and o.optim.start_epoch >= o.optim.epochs:
        return f"it must be < epochs ({o.optim.epochs})"
    if "start_epoch" in given.typed and o.optim.start_epoch is not None and o.run.resume:
        return "a resumed run continues where it stopped; leave out start_epoch or resume"
    return ""


@ERRORS.add("start_epoch", f"epochs progress_until density_schedule prune_rate {LAYER_TYPES}")
def start_before_density_is_reached(o: Options, _given: Given) -> str:
    c, start, epochs = o.constraint, o.optim.start_epoch, o.optim.epochs
    falls = c.rewires_layers and c.density_schedule == "cubic"
    if falls and start is not None and (c.progress_until or REWIRE_UNTIL) * epochs <= start < epochs:
        return "density_schedule cubic ends before this epoch; it must be < progress_until * epochs"
    return ""


@ERRORS.add("pretrained", "resume")
def pretrained(o: Options, _given: Given) -> str:
    if o.run.pretrained and o.run.resume not in (None, "auto"):
        return "a resumed run continues where it stopped; leave out pretrained or resume"
    return ""


@ERRORS.add("evaluate", "resume pretrained")
def evaluate(o: Options, _given: Given) -> str:
    if o.run.evaluate and not (o.run.resume or o.run.pretrained):
        return "it needs a trained network: --resume PATH or --pretrained FILE"
    return ""


@ERRORS.add("name")
def name(o: Options, _given: Given) -> str:
    text, most = o.run.name or "-", LONGEST_NAME
    if text[0] == "." or "/" in text or len(text) > most or len(text.encode()) > 200:  # options are appended to it
        return f"it must be one path component of at most {most} characters (200 bytes) that does not begin with a dot"
    return ""


@ERRORS.add("log_dir")
def log_dir(o: Options, given: Given) -> str:
    unusable = "log_dir" in given.chosen and not writable(o.run.log_dir or "")
    return "it must be a folder that you can write to" if unusable else ""


@ERRORS.add("multigpu", "device")
def multigpu(o: Options, given: Given) -> str:
    gpus = o.run.multigpu or ()
    if len(set(gpus)) < len(gpus):
        return "each GPU may be listed only once"
    if gpus and o.run.device == "cpu" and "multigpu" in given.typed:
        return "device is cpu; leave out one of the two options"
    return ""
