"""The report of scripts/prune.py: one row per network, as a table, as pruning.csv and as charts."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import nn

from models.constraints.attachment import weight_layers
from scripts import CURVES
from utils.files import write_text
from utils.records.plots import Line, line_chart, line_page
from utils.tables import aligned

AXES = ("removed (%)", "test accuracy (%)")
UNPRUNED = "unpruned"  # `method` in the row of the trained network


@dataclass
class Row:
    """Row of the pruning report: the results of one network. The fields are the columns of pruning.csv.

    method: The pruning method, or UNPRUNED.
    percent: Percentage of the weights or units removed.
    accuracy, loss: On the test set; accuracy in %.
    parameters, kept: Number of parameters, and of those that are not zero.
    bytes: Size of all parameters and buffers.
    """

    method: str
    percent: float
    accuracy: float
    loss: float
    parameters: int
    kept: int
    bytes: int
    ms_per_image: float = 0.0


def sizes(model: nn.Module) -> tuple[int, int, int]:
    """Return the number of parameters of `model`, the number that are not zero, and the bytes of its state."""
    parameters = sum(p.numel() for p in model.parameters())
    zeros = sum(int((layer.weight == 0).sum()) for layer in weight_layers(model).values())
    return parameters, parameters - zeros, sum(t.numel() * t.element_size() for t in model.state_dict().values())


def table(rows: Sequence[Row]) -> str:
    """Return the report as an aligned text table. Speed-ups are relative to the first row, the unpruned network."""
    lines = [["network", "removed", "accuracy", "loss", "parameters", "not zero", "bytes", "ms per image", "faster"]]
    for row in rows:
        ratio = rows[0].ms_per_image / row.ms_per_image if row.ms_per_image else 0.0
        line = [row.method, f"{row.percent:g} %", f"{row.accuracy:.2f} %", f"{row.loss:.4f}", f"{row.parameters:,}"]
        line += [f"{row.kept:,}", f"{row.bytes:,}", f"{row.ms_per_image:.4f}", f"{ratio:.2f}x"]
        lines.append(line)
    return aligned(lines, right=True)


def as_csv(rows: Sequence[Row]) -> str:
    """Return the report as CSV text. The header has the names of the fields of Row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def published(config: str | None) -> list[tuple[str, float, float]]:
    """Return the published results (method, percent, accuracy) for a config file, or an empty list if there are none.

    The path of the configuration is compared from its end, since the project may be anywhere.
    """
    with CURVES.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if config and f"/{config}".endswith(f"/{row['config']}")]
    return [(row["method"], float(row["percent"]), float(row["accuracy"])) for row in rows]


def curves(rows: Sequence[Row], config: str | None) -> list[Line]:
    """Return plot lines of accuracy over percent removed: solid for the rows, dashed for published results.

    Both lines of a method have the same colour.
    """
    ours, theirs = [(row.method, row.percent, row.accuracy) for row in rows], published(config)
    lines = []
    for number, method in enumerate(dict.fromkeys(row.method for row in rows if row.method != UNPRUNED)):
        for source, label, style in ((ours, f"{method}s", "-"), (theirs, f"{method}s, published", "--")):
            points = sorted((percent, accuracy) for name, percent, accuracy in source if name == method)
            if points:
                lines.append(Line(label, [x for x, _ in points], [y for _, y in points], f"C{number}{style}"))
    return lines


def files(folder: Path) -> list[Path]:
    """Return the paths of the files that `write` writes to `folder`."""
    return [folder / f"pruning.{kind}" for kind in ("csv", "png", "html")]


def write(folder: Path, rows: Sequence[Row], title: str, config: str | None) -> list[Path]:
    """Write pruning.csv, pruning.png and pruning.html to `folder`, each atomically. Return the written paths.

    Raises OSError if the table cannot be written. A picture that cannot be written is a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = curves(rows, config)
    table, png, page = files(folder)
    write_text(table, as_csv(rows))
    drawn = {png: line_chart(png, lines, *AXES, title), page: line_page(page, lines, *AXES, title)}
    return [table, *(path for path, done in drawn.items() if done)]
