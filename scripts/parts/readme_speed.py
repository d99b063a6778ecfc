"""Tables of measured speeds, from the records of scripts/bench.py."""

import json
from typing import Any

from scripts import RECORDS
from scripts.parts.pages import markdown
from utils.config.option_groups import ConstraintOptions

UPDATE_INTERVAL = ConstraintOptions.update_interval  # steps between counts, by default


def _bench() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_*.json"))]


def speed() -> str:
    """Return a table of step times of this program, BIPROP's way and a dense network."""
    lines = []
    rows = [row for record in _bench() for row in record.get("rows", [])]
    for row in rows:
        ms = {name: 1e3 * s["median"] for name, s in row["summary"].items()}
        r = row["ratios"]
        lines.append(
            f"{row['net']} | MPT-{row['act']} | {ms['reference/fp32/train']:.0f} | {ms['ours/bf16/train']:.0f} "
            f"| {ms['ours/fp32/train']:.0f} | {r['train/bf16']:.1f} × | {r['train/fp32']:.1f} × "
            f"| {r['eval/bf16']:.1f} × | {r['train/bf16/over_dense']:.2f} ×"
        )
    head = (
        "network | kind | BIPROP's way, ms per step | ours bf16 | ours fp32 | gain bf16 | gain fp32 "
        "| gain in evaluation, bf16 | over the dense step, bf16"
    )
    return "\n".join(markdown(head, lines))


def conditions() -> str:
    """Return the conditions of the table of step times, and the start-up time."""
    records = _bench()
    record = next(record for record in records if "rows" in record)
    repeats = record["rows"][0]["summary"]["ours/fp32/train"]["n"]
    ratios = [r["startup"]["over_import_torch"]["main.py to first batch"] for r in records if "startup" in r]
    lines = [
        f"command | `python scripts/bench.py`, medians of {repeats}",
        f"device | {record['device']}, torch {record['torch']}",
        f"batch | {record['batch_size']} images, half the weights kept",
        *(f"time from the start of `main.py` to its first batch | {r:.2f} × that of `import torch`" for r in ratios),
    ]
    return "\n".join(markdown("condition | value", lines))


def reasons() -> str:
    """Return the reasons for using the program as a list, with the measured speeds."""
    ratios = [row["ratios"] for record in _bench() for row in record.get("rows", [])]
    over = sorted(ratio["train/bf16/over_dense"] for ratio in ratios)
    gain = sorted(ratio["train/bf16"] for ratio in ratios)
    lines = [
        "Five published methods share one set of options, one training loop and one results file.",
        "A run that is killed and resumed ends with the bits of an uninterrupted run.",
        f"A step takes {over[0]:.2f} to {over[-1]:.2f} times as long as a dense one, and 1/{gain[-1]:.1f} to "
        f"1/{gain[0]:.1f} of BIPROP's way (CPU, bf16).\n  A ticket is not faster at inference. "
        "A network without its weak units is.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def binary_speed() -> str:
    """Return a table of the time of a training step with weights of zeros and ones."""
    found = _one("binary")["summary"]
    names = {
        "source": "as in the source, fp32",
        "ours": "ours, fp32",
        "ours, bf16": "ours, bf16",
        "dense": "dense, fp32",
    }
    source = found["source"]["median"]
    lines = [
        f"{name} | {1e3 * found[of]['median']:.0f} | {source / found[of]['median']:.1f} ×" for of, name in names.items()
    ]
    return "\n".join(markdown("step | ms | speed relative to the source", lines))


def counting() -> str:
    """Return a table of the time that counting co-activations adds to a training step of SparseConv."""
    found = {name: 1e3 * times["median"] for name, times in _one("strengths")["summary"].items()}
    lines = []
    for criterion, name in (("coactivation", "hebbian"), ("correlation", "correlation")):
        share = 100 * found[criterion] / found["step"] / UPDATE_INTERVAL
        lines.append(f"`{name}` | {found['step']:.0f} | {found[criterion]:.0f} | {share:.1f} %")
    head = f"statistic | step, ms | one count, ms | share of a step with a count in {UPDATE_INTERVAL} steps"
    return "\n".join(markdown(head, lines))


def _one(name: str) -> dict[str, Any]:
    return next(record[name] for record in _bench() if name in record)
