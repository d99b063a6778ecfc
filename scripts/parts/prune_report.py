"""What scripts/prune.py shows: a row a network, as a table, as pruning.csv, and as charts beside published curves."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import nn

from models.constraints import weight_layers
from utils.files import write_text
from utils.records.plots import Line, line_chart, line_page

CURVES = Path(__file__).resolve().parents[1] / "reproduce" / "pruning_curves.csv"
AXES = ("removed (%)", "test accuracy (%)")
BEFORE = "unpruned"  # the method of the row of the network as it was trained


@dataclass
class Row:
    """One network: percent of the weights or units removed by `method`, test accuracy (%) and loss; its parameters,
    those not zero, the bytes of all its tensors, milliseconds an image."""

    method: str
    percent: float
    accuracy: float
    loss: float
    parameters: int
    kept: int
    bytes: int
    ms_per_image: float = 0.0


def sizes(model: nn.Module) -> tuple[int, int, int]:
    """(parameters, those but the weights that are zero, bytes of the state) of `model`."""
    parameters = sum(p.numel() for p in model.parameters())
    zeros = sum(int((layer.weight == 0).sum()) for layer in weight_layers(model).values())
    return parameters, parameters - zeros, sum(t.numel() * t.element_size() for t in model.state_dict().values())


def table(rows: Sequence[Row]) -> str:
    """The rows for a person; the first is the network before."""
    lines = [["network", "removed", "accuracy", "loss", "parameters", "not zero", "bytes", "ms per image", "faster"]]
    for row in rows:
        ratio = rows[0].ms_per_image / row.ms_per_image if row.ms_per_image else 0.0
        line = [row.method, f"{row.percent:g} %", f"{row.accuracy:.2f} %", f"{row.loss:.4f}", f"{row.parameters:,}"]
        line += [f"{row.kept:,}", f"{row.bytes:,}", f"{row.ms_per_image:.4f}", f"{ratio:.2f}x"]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines)


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with a header, the names of the fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def published(config: str | None) -> list[tuple[str, float, float]]:
    """(method, percent, accuracy) that a paper or notebook gives for the configuration of that path, wherever the
    project lies; none where there is none."""
    with CURVES.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if config and f"/{config}".endswith(f"/{row['config']}")]
    return [(row["method"], float(row["percent"]), float(row["accuracy"])) for row in rows]


def curves(rows: Sequence[Row], config: str | None) -> list[Line]:
    """Accuracy against percent removed: a solid line a method, dashed in its colour what is published for it."""
    ours, theirs = [(row.method, row.percent, row.accuracy) for row in rows], published(config)
    lines = []
    for number, method in enumerate(dict.fromkeys(row.method for row in rows if row.method != BEFORE)):
        for of, label, style in ((ours, f"{method}s", "-"), (theirs, f"{method}s, published", "--")):
            points = sorted((percent, accuracy) for name, percent, accuracy in of if name == method)
            if points:
                lines.append(Line(label, [x for x, _ in points], [y for _, y in points], f"C{number}{style}"))
    return lines


def files(folder: Path) -> list[Path]:
    """What `write` writes into `folder`."""
    return [folder / f"pruning.{kind}" for kind in ("csv", "png", "html")]


def write(folder: Path, rows: Sequence[Row], title: str, config: str | None) -> list[Path]:
    """pruning.csv, pruning.png and pruning.html in `folder`, each whole or as it was; those that were written.

    Raises OSError where the table cannot be written; a picture that fails is a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = curves(rows, config)
    table, png, page = files(folder)
    write_text(table, as_csv(rows))
    drawn = {png: line_chart(png, lines, *AXES, title), page: line_page(page, lines, *AXES, title)}
    return [table, *(path for path, done in drawn.items() if done)]
