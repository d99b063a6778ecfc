"""Write README's tables from the measured records in scripts/records; `python scripts/readme.py [--check]`.

Speed comes from bench.json (scripts/bench.py --out), accuracy from runs.csv: rows of results.csv as runs left them.
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "scripts" / "records"


def speed() -> str:
    """A line per network: our training step against BIPROP's way of doing it and against the dense step."""
    record = json.loads((RECORDS / "bench.json").read_text())
    return str(record["markdown"])


def accuracy() -> str:
    """A line per configuration: mean ± standard deviation over its seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with (RECORDS / "runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = ("Base Config", "Prune Rate", "Epochs", "Precision")
            groups[tuple(row[name] for name in key)].append(row)
    lines = [
        "| config | kept | epochs | precision | test accuracy, last epoch (%) | best epoch (%) | seeds |",
        "|" + "---|" * 7,
    ]
    for (config, _, epochs, precision), rows in groups.items():
        last, best = (spread([float(r[f"{which} Epoch Test Top 1"]) for r in rows]) for which in ("Last", "Best"))
        kept = f"{100 * float(rows[0]['Kept']):.0f} %"
        lines.append(f"| `{config}` | {kept} | {epochs} | {precision} | {last} | {best} | {len(rows)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def filled(text: str) -> str:
    """README with each table between its `<!-- name: … -->` and the next `<!-- end -->`."""
    for name, table in (("speed", speed()), ("accuracy", accuracy())):
        marker = f"<!-- {name}: python scripts/readme.py -->"
        before, rest = text.split(marker)
        _, after = rest.split("<!-- end -->", 1)
        text = f"{before}{marker}\n{table}\n<!-- end -->{after}"
    return text


def main(argv: list[str]) -> int:
    readme = ROOT / "README.md"
    text = filled(readme.read_text())
    if argv == ["--check"]:
        return int(text != readme.read_text())
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
