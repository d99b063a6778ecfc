"""Tables of the options, constraints, architectures and data sets for the pages, from their declarations."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any

from data.registry import IN_MEMORY, SETS
from models.constraints.registry import CONV_TYPES
from models.registry import ARCHS
from scripts.parts.pages import markdown
from utils.config.effects import needs
from utils.config.fields import flags, wanted
from utils.config.options import GROUPS
from utils.text import shown

LONG = {  # option -> where its values are listed
    "arch": "[one of these](concepts.md#architectures)",
    "conv_type": "[one of these](concepts.md#constraints)",
    "first_layer_type": "as `conv_type`",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _values(option: Field[Any]) -> str:
    """Return an option's allowed values, with a link instead of a long list."""
    if option.name in LONG:
        return LONG[option.name]
    if option.type is bool:
        return "true, false"
    allowed = option.metadata["allowed"]
    return ", ".join(f"`{name}`" for name in allowed) if not isinstance(allowed, str) else wanted(option)


def _default(option: Field[Any]) -> str:
    """Return an option's default value, in words where it depends on something else."""
    if option.default is MISSING:
        return "required"
    if option.metadata["unset"]:
        return str(option.metadata["unset"])
    default = option.default
    return "" if default is None else f"`{default if isinstance(default, str) else shown(default)}`"


def options(group: str) -> str:
    """Return a table of the options of one group."""
    needed = needs()
    lines = []
    for option in fields(GROUPS[group]):
        short = [flag for flag in flags(option.name, option) if flag.lstrip("-").replace("-", "_") != option.name]
        also = [f"`{flag}`" for flag in short if not flag.startswith("--no-") or option.type is not bool]
        name = f"`{option.name}`" + (f" ({', '.join(also)})" if also else "")
        cells = (name, option.metadata["text"], _values(option), _default(option), needed.get(option.name, ""))
        lines.append(" | ".join(map(_cell, cells)))
    return "\n".join(markdown("option | meaning | values | default | needs", lines))


def constraints() -> str:
    """Return the table of constraints, one line per row of the registry."""
    rows = (f"`{name}` | {row.weights} | `{row.trainer}` | {row.density}" for name, row in CONV_TYPES.items())
    return "\n".join(markdown("`conv_type` | weights of a layer | trainer | `prune_rate`", rows))


def _families(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of architectures by family, such as "cResNet" for cResNet18_BinAct."""
    families: dict[str, list[str]] = defaultdict(list)
    for name in names:
        families[re.sub(r"(_|\d).*", "", name.replace("Wide_VGG", "VGG"))].append(name)
    return families


def architectures() -> str:
    """Return a table of the architectures, one line per family."""
    lines = []
    for family, names in _families(ARCHS).items():
        own = sorted({option for name in names for option in ARCHS[name].options})
        listed = ", ".join(f"`{option}`" for option in own)
        lines.append(f"{family} | {', '.join(f'`{name}`' for name in names)} | {listed}")
    return "\n".join(markdown("family | `arch` | options of its own", lines))


def sets() -> str:
    """Return a table of the data sets, one line per row of the registry."""
    lines = []
    for name, row in SETS.items():
        if name == IN_MEMORY:  # the images of fw.train(data=…)
            continue
        shape = "×".join(map(str, row.in_shape))
        size = f"{shape}, cropped to `image_size`" if row.margin else shape
        cells = (f"`{name}`", size, row.num_classes or "one per folder", *map(_yes, (row.augment, row.downloads)))
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(markdown("`set` | image | classes | cropped and flipped in training | `--download`", lines))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
