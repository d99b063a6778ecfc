"""Checks for options without an effect. Each returns "" or the end of a message to the user.

The whole message is "<option>: <value> on the command line has no effect without <what the function returns>". Most
checks follow from the registries, whose rows list the options that they use, and from `needs` in the declarations of
the options.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.registry import IN_MEMORY, SETS
from models.constraints.registry import CONV_TYPES, DENSITY_START, DROP_CRITERIA, GROW_CRITERIA
from models.registry import ARCHS, BN_TYPES, INITS
from trainers.registry import OPTIMIZERS, TRAINERS
from utils.config.checks import LAYER_TYPES, Check, Checks, Function, Given
from utils.config.fields import Need
from utils.config.options import FIELDS, Options
from utils.registry import either

MISSING_EFFECTS = Checks()
Selection = Callable[[Options], set[str]]  # returns the names of the rows that the options select
# option that selects rows of a registry (selector) -> (registry, options that the selection reads, selection)
REGISTRIES: dict[str, tuple[Mapping[str, Any], str, Selection]] = {
    "arch": (ARCHS, "arch", lambda o: {o.model.arch}),
    "optimizer": (OPTIMIZERS, "optimizer", lambda o: {o.optim.optimizer}),
    "init": (INITS, "init", lambda o: {o.model.init}),
    "conv_type": (CONV_TYPES, LAYER_TYPES, lambda o: o.constraint.layer_types),
    "trainer": (TRAINERS, f"trainer {LAYER_TYPES}", lambda o: {o.trainer}),
}
OWN_CHECKS = {"prune_rate", "prune_rate_epoch"}  # options that have checks of their own below, with more conditions


def _values_text(selector: str, values: list[str]) -> str:
    """Return an option with some of its values as text, such as "conv_type ShiftQ or ShiftPS".

    `selector` is the name of the option. For a training method that a conv_type selects, the text names the conv_type.
    """
    if selector == "trainer":
        types = [name for name, row in CONV_TYPES.items() if row.trainer in values and row.trainer != "default"]
        if types:
            return f"conv_type {either(types)}"
    shown = [*values[:3], f"{len(values) - 3} others"] if len(values) > 5 else values
    return f"{selector} {either(shown)}"


def _values_with_option() -> Iterator[tuple[str, str, list[str]]]:
    """Yield each option that depends on another option, with the values it needs.

    Yields (selector, option, values). `option` has an effect only if the option `selector` has one of the values. For
    example, ("optimizer", "nesterov", ["sgd"]), because the registry row of sgd lists nesterov.
    """
    for selector, (registry, _, _) in REGISTRIES.items():
        for option in sorted({option for row in registry.values() for option in row.options} & FIELDS.keys()):
            if option not in OWN_CHECKS:
                yield selector, option, [name for name, row in registry.items() if option in row.options]


def needs() -> dict[str, str]:
    """Return the condition under which each option has an effect, by option name.

    A condition is text, such as "conv_type BinaryConv".
    """
    declared = {name: str(option.metadata["needs"]) for name, option in FIELDS.items() if option.metadata["needs"]}
    return {option: _values_text(selector, values) for selector, option, values in _values_with_option()} | declared


def row_checks(*, strict: bool) -> list[Check]:
    """Return the checks that report options without an effect.

    An example is nesterov with another optimizer than sgd. The registry rows list the options that have an effect with
    them. `strict` chooses the checks of strict options, whose failure is an error. False chooses those of all other
    options, whose failure is a warning.
    """
    checks = []
    for selector, option, values in _values_with_option():
        if FIELDS[option].metadata["strict"] == strict:
            _, reads, selected = REGISTRIES[selector]
            function = _row_check(option, _values_text(selector, values), {*values}, selected)
            checks.append(Check((option,), frozenset([option, *reads.split()]), function))
    return checks


def _row_check(option: str, needed: str, values: set[str], selected: Selection) -> Function:
    """Return a check that fails if none of `values` is selected.

    `needed` is the text for them. The check of a strict option passes where the option is at its default.
    """
    default, strict = FIELDS[option].default, FIELDS[option].metadata["strict"]

    def check(o: Options, _given: Given) -> str:
        names = selected(o)
        if names & values or (strict and o.value(option) == default):
            return ""
        return f"it needs {needed}, not {either(sorted(names))}" if strict else needed

    return check


def _need_check(need: Need) -> Function:
    """Return a check that fails if the condition `need` is not met."""
    return lambda o, _given: "" if need.is_met(o.value(need.option)) else str(need)


for _name, _option in FIELDS.items():
    if _need := _option.metadata["needs"]:
        MISSING_EFFECTS.add(_name, _need.option)(_need_check(_need))


@MISSING_EFFECTS.add("bn_type bn_weight_init bn_bias_init bn_eps bn_momentum no_bn_decay", "arch norm")
def batch_norm(o: Options, _given: Given) -> str:
    return "" if o.has_batch_norm else f"batch norm, which arch {o.model.arch} does not have"


@MISSING_EFFECTS.add("bn_type", "arch")
def bn_type(o: Options, _given: Given) -> str:
    return "" if o.arch_row.takes_bn_type else f"an arch that takes bn_type, and {o.model.arch} does not"


@MISSING_EFFECTS.add("learn_batchnorm tune_batchnorm bn_bias_only", "arch norm bn_type")
def trained_batch_norm(o: Options, given: Given) -> str:
    return batch_norm(o, given) or ("" if BN_TYPES[o.model.bn_type] else "a bn_type with weight and bias")


@MISSING_EFFECTS.add("tune_batchnorm", "freeze_weights learn_batchnorm bn_bias_only")
def tune_batchnorm(o: Options, _given: Given) -> str:
    return "" if o.constraint.learn_batchnorm or o.constraint.bn_bias_only else "learn_batchnorm or bn_bias_only"


@MISSING_EFFECTS.add("first_layer_dense", "conv_type first_layer_type")
def first_layer_dense(o: Options, _given: Given) -> str:
    types = {o.constraint.conv_type, o.constraint.first_layer_type}
    return "" if types - {"DenseConv", None} else "a conv_type other than DenseConv"


@MISSING_EFFECTS.add("last_layer_dense", "conv_type arch")
def last_layer_dense(o: Options, _given: Given) -> str:
    biased = ARCHS[o.model.arch].dense_head_bias  # there, last_layer_dense also adds a bias to the last layer
    return "" if biased or o.constraint.conv_type != "DenseConv" else "a conv_type other than DenseConv"


@MISSING_EFFECTS.add("gaussian_aug", "p_clean")
def gaussian_aug(o: Options, _given: Given) -> str:
    return "p_clean < 1 (at 1 no image gets noise)" if o.data.p_clean == 1 else ""


@MISSING_EFFECTS.add("data", "set")
def data(o: Options, _given: Given) -> str:
    return f"a set other than {o.data.set}, whose images are bundled" if SETS[o.data.set].bundled else ""


@MISSING_EFFECTS.add("augment", "set")
def augment(o: Options, _given: Given) -> str:
    names = [name for name, row in SETS.items() if row.augment]
    return "" if SETS[o.data.set].augment else f"set {either(names)}"


@MISSING_EFFECTS.add("download", "set")
def download(o: Options, _given: Given) -> str:
    names = [name for name, row in SETS.items() if row.downloads]
    return "" if SETS[o.data.set].downloads else f"set {either(names)}"


@MISSING_EFFECTS.add("workers", "set augmix")
def workers(o: Options, _given: Given) -> str:
    names = [name for name, row in SETS.items() if row.margin is not None]
    one_by_one = SETS[o.data.set].margin is not None or o.data.augmix or o.data.set == IN_MEMORY
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
    names = either(name for name, row in CONV_TYPES.items() if row.density_falls)
    return "" if o.constraint.density_falls else f"conv_type {names} and a prune_rate below {DENSITY_START}"


@MISSING_EFFECTS.add("init", f"{LAYER_TYPES} last_layer_dense")
def init(o: Options, _given: Given) -> str:
    drawn = all(row.draws_weights for row in o.constraint.rows) and not o.constraint.last_layer_dense
    return f"layers of a conv_type other than {either(sorted(o.constraint.layer_types))}" if drawn else ""


@MISSING_EFFECTS.add("epsilon", "random_mag")
def epsilon(o: Options, _given: Given) -> str:
    return "" if o.optim.random_mag else "random_mag > 0"


@MISSING_EFFECTS.add("drop_fraction layer_density", f"prune_rate {LAYER_TYPES}")
def by_layer(o: Options, _given: Given) -> str:
    return "prune_rate" if o.constraint.rewires_filters else ""


@MISSING_EFFECTS.add("keep_share live_share", f"prune_rate {LAYER_TYPES}")
def by_filter(o: Options, _given: Given) -> str:
    return "rewiring filter by filter (SparseConv without a prune_rate)" if o.constraint.rewires_layers else ""


@MISSING_EFFECTS.add("keep_share", f"drop prune_rate {LAYER_TYPES}")
def kept_share(o: Options, _given: Given) -> str:
    random = o.constraint.rewires_filters and o.constraint.drop == "random"
    return "another drop than random" if random else ""


@MISSING_EFFECTS.add("update_interval", f"drop grow {LAYER_TYPES}")
def update_interval(o: Options, _given: Given) -> str:
    c = o.constraint
    if DROP_CRITERIA[c.drop].strengths or GROW_CRITERIA[c.grow].strengths:
        return ""
    drops, grows = ([n for n, row in table.items() if row.strengths] for table in (DROP_CRITERIA, GROW_CRITERIA))
    return f"drop {either(drops)}, or grow {either(grows)}"


@MISSING_EFFECTS.add("weight_bits", f"shift_update {LAYER_TYPES}")
def weight_bits(o: Options, _given: Given) -> str:
    crude = o.constraint.shift_update == "crude" and o.constraint.layer_types <= {"ShiftQ", "DenseConv"}
    return "shift_update ste" if crude else ""
