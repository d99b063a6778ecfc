"""Runs with --tracker and the real packages, without a network: what the packages have stored is read back.

`pip install -r requirements-trackers.txt` installs the packages. A test is skipped if its package is missing.
"""

import csv
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recorded import CIRCUIT

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = Path("runs/ticket/ticket")
BLOCK, HEADER = 32768, 7  # bytes of a block of a .wandb file and of the header of its records


def train(folder, *argv, **env):
    """Run main.py in `folder`, where trackio and MLflow have their stores too."""
    given = {"OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    kept = {key: v for key, v in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "MLFLOW"))}
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *map(str, argv)],
        cwd=folder,
        env=kept | given | env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def recorded(folder):
    """Return {epoch: {metric: value}} of metrics.csv."""
    with (folder / RUN / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return {int(row.pop("epoch")): row for row in rows}


def wandb_records(path):
    """Yield the records of a .wandb file, which has the format of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def wandb_rows(folder):
    """Return (id, project, name, rows) of the run, with one row per logged step and in the order of logging."""
    runs, rows = set(), []
    for path in sorted(folder.glob(f"{RUN}/logs/wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
                assert not record.run.git.remote_url
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    (run,) = runs
    return *run, rows


def trackio_rows(folder):
    """Return (name, rows) of the run, in the order of logging."""
    with sqlite3.connect(folder / "trackio/ticket.db") as base:
        found = base.execute("select run_name, run_id, step, metrics from metrics order by id").fetchall()
    (name,) = {(name, run) for name, run, *_ in found}
    return name[0], [json.loads(values) | {"_step": step} for *_, step, values in found]


def mlflow_runs(folder, base="runs/mlflow.db"):
    """Return the client and all runs of the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / base}")
    return client, client.search_runs([client.get_experiment_by_name("ticket").experiment_id])


def assert_equal_to_metrics_csv(folder, rows):
    expected = recorded(folder)
    assert [row["_step"] for row in rows] == [*expected]
    for row in rows:
        stored = {name: row[name] for name in expected[row["_step"]]}
        assert stored == pytest.approx(expected[row["_step"]], rel=1e-8)


def stopped_and_resumed(folder, path, tracker, **env):
    """Train two epochs and then a third, and check that nothing is printed besides the lines of the run."""
    first = train(folder, "--config", path, "--tracker", tracker, "--epochs", 2, **env)
    assert (first.returncode, first.stderr) == (0, ""), first.stderr
    resumed = train(folder, "--resume", RUN, "--epochs", 3, **env)
    assert resumed.returncode == 0 and resumed.stderr.count("\n") == 1 and "epochs: 2 in the run" in resumed.stderr
    opening, summary = ["CircuitMLP", "cpu"], ["", "network", "test", "speed", "run", "curves"]
    assert words(first) == [*opening, "epoch", "epoch", *summary]
    assert words(resumed) == ["resuming", *opening, "epoch", *summary]


def words(done):
    """Return the first word of each line that a program has printed."""
    return [line.split(" ")[0] for line in done.stdout.splitlines()]


def test_wandb_stores_every_epoch_of_a_resumed_run_once(config, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; see requirements-trackers.txt")
    stopped_and_resumed(tmp_path, config(**CIRCUIT, epochs=3), "wandb")
    run, project, name, rows = wandb_rows(tmp_path)
    assert (run, project, name) == (json.loads((tmp_path / RUN / "status.json").read_text())["id"], "ticket", "ticket")
    assert_equal_to_metrics_csv(tmp_path, rows)
    assert rows[1]["weight_sweep._type"] == "table-file" and rows[0]["linear.0.weight._type"] == "histogram"
    assert not list((tmp_path / RUN / "logs/wandb").glob("*/files/**/*.py")) and not list(tmp_path.rglob("*.patch"))


def test_wandb_without_an_account_ends_the_run_in_one_line(config, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; see requirements-trackers.txt")
    done = train(tmp_path, "--config", config(), "--tracker", "wandb", WANDB_MODE="online", HOME=str(tmp_path))
    assert done.returncode == 2 and "epoch 1" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: tracker: wandb cannot start: No API key")
    assert line.endswith("; WANDB_MODE=offline needs neither an account nor a network")


def test_trackio_stores_every_epoch_of_a_resumed_run_once(config, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed; see requirements-trackers.txt")
    stopped_and_resumed(tmp_path, config(**CIRCUIT, epochs=3), "trackio")
    name, rows = trackio_rows(tmp_path)
    assert name == "ticket"
    assert_equal_to_metrics_csv(tmp_path, rows)
    assert rows[1]["weight_sweep"]["_type"] == "trackio.table"
    assert rows[0]["linear.0.weight"]["_type"] == "trackio.histogram"


def test_mlflow_stores_every_epoch_of_a_resumed_run_once(config, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed; see requirements-trackers.txt")
    stopped_and_resumed(tmp_path, config(**CIRCUIT, epochs=3), "mlflow")
    client, (run,) = mlflow_runs(tmp_path)
    assert (run.info.run_name, run.info.status, run.data.params["arch"]) == ("ticket", "FINISHED", "CircuitMLP")
    stored = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            row = stored.setdefault(point.step, {"_step": point.step})
            assert name.replace("acc_", "acc@") not in row, f"{name} of epoch {point.step} is stored twice"
            row[name.replace("acc_", "acc@")] = point.value
    assert_equal_to_metrics_csv(tmp_path, [stored[step] for step in sorted(stored)])
    (table,) = (tmp_path / "runs/mlflow").rglob("weight_sweep/epoch_2.csv")
    assert table.read_text().startswith("on,acc@1,loss\n0.0,")


def test_the_environment_names_the_store_of_mlflow(config, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed; see requirements-trackers.txt")
    store = f"sqlite:///{tmp_path / 'own.db'}"
    done = train(tmp_path, "--config", config(epochs=1), "--tracker", "mlflow", MLFLOW_TRACKING_URI=store)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(mlflow_runs(tmp_path, "own.db")[1]) == 1 and not (tmp_path / "runs/mlflow.db").exists()
