"""Write README's tables from the measured records in scripts/records; `python scripts/readme.py [--check]`.

Speed comes from bench_*.json (scripts/bench.py --out), accuracy from runs.csv: rows of results.csv as runs left them;
published numbers from scripts/reproduce/targets.csv.
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "scripts" / "records"


def speed() -> str:
    """A line per network: our step beside one that works as BIPROP's does and beside the dense one, then the start."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("bench_*.json"))]
    rows = [row for record in records for row in record.get("rows", [])]
    measured = next(record for record in records if "rows" in record)
    lines = [
        f"Medians of {rows[0]['summary']['ours/fp32/train']['n']} on {measured['device']}, torch {measured['torch']}, "
        f"batch {measured['batch_size']}, half the weights kept (`python scripts/bench.py`). BIPROP's way: fp32, a "
        "full sort in every forward pass, anomaly detection, images one by one; but with our allocator settings.",
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
        lines += ["", f"From the start of Python to the first batch: {start['first batch']:.2f} × `import torch`."]
    return "\n".join(lines)


def accuracy() -> str:
    """A line per configuration: mean ± standard deviation over its seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with (RECORDS / "runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = ("Base Config", "Conv Type", "Prune Rate", "Epochs", "Precision")
            groups[(*(row[name] for name in key), variant(row))].append(row)
    lines = [
        "| config | conv_type | kept | epochs | precision | test accuracy, last epoch (%) | best epoch (%) | seeds |",
        "|" + "---|" * 8,
    ]
    for (config, conv_type, _, epochs, precision, other), rows in sorted(groups.items()):
        last, best = (spread([float(r[f"{which} Epoch Test Top 1"]) for r in rows]) for which in ("Last", "Best"))
        kept = f"{100 * float(rows[0]['Kept']):.3g} %"
        named = f"`{config}`{other and f' {other}'}"
        lines.append(f"| {named} | {conv_type} | {kept} | {epochs} | {precision} | {last} | {best} | {len(rows)} |")
    return "\n".join(lines)


def variant(row: dict[str, str]) -> str:
    """What a record was run with besides its config: the name that it was given, where that says so ("hidden=1000")."""
    return row["Name"] if "=" in row["Name"] else ""


def published() -> str:
    """A line per published row: the number there and ours, where the whole recipe has been run."""
    with (ROOT / "scripts" / "reproduce" / "targets.csv").open(newline="") as file:
        targets = list(csv.DictReader(file))
    with (RECORDS / "runs.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    lines = ["| row | config | published (%) | ours, best epoch (%) | seeds |", "|" + "---|" * 5]
    for target in targets:
        recipe = yaml.safe_load((ROOT / target["config"]).read_text())
        whole = [r for r in records if r["Base Config"] == target["config"] and int(r["Epochs"]) == recipe["epochs"]]
        ours = spread([float(r[target["metric"]]) for r in whole]) if whole else "not run"
        name = f"{target['table'].removeprefix('README ')}, {target['row']}"
        lines.append(f"| {name} | `{target['config']}` | {target['published']} | {ours} | {len(whole)} |")
    return "\n".join(lines)


def pruning() -> str:
    """A line per percentage: accuracies published and ours, for weights and units; then what half of the units save."""
    with (ROOT / "scripts" / "reproduce" / "pruning_curves.csv").open(newline="") as file:
        theirs = {(row["method"], float(row["percent"])): row["accuracy"] for row in csv.DictReader(file)}
    ours: dict[tuple[str, float], list[dict[str, str]]] = defaultdict(list)
    for path in sorted(RECORDS.glob("pruning_*.csv")):
        with path.open(newline="") as file:
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


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "published": published,
    "accuracy": accuracy,
    "pruning": pruning,
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
    readme = ROOT / "README.md"
    text = filled(readme.read_text(), TABLES, "scripts/readme.py")
    if argv == ["--check"]:
        return int(text != readme.read_text())
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
