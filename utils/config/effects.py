"""Options without an effect. Each function returns what is missing, or "".

The message is "<option>: <value> on the command line has no effect without <what is missing>". Most checks follow from
the registries, whose rows list the options that they take, and from `needs` in the options' declarations.
"""

from collections.abc import Callable, Mapping
from typing import Any

from data.registry import SETS
from models.constraints.registry import CONV_TYPES, DENSITY_START, DROP_CRITERIA, GROW_CRITERIA
from models.registry import ARCHS, INITS
from trainers.registry import OPTIMIZERS, TRAINERS
from utils.config.checks import LAYER_TYPES, Check, Checks, Function, Given
from utils.config.fields import Need
from utils.config.options import FIELDS, Options
from utils.registry import either

MISSING_EFFECTS = Checks()
Registry = tuple[Mapping[str, Any], str, Callable[[Options], set[str]]]  # rows, options that pick some, names picked
TABLES: dict[str, Registry] = {
    "arch": (ARCHS, "arch", lambda o: {o.model.arch}),
    "optimizer": (OPTIMIZERS, "optimizer", lambda o: {o.optim.optimizer}),
    "init": (INITS, "init", lambda o: {o.model.init}),
    "conv_type": (CONV_TYPES, LAYER_TYPES, lambda o: o.constraint.layer_types),
    "trainer": (TRAINERS, f"trainer {LAYER_TYPES}", lambda o: {o.trainer}),
}
BY_HAND = {"prune_rate", "prune_rate_epoch"}  # further rules apply to them


def _takers(table: str, names: list[str]) -> str:
    """Name the rows that take an option. A trainer that a conv_type chooses is named by that conv_type."""
    if table == "trainer":
        types = [name for name, row in CONV_TYPES.items() if row.trainer in names and row.trainer != "default"]
        if types:
            return f"conv_type {either(types)}"
    shown = [*names[:3], f"{len(names) - 3} others"] if len(names) > 5 else names
    return f"{table} {either(shown)}"


def row_checks(*, strict: bool) -> list[Check]:
    """Return the checks that follow from the options in the registries' rows: of strict options, or of all others."""
    checks = []
    for table, (registry, reads, _) in TABLES.items():
        options = {option: FIELDS[option] for row in registry.values() for option in row.options if option in FIELDS}
        for option, declared in sorted(options.items()):
            if declared.metadata["strict"] == strict and option not in BY_HAND:
                names = [name for name, row in registry.items() if option in row.options]
                function = (_refusal if strict else _lack)(table, option, names)
                checks.append(Check((option,), frozenset([option, *reads.split()]), function))
    return checks


def _refusal(table: str, option: str, names: list[str]) -> Function:
    def check(o: Options, _given: Given) -> str:
        picked = TABLES[table][2](o)
        if o.value(option) == FIELDS[option].default or picked & {*names}:
            return ""
        return f"it needs {_takers(table, names)}, not {either(sorted(picked))}"

    return check


def _lack(table: str, _option: str, names: list[str]) -> Function:
    return lambda o, _given: "" if TABLES[table][2](o) & {*names} else _takers(table, names)


def _register_needs() -> None:
    for name, option in FIELDS.items():
        if need := option.metadata["needs"]:
            MISSING_EFFECTS.add(name, need.option)(_unmet(need))


def _unmet(need: Need) -> Function:
    return lambda o, _given: "" if need.is_met(o.value(need.option)) else str(need)


_register_needs()


@MISSING_EFFECTS.add("bn_type bn_weight_init bn_bias_init bn_eps bn_momentum no_bn_decay", "arch norm")
def batch_norm(o: Options, _given: Given) -> str:
    return "" if o.has_batch_norm else f"batch norm, and {o.model.arch} has none"


@MISSING_EFFECTS.add("learn_batchnorm tune_batchnorm bn_bias_only", "arch norm bn_type")
def trained_batch_norm(o: Options, _given: Given) -> str:
    if not o.has_batch_norm:
        return f"batch norm, and {o.model.arch} has none"
    return "an affine bn_type" if o.model.bn_type == "NonAffineBatchNorm" else ""


@MISSING_EFFECTS.add("tune_batchnorm", "freeze_weights learn_batchnorm bn_bias_only")
def tune_batchnorm(o: Options, _given: Given) -> str:
    return "" if o.constraint.learn_batchnorm or o.constraint.bn_bias_only else "learn_batchnorm or bn_bias_only"


