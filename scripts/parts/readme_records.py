"""Tables of accuracies for the pages, from the measured records in scripts/records."""

import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from scripts import RECORDS, REPRODUCE, ROOT
from scripts.parts.pages import markdown
from utils.tables import mean_and_deviation
from utils.text import csv_text

Row = dict[str, str]
Table = Callable[[], str]
SWEEP = "configs/fashionmnist/fashionmnist_fc_kn_unsigned.yml"  # tickets of several densities
SWEEP_DENSE = "configs/fashionmnist/fashionmnist_fc_dense.yml"  # the same network without a constraint
RULES = {  # config -> name of the rewiring rule; drop=… in the row's name changes the rule
    "density_set": "SET as RigL's authors run it",
    "density_set magnitude_per_sign": "SET",
    "density_rigl": "RigL",
    "density_hebbian magnitude": "magnitude dropped, co-activation grown",
    "density_hebbian": "co-activation dropped and grown",
    "density_random": "random control",
}


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def records() -> list[Row]:
    """Return the recorded runs: the rows of scripts/records/runs.csv."""
    return [{name: csv_text(stored) for name, stored in row.items()} for row in read(RECORDS / "runs.csv")]


def last(rows: Iterable[Row], column: str = "Last Epoch Test Top 1") -> str:
    """Return the mean ± standard deviation of a column, by default the test accuracy after the last epoch."""
    return mean_and_deviation([float(row[column]) for row in rows])


@cache
def epochs_of(config: str) -> int:
    """Return the number of epochs that the config file sets."""
    return int(yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["epochs"])


def overrides(row: Row) -> str:
    """Return the options that a recorded run sets besides its config file, such as "hidden=1000".

    Such a run has them as its name. Returns an empty string for other runs.
    """
    return row["Name"] if "=" in row["Name"] else ""


def _groups(conv_types: Collection[str]) -> Iterator[tuple[Row, str, list[Row]]]:
    """Yield the first row, the epochs as text, and all rows of each recipe with one of `conv_types`."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in records():
        if not conv_types or row["Conv Type"] in conv_types:
            key = ("Base Config", "Conv Type", "Prune Rate", "Epochs", "Precision")
            groups[(*(row[name] for name in key), overrides(row))].append(row)
    for _, rows in sorted(groups.items()):
        of = epochs_of(rows[0]["Base Config"])
        epochs = rows[0]["Epochs"]
        yield rows[0], epochs if int(epochs) == of else f"{epochs} of {of}", rows


def _recipe(row: Row) -> str:
    return " ".join([f"`{row['Base Config']}`", *overrides(row).split()])


def _kept(rows: list[Row]) -> str:
    return f"{100 * statistics.mean(float(row['Kept']) for row in rows):.3g} %"


def accuracy() -> str:
    """Return a table of test accuracies, one row per recipe: mean ± standard deviation over its seeds."""
    lines = [
        f"{_recipe(row)} | {row['Conv Type']} | {_kept(rows)} | {epochs} | {row['Precision']} | {last(rows)} "
        f"| {last(rows, 'Best Epoch Test Top 1')} | {len(rows)}"
        for row, epochs, rows in _groups(())
    ]
    head = "config | conv_type | kept | epochs | precision | test accuracy, last epoch (%) | best epoch (%) | seeds"
    return "\n".join(markdown(head, lines))


def measured(*conv_types: str, of: str = "") -> Table:
    """Return a function that returns a table of the test accuracies with some constraints.

    `of` is a regular expression that the configs' paths match. A column of equal constraints or precisions is left out.
    """
    head = ["config", "`conv_type`", "kept", "epochs", "precision", "test accuracy (%)", "seeds"]

    def table() -> str:
        lines = [
            (_recipe(row), f"`{row['Conv Type']}`", _kept(rows), epochs, row["Precision"], last(rows), str(len(rows)))
            for row, epochs, rows in _groups(conv_types)
            if re.search(of, row["Base Config"])
        ]
        told = [i for i, column in enumerate(zip(*lines, strict=True)) if len(set(column)) > 1 or i not in (1, 4)]
        shown, *rows = (" | ".join(line[i] for i in told) for line in [head, *lines])
        return "\n".join(markdown(shown, rows))

    return table


def sweep_rows(conv_type: str) -> dict[float, list[Row]]:
    """Return the recorded runs of the sweep over densities with one constraint, by density.

    The runs with DenseConv are those of the same network without a constraint.
    """
    config = SWEEP_DENSE if conv_type == "DenseConv" else SWEEP
    runs: dict[float, list[Row]] = defaultdict(list)
    for row in records():
        if (row["Base Config"], row["Conv Type"]) == (config, conv_type):
            runs[float(row["Prune Rate"])].append(row)
    return dict(sorted(runs.items()))


def tickets() -> str:
    """Return a table of the test accuracy of tickets by the fraction of weights kept, with the dense network last."""
    by_layer, jointly = sweep_rows("SubnetConv"), sweep_rows("GlobalSubnetConv")
    lines = []
    for density, rows in by_layer.items():
        joint = last(jointly[density]) if density in jointly else "not run"
        lines.append(f"{100 * density:g} % | {last(rows)} | {joint} | {len(rows)}")
    (dense,) = sweep_rows("DenseConv").values()
    lines.append(f"100 %, dense, every weight trained | {last(dense)} | | {len(dense)}")
    return "\n".join(markdown("weights kept | `SubnetConv` (%) | `GlobalSubnetConv` (%) | seeds", lines))


def rules(network: str, changed: str) -> Table:
    """Return a function that returns a table of the rewiring rules of SparseConv at two densities.

    network: beginning of the configs' names, such as "lenet5". changed: other options of the runs, "low-data=0.2".
    """

    def of_rule(rule: str, density: str) -> str:
        stem, _, drop = rule.partition(" ")
        name = " ".join(filter(None, [drop and f"drop={drop}", changed])) or f"{network}_{stem}"
        rows = [
            row
            for row in records()
            if row["Base Config"] == f"configs/sparse/{network}_{stem}.yml"
            and (row["Name"], row["Prune Rate"]) == (name, density)
        ]
        return f"{last(rows)} | {len(rows)}" if rows else ""

    def table() -> str:
        lines = [
            f"{name} | {tenth} | {twentieth}"
            for rule, name in RULES.items()
            if (tenth := of_rule(rule, "0.1")) and (twentieth := of_rule(rule, "0.05"))
        ]
        head = "rule | 10 % kept: test accuracy (%) | seeds | 5 % kept: test accuracy (%) | seeds"
        return "\n".join(markdown(head, lines))

    return table


def published(paper: str = "") -> Table:
    """Return a function that returns a table of published and reproduced accuracies. `paper` selects one source."""

    def lines() -> Iterator[str]:
        for target in read(REPRODUCE / "targets.csv"):
            if not target["paper"].startswith(paper):
                continue
            config, source = target["config"], f"{target['paper']}'s {target['table']}"
            recipe = (config, re.sub(r"--(\S+) ", r"\1=", target["overrides"]), str(epochs_of(config)))
            rows = [row for row in records() if (row["Base Config"], overrides(row), row["Epochs"]) == recipe]
            ours = f"{last(rows, target['metric'])} | {len(rows)}" if rows else "not run in full yet | "
            yield f"{source} | {target['row']} | `{config}` | {target['published']} | {ours}"

    head = "published by | row | config | published (%) | ours (%) | seeds"
    return lambda: "\n".join(markdown(head, lines()))
