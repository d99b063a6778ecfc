"""Write the tables of README.md and docs/results.md from the measured records in scripts/records.

Speed comes from bench_*.json (scripts/bench.py --out), accuracy from runs.csv: rows of results.csv as runs left them;
published numbers from scripts/reproduce/targets.csv.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import csv
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache

import yaml

from utils import exit_codes
from utils.config.script_parser import Parser
from utils.text import csv_text

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "scripts" / "records"


def speed() -> str:
    """A line per network: our step beside one that works as BIPROP's does and beside the dense one, then the start."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_*.json"))]
    rows = [row for record in records for row in record.get("rows", [])]
    measured = next(record for record in records if "rows" in record)
    lines = [
        f"Medians of {rows[0]['summary']['ours/fp32/train']['n']} on {measured['device']}, torch {measured['torch']}, "
        f"batch {measured['batch_size']}, half the weights kept (`python scripts/bench.py`). BIPROP's way is a "
        "step of our own writing that works as theirs: fp32, a full sort in every pass, anomaly detection, images "
        "one by one; but with our allocator settings.",
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
    start = next((record["startup"]["over_import_torch"] for record in records if "startup" in record), None)
    if start:
        lines += ["", f"`main.py` has its first batch after {start['main.py to first batch']:.2f} × the time that "]
        lines[-1] += "`import torch` takes by itself."
    return "\n".join(lines)


def records() -> list[dict[str, str]]:
    with (RECORDS / "runs.csv").open(newline="", encoding="utf-8-sig") as file:
        return [{name: csv_text(stored) for name, stored in row.items()} for row in csv.DictReader(file)]


def accuracy() -> str:
    """A line per configuration: mean ± standard deviation over its seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in records():
        key = ("Base Config", "Conv Type", "Prune Rate", "Epochs", "Precision")
        groups[(*(row[name] for name in key), variant(row))].append(row)
    lines = [
        "| config | conv_type | kept | epochs | precision | test accuracy, last epoch (%) | best epoch (%) | seeds |",
        "|" + "---|" * 8,
    ]
    for (config, conv_type, _, epochs, precision, other), rows in sorted(groups.items()):
        last, best = (spread([float(r[f"{which} Epoch Test Top 1"]) for r in rows]) for which in ("Last", "Best"))
        kept = f"{100 * statistics.mean(float(row['Kept']) for row in rows):.3g} %"
        of = "" if int(epochs) == epochs_of(config) else f" of {epochs_of(config)}"
        named = f"`{config}`{other and f' {other}'}"
        lines.append(f"| {named} | {conv_type} | {kept} | {epochs}{of} | {precision} | {last} | {best} | {len(rows)} |")
    return "\n".join(lines)


@cache
def epochs_of(config: str) -> int:
    """How long the recipe trains."""
    return int(yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["epochs"])


def variant(row: dict[str, str]) -> str:
    """What a record was run with besides its config: the name that it was given, where that says so ("hidden=1000")."""
    return row["Name"] if "=" in row["Name"] else ""


def published() -> str:
    """A line per published row whose whole recipe has been run, the number there and ours; then the other rows."""
    with (ROOT / "scripts" / "reproduce" / "targets.csv").open(newline="", encoding="utf-8") as file:
        targets = list(csv.DictReader(file))
    lines = ["| published by | row | config | published (%) | ours (%) | seeds |", "|" + "---|" * 6]
    missing = []
    for target in targets:
        config, of = target["config"], f"{target['paper']}'s {target['table']}"
        recipe = (config, re.sub(r"--(\S+) ", r"\1=", target["overrides"]), str(epochs_of(config)))
        whole = [row for row in records() if (row["Base Config"], variant(row), row["Epochs"]) == recipe]
        if ours := [float(row[target["metric"]]) for row in whole]:
            cells = (of, target["row"], f"`{config}`", target["published"], spread(ours), str(len(ours)))
            lines.append(f"| {' | '.join(cells)} |")
        else:
            missing.append(f"- {of}, {target['row']}: {target['published']}, `{config}`")
    return "\n".join([*lines, "", "Not run in full yet, published accuracy (%) and config:", "", *missing])


def pruning() -> str:
    """A line per percentage: accuracies published and ours, for weights and units; then what half of the units save."""
    with (ROOT / "scripts" / "reproduce" / "pruning_curves.csv").open(newline="", encoding="utf-8") as file:
        theirs = {(row["method"], float(row["percent"])): row["accuracy"] for row in csv.DictReader(file)}
    ours: dict[tuple[str, float], list[dict[str, str]]] = defaultdict(list)
    for path in sorted(RECORDS.glob("pruning_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                ours[row["method"], float(row["percent"])].append(row)
    lines = ["| removed | weights, published (%) | ours (%) | units, published (%) | ours (%) |", "|" + "---|" * 5]
    for percent in dict.fromkeys(percent for _, percent in theirs):
        cells = [f"{percent:g} %"]
        for method in ("weight", "unit"):
            cells += [theirs[method, percent], spread([float(row["accuracy"]) for row in ours[method, percent]])]
        lines.append(f"| {' | '.join(cells)} |")
    before, half = ours["unpruned", 0.0], ours["unit", 50.0]
    ratios = [float(b["ms_per_image"]) / float(h["ms_per_image"]) for b, h in zip(before, half, strict=True)]
    saved = [f"{int(before[0][of]):,} to {int(half[0][of]):,} {of}" for of in ("parameters", "bytes")]
    told = f"Half of the units cut out: {saved[0]}, {saved[1]}, an image {spread(ratios)} times as fast"
    return "\n".join([*lines, "", f"{told}; {len(half)} seeds."])


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": speed, "published": published, "pruning": pruning},
    "docs/results.md": {"accuracy": accuracy},
}


def filled(text: str, tables: Mapping[str, Callable[[], str]], script: str) -> str:
    """`text` with each table of `script` between its `<!-- name: … -->` and the next `<!-- end -->`."""
    for name, table in tables.items():
        marker = f"<!-- {name}: python {script} -->"
        before, rest = text.split(marker)
        _, after = rest.split("<!-- end -->", 1)
        text = f"{before}{marker}\n{table()}\n<!-- end -->{after}"
    return text


def main(argv: list[str]) -> int:
    """Write the pages; returns 1 with --check where they would change."""
    return exit_codes.run_program(lambda: work(argv), interrupted=exit_codes.INTERRUPTED)


def work(argv: list[str]) -> int:
    parser = Parser("Write the tables of README.md and docs/results.md from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where they would change")
    check, changed = parser.parse_args(argv).check, False
    for name, tables in PAGES.items():
        page = ROOT / name
        text = filled(page.read_text(encoding="utf-8"), tables, "scripts/readme.py")
        changed |= text != page.read_text(encoding="utf-8")
        if not check:
            page.write_text(text, encoding="utf-8")
    return int(check and changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