@MISSING_EFFECTS.add("first_layer_dense", "conv_type first_layer_type")
def first_layer_dense(o: Options, _given: Given) -> str:
    constrained = {o.constraint.conv_type, o.constraint.first_layer_type or "DenseConv"} - {"DenseConv"}
    return "" if constrained else "a conv_type other than DenseConv"


@MISSING_EFFECTS.add("last_layer_dense", "conv_type arch")
def last_layer_dense(o: Options, _given: Given) -> str:
    biased = ARCHS[o.model.arch].dense_head_bias  # the option gives the last layer a bias there
    return "" if biased or o.constraint.conv_type != "DenseConv" else "a conv_type other than DenseConv"


@MISSING_EFFECTS.add("gaussian_aug", "p_clean")
def gaussian_aug(o: Options, _given: Given) -> str:
    return "p_clean below 1: every image stays clean" if o.data.p_clean == 1 else ""


@MISSING_EFFECTS.add("download", "set")
def download(o: Options, _given: Given) -> str:
    names = [name for name, row in SETS.items() if row.downloads]
    return "" if SETS[o.data.set].downloads else f"set {either(names)}"


@MISSING_EFFECTS.add("workers", "set augmix")
def workers(o: Options, _given: Given) -> str:
    names = [name for name, row in SETS.items() if row.margin is not None]
    one_by_one = SETS[o.data.set].margin is not None or o.data.augmix
    return "" if one_by_one else f"augmix or set {either(names)}"


@MISSING_EFFECTS.add("prune_rate", LAYER_TYPES)
def prune_rate(o: Options, given: Given) -> str:
    return "" if o.constraint.prune_rate in (-1, 0, 1) else scale_fan(o, given)  # common in files of dense networks


@MISSING_EFFECTS.add("scale_fan", LAYER_TYPES)
def scale_fan(o: Options, _given: Given) -> str:
    names = [name for name, row in CONV_TYPES.items() if row.density != "unused"]
    return "" if o.constraint.is_pruned else f"conv_type {either(names)}"


@MISSING_EFFECTS.add("prune_rate_epoch", f"{LAYER_TYPES} prune_rate")
def falling_density(o: Options, _given: Given) -> str:
    names = [name for name, row in CONV_TYPES.items() if row.density_falls]
    needed = f"conv_type {either(names)} and a prune_rate below {DENSITY_START}"
    return "" if o.constraint.density_falls else needed


@MISSING_EFFECTS.add("init", f"{LAYER_TYPES} last_layer_dense")
def init(o: Options, _given: Given) -> str:
    drawn = all(row.draws_weights for row in o.constraint.rows) and not o.constraint.last_layer_dense
    return f"layers that are not {either(sorted(o.constraint.layer_types))}" if drawn else ""


@MISSING_EFFECTS.add("epsilon", "random_mag")
def epsilon(o: Options, _given: Given) -> str:
    return "" if o.optim.random_mag else "random_mag > 0"


@MISSING_EFFECTS.add("drop_fraction layer_density", f"prune_rate {LAYER_TYPES}")
def by_layer(o: Options, _given: Given) -> str:
    return "prune_rate" if o.constraint.rewires_filters else ""


@MISSING_EFFECTS.add("keep_share live_share", f"prune_rate {LAYER_TYPES}")
def by_filter(o: Options, _given: Given) -> str:
    return "leaving out prune_rate" if o.constraint.rewires_layers else ""


@MISSING_EFFECTS.add("keep_share", f"drop prune_rate {LAYER_TYPES}")
def kept_share(o: Options, _given: Given) -> str:
    random = o.constraint.rewires_filters and o.constraint.drop == "random"
    return "another drop than random" if random else ""


@MISSING_EFFECTS.add("update_interval", f"drop grow {LAYER_TYPES}")
def update_interval(o: Options, _given: Given) -> str:
    c = o.constraint
    counted = DROP_CRITERIA[c.drop].strengths or GROW_CRITERIA[c.grow].strengths
    return "" if counted else "drop hebbian or correlation, or grow hebbian"


@MISSING_EFFECTS.add("weight_bits", f"shift_update {LAYER_TYPES}")
def weight_bits(o: Options, _given: Given) -> str:
    crude = o.constraint.shift_update == "crude" and o.constraint.layer_types <= {"ShiftQ", "DenseConv"}
    return "shift_update ste" if crude else ""
