"""Tables of accuracies and speeds for the pages, from the measured records in scripts/records."""

import csv
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scripts import CURVES, RECORDS, REPRODUCE, ROOT
from scripts.parts.pages import markdown
from utils.config.option_groups import ConstraintOptions
from utils.tables import mean_and_deviation
from utils.text import csv_text

Row = dict[str, str]
Table = Callable[[], str]
SWEEP = "configs/fashionmnist/fashionmnist_fc_kn_unsigned.yml"  # tickets of several densities
SWEEP_DENSE = "configs/fashionmnist/fashionmnist_fc_dense.yml"  # the same network without a constraint
UPDATE_INTERVAL = ConstraintOptions.update_interval  # steps between counts, by default
RULES = {  # config -> name of the rewiring rule; drop=… in the row's name changes the rule
    "density_set": "SET as RigL's authors run it",
    "density_set magnitude_per_sign": "SET",
    "density_rigl": "RigL",
    "density_hebbian magnitude": "magnitude dropped, co-activation grown",
    "density_hebbian": "co-activation dropped and grown",
    "density_random": "random control",
}


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def records() -> list[Row]:
    """Return the recorded runs: the rows of scripts/records/runs.csv."""
    return [{name: csv_text(stored) for name, stored in row.items()} for row in _read(RECORDS / "runs.csv")]


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

    `of` is a regular expression that the configs' paths match.
    """
    head = "config | `conv_type` | kept | epochs | precision | test accuracy (%) | seeds"

    def table() -> str:
        lines = [
            f"{_recipe(row)} | `{row['Conv Type']}` | {_kept(rows)} | {epochs} | {row['Precision']} | {last(rows)} "
            f"| {len(rows)}"
            for row, epochs, rows in _groups(conv_types)
            if re.search(of, row["Base Config"])
        ]
        return "\n".join(markdown(head, lines))

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
        for target in _read(REPRODUCE / "targets.csv"):
            if not target["paper"].startswith(paper):
                continue
            config, source = target["config"], f"{target['paper']}'s {target['table']}"
            recipe = (config, re.sub(r"--(\S+) ", r"\1=", target["overrides"]), str(epochs_of(config)))
            rows = [row for row in records() if (row["Base Config"], overrides(row), row["Epochs"]) == recipe]
            ours = f"{last(rows, target['metric'])} | {len(rows)}" if rows else "not run in full yet | "
            yield f"{source} | {target['row']} | `{config}` | {target['published']} | {ours}"

    head = "published by | row | config | published (%) | ours (%) | seeds"
    return lambda: "\n".join(markdown(head, lines()))


def _pruned(pattern: str) -> dict[tuple[str, float], list[Row]]:
    """Return the rows of the recorded pruning.csv files that match `pattern`, by method and percentage."""
    rows: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for path in sorted(RECORDS.glob(pattern)):
        for row in _read(path):
            rows[row["method"], float(row["percent"])].append(row)
    return rows


def pruning() -> str:
    """Return a table of published and own accuracies by the percentage removed."""
    theirs = {(row["method"], float(row["percent"])): row["accuracy"] for row in _read(CURVES)}
    ours, lines = _pruned("pruning_*.csv"), []
    for percent in dict.fromkeys(percent for _, percent in theirs):
        cells = [f"{percent:g} %"]
        for method in ("weight", "unit"):
            cells += [theirs[method, percent], last(ours[method, percent], "accuracy")]
        lines.append(" | ".join(cells))
    return "\n".join(markdown("removed | weights, published (%) | ours (%) | units, published (%) | ours (%)", lines))


def savings() -> str:
    """Return a table of the size and the speed of a network with half of its units removed."""
    rows = _pruned("pruning_*.csv")
    before, half = rows["unpruned", 0.0], rows["unit", 50.0]
    ratios = [float(b["ms_per_image"]) / float(h["ms_per_image"]) for b, h in zip(before, half, strict=True)]
    lines = [f"{of} | {int(before[0][of]):,} | {int(half[0][of]):,}" for of in ("parameters", "bytes")]
    lines.append(f"test accuracy (%) | {last(before, 'accuracy')} | {last(half, 'accuracy')}")
    lines.append(f"images per second, over the whole network | 1 | {mean_and_deviation(ratios)}")
    return "\n".join(markdown(f"{len(half)} seeds | whole network | half of the units removed", lines))


QUICK = (  # system, page, config, what is measured
    ("Multi-Prize Tickets (BIPROP)", "biprop", "configs/quickstart.yml"),
    ("Binary circuits", "binary", "configs/binary/quick.yml"),
    ("Sparse networks (SET, RigL, Hebbian)", "sparse", "configs/sparse/quick.yml"),
    ("DeepShift-Q, DeepShift-PS", "shift", "configs/shift/quick.yml"),
)
WEIGHTS = {
    "biprop": "random, untrained; the kept ones are −α or α",
    "binary": "0 or 1, almost all 0",
    "sparse": "few connections, rewired during training",
    "shift": "± powers of two",
    "pruning": "small weights or weak units removed",
}


def systems(folder: str) -> Table:
    """Return a function that returns the table of the systems, with a command and its accuracy for each.

    `folder` is the folder of the pages, as a link on the page with the table begins.
    """

    def table() -> str:
        lines = []
        for name, page, config in QUICK:
            rows = [row for row in records() if row["Base Config"] == config]
            command = f"`python main.py --config {config}`"
            lines.append(f"[{name}]({folder}{page}.md) | {WEIGHTS[page]} | {command} | {last(rows)} | {len(rows)}")
        pruned = _pruned("digits_pruning_*.csv")["weight", 50.0]
        command = "`python scripts/prune.py runs/quick/prune-quick`"
        half = f"{last(pruned, 'accuracy')} with half of the weights | {len(pruned)}"
        lines.append(f"[Pruning after training]({folder}pruning.md) | {WEIGHTS['pruning']} | {command} | {half}")
        return "\n".join(markdown("system | weights | command | test accuracy on the digits (%) | seeds", lines))

    return table


def _bench() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_*.json"))]


def speed() -> str:
    """Return a table of step times of this program, BIPROP's way and a dense network."""
    lines = []
    rows = [row for record in _bench() for row in record.get("rows", [])]
    for row in rows:
        ms = {name: 1e3 * s["median"] for name, s in row["summary"].items()}
        r = row["ratios"]
        lines.append(
            f"{row['net']} | MPT-{row['act']} | {ms['reference/fp32/train']:.0f} | {ms['ours/bf16/train']:.0f} "
            f"| {ms['ours/fp32/train']:.0f} | {r['train/bf16']:.1f} × | {r['train/fp32']:.1f} × "
            f"| {r['eval/bf16']:.1f} × | {r['train/bf16/over_dense']:.2f} ×"
        )
    head = (
        "network | kind | BIPROP's way, ms per step | ours bf16 | ours fp32 | gain bf16 | gain fp32 "
        "| gain in evaluation, bf16 | over the dense step, bf16"
    )
    return "\n".join(markdown(head, lines))


