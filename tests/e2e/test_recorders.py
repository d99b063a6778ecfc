"""Runs with recorders of plug-ins: what they are told, resumption, failures, several processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import events
from tests.recorded import CIRCUIT
from utils.records import checkpoints
from utils.records.registry import RECORDERS, RecorderRow

pytestmark = pytest.mark.usefixtures("registries")
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/json_recorder.py"
JSON = ("--plugin", EXAMPLE, "--tracker", "json")
TICKET = Path("runs/ticket/prune-rate=0.5/ticket")
CLOCKS = {"images_per_second", "elapsed_seconds"}


def records(run):
    """Return the records of a run without times."""
    found = json.loads((run / "records.json").read_text())
    for record in found:
        record.get("metrics", {}).get("train", {}).pop("images_per_second", None)
        record.get("metrics", {}).get("train", {}).pop("elapsed_seconds", None)
    return found


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run):
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]


def plugin(path, hooks):
    """Write a plug-in with a recorder that has the given hooks, and return the options that choose it."""
    lines = [f"    {line}\n" for line in hooks.splitlines()]
    start = (
        "import torch\nfrom utils.config.plugins import register_recorder\nfrom utils.records.recorder import Recorder"
    )
    path.write_text(f'{start}\n\n\n@register_recorder("{path.stem}")\nclass Mine(Recorder):\n{"".join(lines)}')
    return "--plugin", path, "--tracker", path.stem


def test_a_recorder_is_told_the_numbers_of_metrics_csv_the_tables_and_the_event_file(program, config, tmp_path):
    assert program("--config", config(**CIRCUIT), *JSON)[0] == 0
    run = tmp_path / "runs/ticket/ticket"
    told, shown = records(run), events.shown(run / "logs")
    metrics = {
        r["epoch"]: {f"{s}/{n}": v for s, row in r["metrics"].items() for n, v in row.items()}
        for r in told
        if "metrics" in r
    }
    for row in rows(run / "metrics.csv"):
        for name in row.keys() - {"epoch", *(f"train/{clock}" for clock in CLOCKS)}:
            assert row[name] == f"{metrics[int(row['epoch'])][name]:.9g}"
    scalars = {tag.removeprefix("scalars: ") for tag in shown if tag.startswith("scalars: ")}
    assert metrics[2].keys() <= scalars and metrics.keys() == {1, 2}
    assert {step: float(value) for step, value in shown["scalars: test/loss"]} == {
        epoch: pytest.approx(values["test/loss"], rel=1e-6) for epoch, values in metrics.items()
    }
    (sweep,) = (record["rows"] for record in told if record.get("table") == "weight_sweep")
    assert [{key: str(value) for key, value in row.items()} for row in sweep] == [
        {key: value for key, value in row.items() if key != "epoch"} for row in rows(run / "weight_sweep.csv")
    ]
    histograms = {tag.removeprefix("histograms: ") for tag in shown if tag.startswith("histograms: ")}
    assert {record["tensor"] for record in told if "tensor" in record} == histograms
    assert told[-1]["final"]["test/acc@1"] == metrics[2]["test/acc@1"]


def test_a_resumed_run_has_the_records_of_an_uninterrupted_run(program, config, tmp_path, monkeypatch):
    path = config(epochs=3)
    assert program("--config", path, *JSON, "--log-dir", "whole", "--results", "whole.csv")[0] == 0
    save, on_disk = checkpoints.save, []

    def full(content, *paths):
        on_disk.append((content["epoch"], [record["epoch"] for record in records(tmp_path / TICKET)]))
        if content["epoch"] == 2:
            raise OSError("No space left on device")
        save(content, *paths)

    monkeypatch.setattr(checkpoints, "save", full)
    assert program("--config", path, *JSON)[0] == 1
    assert on_disk == [(0, []), (1, [1]), (2, [1, 2])]  # a checkpoint follows the records of its epoch
    monkeypatch.setattr(checkpoints, "save", save)
    assert program("--config", path, *JSON, "--resume", "auto")[0] == 0
    assert records(tmp_path / TICKET) == records(tmp_path / "whole/ticket/prune-rate=0.5/ticket")
    assert [record["epoch"] for record in records(tmp_path / TICKET)] == [1, 2, 3, 3]


FAILING = """
def metrics(self, epoch, metrics):
    torch.rand(1)
    if epoch == 2:
        raise ConnectionError("no answer")
