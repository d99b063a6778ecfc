"""Write the tables of README.md and docs/results.md from the measured records in scripts/records.

Speed comes from bench_*.json (scripts/bench.py --out), accuracy from runs.csv (rows of results.csv), and the published
numbers from scripts/reproduce/targets.csv.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=False)

import csv
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from models.constraints.registry import CONV_TYPES
from scripts.parts.pages import RECORDS, ROOT, Tables, update
from utils.config.script_parser import Parser, command
from utils.tables import mean_and_deviation
from utils.text import csv_text

Row = dict[str, str]
REPRODUCE = ROOT / "scripts" / "reproduce"


def speed() -> str:
    """Return a table of step times of this program, BIPROP's way and a dense network, and the start-up time."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_*.json"))]
    rows = [row for record in records for row in record.get("rows", [])]
    measured = next(record for record in records if "rows" in record)
    lines = [
        f"Medians of {rows[0]['summary']['ours/fp32/train']['n']} on {measured['device']}, torch {measured['torch']}, "
        f"batch {measured['batch_size']}, half the weights kept (`python scripts/bench.py`). BIPROP's way is a "
        "reimplementation of its step: fp32, a full sort in every pass, anomaly detection, images transformed one by "
        "one. It has the allocator settings of this program.",
        "",
        "| network | kind | BIPROP's way, ms per step | ours bf16 | ours fp32 | gain bf16 | gain fp32 "
        "| gain in evaluation, bf16 | over the dense step, bf16 |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        ms = {name: 1e3 * s["median"] for name, s in row["summary"].items()}
        r = row["ratios"]
        lines.append(
            f"| {row['net']} | MPT-{row['act']} | {ms['reference/fp32/train']:.0f} | {ms['ours/bf16/train']:.0f} "
            f"| {ms['ours/fp32/train']:.0f} | {r['train/bf16']:.1f} × | {r['train/fp32']:.1f} × "
            f"| {r['eval/bf16']:.1f} × | {r['train/bf16/over_dense']:.2f} × |"
        )
    for ratio in (r["startup"]["over_import_torch"]["main.py to first batch"] for r in records if "startup" in r):
        text = f"`main.py` has its first batch after {ratio:.2f} × the time that `import torch` takes by itself."
        lines += ["", text]
    return "\n".join(lines)


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def records() -> list[Row]:
    """Return the recorded runs: the rows of scripts/records/runs.csv."""
    return [{name: csv_text(stored) for name, stored in row.items()} for row in _read(RECORDS / "runs.csv")]


def accuracy() -> str:
    """Return a table of test accuracies, one row per configuration: mean ± standard deviation over its seeds."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in records():
        key = ("Base Config", "Conv Type", "Prune Rate", "Epochs", "Precision")
        groups[(*(row[name] for name in key), overrides(row))].append(row)
    lines = [
        "| config | conv_type | kept | epochs | precision | test accuracy, last epoch (%) | best epoch (%) | seeds |",
        "|" + "---|" * 8,
    ]
    for (config, conv_type, _, epochs, precision, changed), rows in sorted(groups.items()):
        last, best = (
            mean_and_deviation([float(row[f"{which} Epoch Test Top 1"]) for row in rows]) for which in ("Last", "Best")
        )
        kept = f"{100 * statistics.mean(float(row['Kept']) for row in rows):.3g} %"
        of = "" if int(epochs) == epochs_of(config) else f" of {epochs_of(config)}"
        named = f"`{config}` {changed}" if changed else f"`{config}`"
        lines.append(f"| {named} | {conv_type} | {kept} | {epochs}{of} | {precision} | {last} | {best} | {len(rows)} |")
    return "\n".join(lines)


@cache
def epochs_of(config: str) -> int:
    """Return the number of epochs that the config file sets."""
    return int(yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["epochs"])


def overrides(row: Row) -> str:
    """Return the options that a recorded run sets besides its config file, such as "hidden=1000".

    Such a run has them as its name. Returns an empty string for other runs.
    """
    return row["Name"] if "=" in row["Name"] else ""


def published() -> str:
    """Return a table of published and reproduced accuracies, and a list of the published results not reproduced yet."""
    lines = ["| published by | row | config | published (%) | ours (%) | seeds |", "|" + "---|" * 6]
    missing = []
    for target in _read(REPRODUCE / "targets.csv"):
        config, source = target["config"], f"{target['paper']}'s {target['table']}"
        recipe = (config, re.sub(r"--(\S+) ", r"\1=", target["overrides"]), str(epochs_of(config)))
        complete = [row for row in records() if (row["Base Config"], overrides(row), row["Epochs"]) == recipe]
        if ours := [float(row[target["metric"]]) for row in complete]:
            lines.append(
                f"| {source} | {target['row']} | `{config}` | {target['published']} | {mean_and_deviation(ours)} "
                f"| {len(ours)} |"
            )
        else:
            missing.append(f"- {source}, {target['row']}: {target['published']}, `{config}`")
    return "\n".join([*lines, "", "Not run in full yet, published accuracy (%) and config:", "", *missing])


def constraints() -> str:
    """Return the table of constraints, one line per row of the registry."""
    lines = ["| `conv_type` | weights of a layer |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {row.weights} |" for name, row in CONV_TYPES.items())])


def pruning() -> str:
    """Return a table of published and own accuracies per percentage pruned, and the savings of half the units."""
    theirs = {
        (row["method"], float(row["percent"])): row["accuracy"] for row in _read(REPRODUCE / "pruning_curves.csv")
    }
    ours: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for path in sorted(RECORDS.glob("pruning_*.csv")):
        for row in _read(path):
            ours[row["method"], float(row["percent"])].append(row)
    lines = ["| removed | weights, published (%) | ours (%) | units, published (%) | ours (%) |", "|" + "---|" * 5]
    for percent in dict.fromkeys(percent for _, percent in theirs):
        cells = [f"{percent:g} %"]
        for method in ("weight", "unit"):
            accuracies = [float(row["accuracy"]) for row in ours[method, percent]]
            cells += [theirs[method, percent], mean_and_deviation(accuracies)]
        lines.append(f"| {' | '.join(cells)} |")
    before, half = ours["unpruned", 0.0], ours["unit", 50.0]
    ratios = [float(b["ms_per_image"]) / float(h["ms_per_image"]) for b, h in zip(before, half, strict=True)]
    saved = [f"{int(before[0][of]):,} to {int(half[0][of]):,} {of}" for of in ("parameters", "bytes")]
    text = f"Half of the units removed: {saved[0]}, {saved[1]}, an image {mean_and_deviation(ratios)} times as fast"
    return "\n".join([*lines, "", f"{text}; {len(half)} seeds."])


PAGES: dict[Path, Tables] = {
    ROOT / "README.md": {"constraints": constraints, "speed": speed, "published": published, "pruning": pruning},
    ROOT / "docs/results.md": {"accuracy": accuracy},
}


@command
def main(argv: Sequence[str]) -> int:
    """Write the tables of the Markdown pages. With --check write nothing and return 1 if a page is out of date."""
    parser = Parser(__doc__)
    parser.add_check()
    return update(PAGES, "scripts/readme.py", check=parser.parse_args(argv).check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
