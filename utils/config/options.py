"""The dataclass `Options`, which holds the values of all options in groups."""

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from models.registry import ARCHS, Arch
from trainers.registry import TRAINERS
from utils.config.option_groups import ConstraintOptions, DataOptions, ModelOptions
from utils.config.run_option_groups import OptimOptions, RunOptions

GROUPS = {
    "data": DataOptions,
    "model": ModelOptions,
    "constraint": ConstraintOptions,
    "optim": OptimOptions,
    "run": RunOptions,
}
FIELDS = {option.name: option for kind in GROUPS.values() for option in fields(kind)}
GROUP_OF = {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}
ADDED: dict[str, Field[Any]] = {}  # options of plug-ins, which FIELDS has too


@dataclass(frozen=True)
class Options:
    """Values of all options of a run, in groups.

    added: values of the options that plug-ins added, as far as they belong to the parts that this run selects.
    warnings: messages about the options, to print at the start.
    """

    data: DataOptions
    model: ModelOptions
    constraint: ConstraintOptions
    optim: OptimOptions
    run: RunOptions
    added: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Any, warnings: Iterable[str] = ()) -> "Options":
        """Return Options with the values of an object's attributes.

        `values` has every option as an attribute.
        """
        groups: dict[str, Any] = {
            group: kind(**{option.name: getattr(values, option.name) for option in fields(kind)})
            for group, kind in GROUPS.items()
        }
        options = cls(**groups, warnings=tuple(dict.fromkeys(warnings)))
        added = {name: getattr(values, name) for name in ADDED if name in options.row_options}
        return replace(options, added=added)

    @property
    def row_options(self) -> set[str]:
        """Names of the options that the selected architecture, constraints and trainer have."""
        rows = (self.arch_row.options, TRAINERS[self.trainer].options, *(row.options for row in self.constraint.rows))
        return {name for options in rows for name in options}

    def value(self, name: str) -> Any:
        """Return the value of the option `name`."""
        if name in ADDED:
            return self.added.get(name, ADDED[name].default)
        return getattr(getattr(self, GROUP_OF[name]), name)

    def flat(self) -> dict[str, object]:
        """Return a dict from option name to value, for YAML.

        It has lists instead of tuples. Options of plug-ins are left out if no part that this run selects has them.
        """
        values = {name: self.value(name) for name in GROUP_OF} | dict(self.added)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def replace(self, **values: Any) -> "Options":
        """Return a copy in which the named options have new values, unchecked.

        Raises TypeError for an unknown name.
        """
        if unknown := values.keys() - FIELDS.keys():
            raise TypeError(f"no such option: {sorted(unknown)}")
        changed: dict[str, dict[str, Any]] = {GROUP_OF[name]: {} for name in values if name in GROUP_OF}
        for name, value in values.items():
            if name in GROUP_OF:
                changed[GROUP_OF[name]][name] = value
        groups: dict[str, Any] = {group: replace(getattr(self, group), **own) for group, own in changed.items()}
        added = {name: values.get(name, value) for name, value in self.added.items()}
        return replace(self, **groups, added=added)

    @property
    def trainer(self) -> str:
        """Name of the training method.

        The option `trainer: default` selects the method that the constraint needs.
        """
        needed = sorted(self.constraint.trainers)
        return needed[0] if self.optim.trainer == "default" and needed else self.optim.trainer

    @property
    def needs_fp32(self) -> bool:
        """True if a constraint computes with more bits than bfloat16 has."""
        return any(row.needs_fp32 for row in self.constraint.rows)

    @property
    def arch_row(self) -> Arch:
        """Row of the registry ARCHS that describes the architecture of this run."""
        return ARCHS[self.model.arch]

    @property
    def has_batch_norm(self) -> bool:
        """True if the network has batch normalisation."""
        return self.arch_row.normalises(self.model.norm)
