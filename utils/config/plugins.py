"""Register the parts of runs that plug-ins define: rows like those of the built-in parts, with options of their own.

The keyword arguments of a part become options. Their types, defaults and help texts come from its signature and its
docstring.
"""

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from data.registry import SETS, SetSpec
from models.constraints.registry import CONV_TYPES, ConvType
from models.registry import ARCHS, Arch
from trainers.registry import TRAINERS, Trainer
from utils.config.fields import wanted
from utils.config.options import ADDED, FIELDS
from utils.config.signatures import arguments_of, declared, help_text
from utils.errors import UsageError
from utils.records.registry import RECORDERS, RecorderRow
from utils.text import shown

Part = TypeVar("Part", bound=Callable[..., Any])
ARCH_ARGUMENTS = ("num_classes", "in_shape", "bn_type", "width_mult")  # arguments that every architecture may take
CONSTRAINT_ARGUMENTS = ("weight", "generator", "density")
METHOD_ARGUMENTS = ("label_smoothing", "weight_decay", "no_bn_decay", "histograms")
TABLES: Mapping[str, dict[str, Any]]
TABLES = {"arch": ARCHS, "conv_type": CONV_TYPES, "trainer": TRAINERS, "set": SETS, "tracker": RECORDERS}
_origins: dict[tuple[str, str], str] = {}  # (table, name) -> file of the plug-in that registered the row


def register_arch(name: str, *, has_batch_norm: bool = True, dense_head_bias: bool = False) -> Callable[[Part], Part]:
    """Return a decorator that registers an architecture, which `arch: NAME` then selects.

    It decorates an `nn.Module` class, or a function that returns an `nn.Module`. The network maps images (B, *in_shape)
    to logits (B, num_classes). The constructor takes `num_classes`. It may take `in_shape` (channels, height, width),
    `bn_type` and `width_mult`. Its other keyword arguments become options.

    has_batch_norm: False if the network never has batch norm, so that options of batch norm cause a warning.
    dense_head_bias: the constructor takes `head_bias`, which is True with --last-layer-dense.

    Raises UsageError if the name belongs to another architecture, or an argument cannot be an option.
    """

    def register(constructor: Part) -> Part:
        _check_name("arch", name, constructor)
        arguments = arguments_of(constructor, f"arch {name}")
        if "num_classes" not in arguments:
            raise UsageError(f"arch {name}: its constructor must take num_classes, the number of outputs")
        own = _add_options(constructor, f"arch {name}", arguments, {*ARCH_ARGUMENTS, "head_bias"})
        own += tuple({"width_mult"} & arguments.keys())
        row = Arch(
            constructor,
            options=own,
            has_batch_norm=has_batch_norm,
            dense_head_bias=dense_head_bias,
            takes_bn_type="bn_type" in arguments,
        )
        _add_row("arch", name, row, constructor)
        return constructor

    return register


def register_constraint(
    name: str, *, trainer: str = "default", weights: str = "", scores: bool = False, needs_fp32: bool = False
) -> Callable[[Part], Part]:
    """Return a decorator that registers a constraint, which `conv_type: NAME` then selects.

    It decorates a subclass of `Constraint`. The constructor takes the initial weight of a layer. It may take
    `generator`, the source of random numbers, and `density`, the fraction of weights to keep. With a default for
    `density` the option prune_rate may be left out. The other keyword arguments become options.

    trainer: training method of networks with this constraint.
    weights: description of the effective weights.
    scores: the layers have scores, so that --freeze-weights leaves something to train.
    needs_fp32: the effective weights have more bits than bfloat16.

    Raises UsageError if the name belongs to another constraint, or an argument cannot be an option.
    """

    def register(constraint: Part) -> Part:
        _check_name("conv_type", name, constraint)
        arguments = arguments_of(constraint, f"conv_type {name}")
        density = "unused"
        if "density" in arguments:
            density = "required" if arguments["density"].default is inspect.Parameter.empty else "optional"
        row = ConvType(
            weights,
            constraint,
            trainer,
            density,
            options=_add_options(constraint, f"conv_type {name}", arguments, CONSTRAINT_ARGUMENTS),
            scores=scores,
            needs_fp32=needs_fp32,
        )
        _add_row("conv_type", name, row, constraint)
        return constraint

    return register


def register_trainer(name: str, *, variant_of: str = "default", tables: Collection[str] = ()) -> Callable[[Part], Part]:
    """Return a decorator that registers a training method, which `trainer: NAME` then selects.

    It decorates a subclass of `Method`. The keyword arguments of its constructor become options, besides those of
    `Method`.

    variant_of: the method whose conv_types this one can train. "default" means every conv_type.
    tables: names of the tables that the hook `tables` returns.

    Raises UsageError if the name belongs to another method, or an argument cannot be an option.
    """

    def register(method: Part) -> Part:
        _check_name("trainer", name, method)
        own = _add_options(method, f"trainer {name}", arguments_of(method, f"trainer {name}"), METHOD_ARGUMENTS)
        _add_row("trainer", name, Trainer(method, own, variant_of, tuple(tables)), method)
        return method

    return register


