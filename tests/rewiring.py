"""Complete options of trainer `sparse` for tests that change a few of them."""

from dataclasses import fields
from typing import Any

from args import from_flat
from models.constraints.rewiring_rules import RewiringRules

DEFAULTS = from_flat({"arch": "FC", "set": "digits"}).flat()


def rewiring_options(**changes: Any) -> dict[str, Any]:
    """Return the default of every option of `RewiringRules`, with `changes`."""
    return {field.name: DEFAULTS[field.name] for field in fields(RewiringRules)} | changes


def rewiring_rules(**changes: Any) -> RewiringRules:
    """Return the rewiring rules of the default options with `changes`."""
    return RewiringRules(**rewiring_options(**changes))