"""


def test_a_failing_recorder_causes_one_warning_and_the_weights_are_those_without_it(program, config, tmp_path):
    path = config(epochs=3)
    assert program("--config", path, "--log-dir", "whole", "--results", "whole.csv")[0] == 0
    code, _, err = program("--config", path, *plugin(tmp_path / "mine.py", FAILING))
    place = f"{tmp_path / 'mine.py'}, line 12: ConnectionError: no answer"
    assert code == 0
    assert err == f"warning: tracker: mine records no longer: {place}; the training continues without it\n"
    alone, recorded = weights(tmp_path / "whole/ticket/prune-rate=0.5/ticket"), weights(tmp_path / TICKET)
    assert all(torch.equal(value, recorded[key]) for key, value in alone.items())
    assert len(rows(tmp_path / TICKET / "metrics.csv")) == 3


BAD = """
def start(self, run):
    raise ValueError("no such account")
"""


def test_a_recorder_that_cannot_start_ends_the_run_before_training(program, config, tmp_path):
    code, out, err = program("--config", config(), *plugin(tmp_path / "bad.py", BAD))
    place = f"{tmp_path / 'bad.py'}, line 10: ValueError: no such account"
    assert (code, err) == (2, f"error: tracker: bad cannot start: {place}\n")
    assert "epoch 1" not in out
    assert json.loads((tmp_path / TICKET / "status.json").read_text())["status"] == "failed"


def test_a_missing_package_is_named_before_anything_is_written(program, config, tmp_path, monkeypatch):
    monkeypatch.setitem(RECORDERS, "far", RecorderRow("nowhere:Far", "no-such-package"))
    for more in ((), ("--check",), ("--dry-run", 1)):
        code, out, err = program("--config", config(tracker="far"), *more)
        assert (code, out) == (2, "")
        assert err == "error: tracker: far needs a package that is not installed: pip install no-such-package\n"
    assert not (tmp_path / "runs").exists()


def test_only_a_run_that_counts_is_recorded(program, config, tmp_path):
    path = config()
    code, out, _ = program("--config", path, *JSON, "--check")
    assert code == 0 and "tracker:\n- json" in out
    assert program("--config", path, *JSON, "--dry-run", 1)[0] == 0
    assert not list(tmp_path.rglob("records.json"))
    assert program("--config", path, *JSON)[0] == 0
    before = (tmp_path / TICKET / "records.json").read_text()
    assert program("--resume", TICKET, "--plugin", EXAMPLE, "--evaluate")[0] == 0
    assert (tmp_path / TICKET / "records.json").read_text() == before


def test_a_run_can_be_resumed_with_another_recorder(program, config, tmp_path, monkeypatch):
    """The option does not change the training."""
    path = config()
    assert program("--config", path, "--plugin", EXAMPLE)[0] == 0
    monkeypatch.setitem(RECORDERS, "again", RECORDERS["json"])
    code, _, err = program("--resume", TICKET, "--plugin", EXAMPLE, "--epochs", 3, "--tracker", "again")
    assert code == 0, err
    assert [record["epoch"] for record in records(tmp_path / TICKET)] == [3, 3]


def torchrun(folder, *argv):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += [ROOT / "parallel_main.py", *argv]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*map(str, words)], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_of_several_processes_one_records(config, tmp_path):
    path = config("ticket.yml", batch_size=120, device="cpu")
    done = torchrun(tmp_path, "--config", path, *JSON)
    assert done.returncode == 0, done.stderr
    assert [record["epoch"] for record in records(tmp_path / TICKET)] == [1, 2, 2]
    (run,) = (tmp_path / "runs").rglob("records.json")
    assert run.parent == tmp_path / TICKET


def test_a_recorder_that_cannot_start_ends_all_processes(config, tmp_path):
    path = config("ticket.yml", batch_size=120, device="cpu")
    done = torchrun(tmp_path, "--config", path, *plugin(tmp_path / "bad.py", BAD))
    assert done.returncode != 0 and done.stderr.count("exitcode  : 2 ") == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "tracker: bad cannot start" in lines[0]
