"""BIPROP's 170 configs: the rows of `tests/golden/biprop_configs.csv` by path. An empty cell is a missing key."""

import csv
from pathlib import Path

with (Path(__file__).parent / "golden" / "biprop_configs.csv").open(newline="") as table:
    ROWS = {row["config"]: row for row in csv.DictReader(table)}
KEYS = [key for key in next(iter(ROWS.values())) if key not in ("config", "remarks")]
LEFT_OPEN = [config for config, row in ROWS.items() if "needs --prune-rate" in row["remarks"]]


def write(config, folder):
    """Write a config in BIPROP's original form under `folder` and return its path."""
    path = folder / Path(config).name
    path.write_text("".join(f"{key}: {ROWS[config][key]}\n" for key in KEYS if ROWS[config][key]))
    return str(path)
