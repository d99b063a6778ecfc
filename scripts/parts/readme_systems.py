"""Tables of pruned networks and of all systems, from the measured records in scripts/records."""

from collections import defaultdict

from scripts import CURVES, RECORDS
from scripts.parts.pages import markdown
from scripts.parts.readme_records import Row, Table, last, read, records
from utils.tables import mean_and_deviation


def _pruned(pattern: str) -> dict[tuple[str, float], list[Row]]:
    """Return the rows of the recorded pruning.csv files that match `pattern`, by method and percentage."""
    rows: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for path in sorted(RECORDS.glob(pattern)):
        for row in read(path):
            rows[row["method"], float(row["percent"])].append(row)
    return rows


def pruning() -> str:
    """Return a table of published and own accuracies by the percentage removed."""
    theirs = {(row["method"], float(row["percent"])): row["accuracy"] for row in read(CURVES)}
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