def conditions() -> str:
    """Return the conditions of the table of step times, and the start-up time."""
    records = _bench()
    record = next(record for record in records if "rows" in record)
    repeats = record["rows"][0]["summary"]["ours/fp32/train"]["n"]
    ratios = [r["startup"]["over_import_torch"]["main.py to first batch"] for r in records if "startup" in r]
    lines = [
        f"command | `python scripts/bench.py`, medians of {repeats}",
        f"device | {record['device']}, torch {record['torch']}",
        f"batch | {record['batch_size']} images, half the weights kept",
        *(f"time from the start of `main.py` to its first batch | {r:.2f} × that of `import torch`" for r in ratios),
    ]
    return "\n".join(markdown("condition | value", lines))


def reasons() -> str:
    """Return the reasons for using the program as a list, with the measured speeds."""
    ratios = [row["ratios"] for record in _bench() for row in record.get("rows", [])]
    over = sorted(ratio["train/bf16/over_dense"] for ratio in ratios)
    gain = sorted(ratio["train/bf16"] for ratio in ratios)
    lines = [
        "Five published methods share one set of options, one training loop and one results file.",
        "A run that is killed and resumed ends with the bits of an uninterrupted run.",
        f"A step takes {over[0]:.2f} to {over[-1]:.2f} times as long as a dense one, and 1/{gain[-1]:.1f} to "
        f"1/{gain[0]:.1f} of BIPROP's way (CPU, bf16).\n  A ticket is not faster at inference. A network without its weak units is.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def binary_speed() -> str:
    """Return a table of the time of a training step with weights of zeros and ones."""
    found = _one("binary")["summary"]
    names = {
        "source": "as in the source, fp32",
        "ours": "ours, fp32",
        "ours, bf16": "ours, bf16",
        "dense": "dense, fp32",
    }
    source = found["source"]["median"]
    lines = [
        f"{name} | {1e3 * found[of]['median']:.0f} | {source / found[of]['median']:.1f} ×" for of, name in names.items()
    ]
    return "\n".join(markdown("step | ms | speed relative to the source", lines))


def counting() -> str:
    """Return a table of the time that counting co-activations adds to a training step of SparseConv."""
    found = {name: 1e3 * times["median"] for name, times in _one("strengths")["summary"].items()}
    lines = []
    for criterion, name in (("coactivation", "hebbian"), ("correlation", "correlation")):
        share = 100 * found[criterion] / found["step"] / UPDATE_INTERVAL
        lines.append(f"`{name}` | {found['step']:.0f} | {found[criterion]:.0f} | {share:.1f} %")
    head = f"statistic | step, ms | one count, ms | share of a step with a count in {UPDATE_INTERVAL} steps"
    return "\n".join(markdown(head, lines))


def _one(name: str) -> dict[str, Any]:
    return next(record[name] for record in _bench() if name in record)
