"""The dataclass `Options`, which holds the values of all options in groups."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from models.registry import ARCHS, Arch
from utils.config.option_groups import ConstraintOptions, DataOptions, ModelOptions, OptimOptions, RunOptions

GROUPS = {
    "data": DataOptions,
    "model": ModelOptions,
    "constraint": ConstraintOptions,
    "optim": OptimOptions,
    "run": RunOptions,
}
FIELDS = {option.name: option for kind in GROUPS.values() for option in fields(kind)}
GROUP_OF = {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}


@dataclass(frozen=True)
class Options:
    """Values of all options of a run, in groups.

    `warnings` are messages about the options, to print at the start.
    """

    data: DataOptions
    model: ModelOptions
    constraint: ConstraintOptions
    optim: OptimOptions
    run: RunOptions
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
        return cls(**groups, warnings=tuple(dict.fromkeys(warnings)))

    def value(self, name: str) -> Any:
        """Return the value of the option `name`."""
        return getattr(getattr(self, GROUP_OF[name]), name)

    def flat(self) -> dict[str, object]:
        """Return a dict from option name to value, for YAML.

        It has lists instead of tuples.
        """
        values = {name: self.value(name) for name in FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def replace(self, **values: Any) -> "Options":
        """Return a copy in which the named options have new values, unchecked.

        Raises TypeError for an unknown name.
        """
        if unknown := values.keys() - FIELDS.keys():
            raise TypeError(f"no such option: {sorted(unknown)}")
        changed: dict[str, dict[str, Any]] = {GROUP_OF[name]: {} for name in values}
        for name, value in values.items():
            changed[GROUP_OF[name]][name] = value
        return replace(self, **{group: replace(getattr(self, group), **own) for group, own in changed.items()})

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
