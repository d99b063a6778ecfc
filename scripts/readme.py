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
from scripts import CURVES, RECORDS, REPRODUCE, ROOT
from scripts.parts.pages import Tables, markdown, update
from utils.config.script_parser import Parser, command
from utils.tables import mean_and_deviation
from utils.text import csv_text

Row = dict[str, str]


def speed() -> str:
    """Return a table of step times of this program, BIPROP's way and a dense network, and the start-up time."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_*.json"))]
    rows = [row for record in records for row in record.get("rows", [])]
    measured = next(record for record in records if "rows" in record)
    lines = []
    for row in rows:
        ms = {name: 1e3 * s["median"] for name, s in row["summary"].items()}
        r = row["ratios"]
        lines.append(
            f"{row['net']} | MPT-{row['act']} | {ms['reference/fp32/train']:.0f} | {ms['ours/bf16/train']:.0f} "
            f"| {ms['ours/fp32/train']:.0f} | {r['train/bf16']:.1f} × | {r['train/fp32']:.1f} × "
            f"| {r['eval/bf16']:.1f} × | {r['train/bf16/over_dense']:.2f} ×"
        )
    text = [
        f"Medians of {rows[0]['summary']['ours/fp32/train']['n']} on {measured['device']}, torch {measured['torch']}, "
        f"batch {measured['batch_size']}, half the weights kept (`python scripts/bench.py`). BIPROP's way is a "
        "reimplementation of its step: fp32, a full sort in every pass, anomaly detection, images transformed one by "
        "one. It has the allocator settings of this program.",
        "",
        *markdown(
            "network | kind | BIPROP's way, ms per step | ours bf16 | ours fp32 | gain bf16 | gain fp32 "
            "| gain in evaluation, bf16 | over the dense step, bf16",
            lines,
        ),
    ]
    for ratio in (r["startup"]["over_import_torch"]["main.py to first batch"] for r in records if "startup" in r):
        text += ["", f"`main.py` has its first batch after {ratio:.2f} × the time that `import torch` takes by itself."]
    return "\n".join(text)


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
    lines = []
    for (config, conv_type, _, epochs, precision, changed), rows in sorted(groups.items()):
        last, best = (
            mean_and_deviation([float(row[f"{which} Epoch Test Top 1"]) for row in rows]) for which in ("Last", "Best")
        )
        kept = f"{100 * statistics.mean(float(row['Kept']) for row in rows):.3g} %"
        of = "" if int(epochs) == epochs_of(config) else f" of {epochs_of(config)}"
        named = f"`{config}` {changed}" if changed else f"`{config}`"
        lines.append(f"{named} | {conv_type} | {kept} | {epochs}{of} | {precision} | {last} | {best} | {len(rows)}")
    head = "config | conv_type | kept | epochs | precision | test accuracy, last epoch (%) | best epoch (%) | seeds"
    return "\n".join(markdown(head, lines))


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
    lines, missing = [], []
    for target in _read(REPRODUCE / "targets.csv"):
        config, source = target["config"], f"{target['paper']}'s {target['table']}"
        recipe = (config, re.sub(r"--(\S+) ", r"\1=", target["overrides"]), str(epochs_of(config)))
        complete = [row for row in records() if (row["Base Config"], overrides(row), row["Epochs"]) == recipe]
        if ours := [float(row[target["metric"]]) for row in complete]:
            reached = f"{target['published']} | {mean_and_deviation(ours)} | {len(ours)}"
            lines.append(f"{source} | {target['row']} | `{config}` | {reached}")
        else:
            missing.append(f"- {source}, {target['row']}: {target['published']}, `{config}`")
    table = markdown("published by | row | config | published (%) | ours (%) | seeds", lines)
    return "\n".join([*table, "", "Not run in full yet, published accuracy (%) and config:", "", *missing])


def constraints() -> str:
    """Return the table of constraints, one line per row of the registry."""
    rows = (f"`{name}` | {row.weights}" for name, row in CONV_TYPES.items())
    return "\n".join(markdown("`conv_type` | weights of a layer", rows))


def pruning() -> str:
    """Return a table of published and own accuracies per percentage pruned, and the savings of half the units."""
    theirs = {(row["method"], float(row["percent"])): row["accuracy"] for row in _read(CURVES)}
    ours: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for path in sorted(RECORDS.glob("pruning_*.csv")):
        for row in _read(path):
            ours[row["method"], float(row["percent"])].append(row)
    lines = []
    for percent in dict.fromkeys(percent for _, percent in theirs):
        cells = [f"{percent:g} %"]
        for method in ("weight", "unit"):
            accuracies = [float(row["accuracy"]) for row in ours[method, percent]]
            cells += [theirs[method, percent], mean_and_deviation(accuracies)]
        lines.append(" | ".join(cells))
    before, half = ours["unpruned", 0.0], ours["unit", 50.0]
    ratios = [float(b["ms_per_image"]) / float(h["ms_per_image"]) for b, h in zip(before, half, strict=True)]
    saved = [f"{int(before[0][of]):,} to {int(half[0][of]):,} {of}" for of in ("parameters", "bytes")]
    text = f"Half of the units removed: {saved[0]}, {saved[1]}, an image {mean_and_deviation(ratios)} times as fast"
    table = markdown("removed | weights, published (%) | ours (%) | units, published (%) | ours (%)", lines)
    return "\n".join([*table, "", f"{text}; {len(half)} seeds."])


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