def register_set(
    name: str,
    *,
    in_shape: tuple[int, int, int],
    classes: int | Collection[str],
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    augment: bool = False,
    margin: float | None = None,
) -> Callable[[Part], Part]:
    """Return a decorator that registers a data set, which `set: NAME` then selects.

    It decorates a function that reads the images. The function may take `root`, the folder of --data, and `download`,
    True with --download. It returns the training and the test part of the set. Each part is a map-style torch Dataset,
    or a pair (images, labels) of arrays: uint8 (n, height, width, channels) and integers (n,).

    in_shape: (channels, height, width).
    classes: names of the classes in the order of their labels, or the number of classes.
    mean, std: per channel, for pixels in [0, 1]. By default they are measured on the training images.
    augment: training images are randomly cropped and flipped.
    margin: see `data.registry.SetSpec`. None means that all images have the size in_shape.

    Raises UsageError if the name belongs to another data set.
    """
    names = () if isinstance(classes, int) else tuple(classes)

    def register(reader: Part) -> Part:
        _check_name("set", name, reader)
        row = SetSpec(
            in_shape,
            classes if isinstance(classes, int) else len(names),
            tuple(mean or ()),
            tuple(std or ()),
            augment,
            reader,
            margin,
            downloads="download" in arguments_of(reader, f"set {name}"),
            classes=names,
        )
        _add_row("set", name, row, reader)
        return reader

    return register


def register_recorder(name: str, *, package: str = "") -> Callable[[Part], Part]:
    """Return a decorator that registers a recorder, which `tracker: NAME` then selects.

    It decorates a subclass of `Recorder`, whose constructor takes no arguments.

    package: name of the package that the recorder imports, as pip spells it. Without the package a run with this
        recorder ends before it reads any data.

    Raises UsageError if the name belongs to another recorder.
    """

    def register(recorder: Part) -> Part:
        _check_name("tracker", name, recorder)
        _add_row("tracker", name, RecorderRow(recorder, package), recorder)
        return recorder

    return register


def _origin(part: Any) -> str:
    """Return the file that defines a part, or the name of its module."""
    return getattr(sys.modules.get(part.__module__), "__file__", None) or str(part.__module__)


def _check_name(table: str, name: str, part: Any) -> None:
    """Raise UsageError if a registry cannot have a row called `name`, or has one that another file defines."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{table}: {shown(name)} is no name; it must have only letters, digits, and _ . + -")
    if name in TABLES[table] and _origins.get((table, name)) != _origin(part):
        where = _origins.get((table, name), "this program")
        raise UsageError(f"{table}: {name} exists already, in {where}; choose another name")


def _add_row(table: str, name: str, row: Any, part: Any) -> None:
    """Add a row to a registry, or replace the row that an earlier version of the same file has registered.

    Options of plug-ins that no row has any more are removed.
    """
    TABLES[table][name] = row
    _origins[table, name] = _origin(part)
    used = {option for rows in TABLES.values() for other in rows.values() for option in getattr(other, "options", ())}
    for option in ADDED.keys() - used:
        del ADDED[option], FIELDS[option]


def _add_options(
    part: Callable[..., Any], title: str, arguments: Mapping[str, inspect.Parameter], shared: Collection[str]
) -> tuple[str, ...]:
    """Declare the options of a part and return their names.

    They are its `arguments` without the `shared` ones, which are not options of this part alone.
    """
    own = {name: parameter for name, parameter in arguments.items() if name not in shared}
    new = {}
    for name, parameter in own.items():
        option = declared(name, parameter, f"{title}: {name}", help_text(part, name) or f"option of {title}")
        known = FIELDS.get(name)
        if known is None or (name in ADDED and _users(name) <= {title}):
            new[name] = option
        elif name not in ADDED and not _users(name):
            raise UsageError(f"{title}: {name} is already an option with another use; give the argument another name")
        elif (known.type, known.default) != (option.type, option.default):
            raise UsageError(
                f"{title}: {name} is already an option: {wanted(known)}, default {shown(known.default)}; "
                "use the same type and default, or another name"
            )
    ADDED.update(new)
    FIELDS.update(new)
    return tuple(own)


def _users(option: str) -> set[str]:
    """Return the rows that have an option, as titles such as "arch MyNet"."""
    return {
        f"{table} {name}"
        for table, rows in TABLES.items()
        for name, row in rows.items()
        if option in getattr(row, "options", ())
    }
