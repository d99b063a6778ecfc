"""Pictures of the pages, drawn from the measured records in scripts/records."""

import io
import statistics
from pathlib import Path
from typing import Any

from scripts import ROOT
from scripts.parts.readme_records import sweep_rows
from utils.files import write_atomic

ACCURACY_BY_DENSITY = ROOT / "docs/pictures/accuracy_by_density.png"
CURVES = {  # conv_type -> label, colour
    "SubnetConv": ("ticket, no weight trained", "#1f77b4"),
    "GlobalSubnetConv": ("ticket, scores of all layers compared", "#ff7f0e"),
    "DenseConv": ("dense network, every weight trained", "#444444"),
}
Points = list[tuple[float, float, float]]  # (percent kept, mean accuracy, standard deviation)


def points(conv_type: str) -> Points:
    """Return the points of a curve: percent kept, mean and standard deviation of the test accuracy in percent."""
    found = []
    for density, rows in sweep_rows(conv_type).items():
        values = [float(row["Last Epoch Test Top 1"]) for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        found.append((100 * density, statistics.mean(values), deviation))
    return found


def numbers() -> str:
    """Return the numbers of the picture as text. The picture stores it, to be compared with the records."""
    return "\n".join(f"{name} {p:g} {mean:.4f} {std:.4f}" for name in CURVES for p, mean, std in points(name))


def stored_numbers(path: Path) -> str:
    """Return the numbers that a picture stores, or an empty string if there is no such picture."""
    from PIL import Image

    if not path.is_file():
        return ""
    with Image.open(path) as image:
        return str(image.info.get("Description", ""))


def accuracy_by_density() -> bytes:
    """Draw the test accuracy of tickets over the fraction of weights kept, beside the dense network, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None, "Description": numbers()})
    return file.getvalue()


def _draw(axes: Any) -> None:
    for conv_type, (label, colour) in CURVES.items():
        percent, means, deviations = zip(*points(conv_type), strict=True)
        if conv_type == "DenseConv":
            axes.axhline(means[0], color=colour, linestyle="--", label=label)
        else:
            axes.errorbar(percent, means, deviations, color=colour, marker="o", capsize=3, label=label)
    kept = [percent for percent, _, _ in points("SubnetConv")]
    axes.set(xscale="log", xlabel="weights kept (%)", ylabel="test accuracy (%)")
    axes.set_xticks(kept, [f"{percent:g}" for percent in kept])
    axes.minorticks_off()
    (dense,) = sweep_rows("DenseConv").values()
    axes.set_title(f"Fashion-MNIST, LeNet-300-100, {dense[0]['Epochs']} epochs, {len(dense)} seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def update_picture(*, check: bool) -> int:
    """Draw the picture again if its numbers differ from the records, and return 0.

    With `check` write nothing and return 1 if they differ.
    """
    if stored_numbers(ACCURACY_BY_DENSITY) == numbers():
        return 0
    if not check:
        write_atomic(ACCURACY_BY_DENSITY, lambda file: file.write(accuracy_by_density()))
    return int(check)
