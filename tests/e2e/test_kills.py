"""For every trainer, an interrupted run stores the same as an uninterrupted one, event files included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import events, kills

ROOT = Path(__file__).parents[2]


@pytest.fixture
def whole_and_stopped(program, tmp_path, monkeypatch):
    """Function that runs a case of tests/kills.py twice, and returns the folders of both runs.

    The first run is uninterrupted. The second one stops when `stop_asked` first returns True, and is resumed.
    """

    def make(name, stop_asked):
        config = tmp_path / f"{name}.yml"
        config.write_text(yaml.safe_dump(kills.COMMON | kills.CASES[name] | {"save_minutes": 0}))
        folders = [tmp_path / "whole", tmp_path / "stopped"]
        for folder in folders:
            folder.mkdir()
            monkeypatch.chdir(folder)
            with monkeypatch.context() as patched:
                if folder.name == "stopped":
                    patched.setattr("trainers.callbacks.RunRecorder.stop_asked", stop_asked)
                    assert program("--config", config)[0] == 75
            code, _, err = program("--config", config, "--resume", "auto")
            assert code == 0, err
        return folders

    return make


def assert_equal(whole, stopped):
    expected = kills.stored(kills.finished_run(whole), whole)
    assert kills.differences(kills.finished_run(stopped), stopped, expected) == []
    return expected


@pytest.mark.parametrize("name", kills.CASES)
@pytest.mark.parametrize("batches", [0, 5])
def test_a_stopped_run_stores_the_same_as_an_uninterrupted_one(whole_and_stopped, name, batches):
    """The run is stopped between two epochs or within one."""
    calls = []

    def stop_asked(self):
        calls.append(1)
        recorded = self._run.metrics.exists() and self._run.metrics.read_text().count("\n") > 2  # header, two epochs
        return recorded and (batches == 0 or len(calls) % 12 > batches)

    expected = assert_equal(*whole_and_stopped(name, stop_asked))
    assert {"shift": "shifts/epoch_4", "binary": "weight_sweep/epoch_4"}.get(name, "train/loss") in str(expected.keys())


@pytest.mark.parametrize("name", ["shift", "binary", "dense"])
def test_a_run_killed_after_its_last_epoch_keeps_its_curves(program, tmp_path, name):
    config = tmp_path / f"{name}.yml"
    config.write_text(yaml.safe_dump(kills.COMMON | kills.CASES[name]))
    assert program("--config", config)[0] == 0
    run = kills.finished_run(tmp_path)
    expected = kills.stored(run, tmp_path)
    for _ in range(2):
        status = json.loads((run / "status.json").read_text()) | {"status": "running"}
        (run / "status.json").write_text(json.dumps(status))
        assert program("--config", config, "--resume", "auto")[0] == 0
        assert kills.differences(run, tmp_path, expected) == []
    assert events.hparams_sessions(run / "logs") == 1


def test_an_extended_run_has_one_hparams_session_in_its_event_files(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert program("--resume", run, "--epochs", 3)[0] == 0
    points = events.shown(run / "logs")["scalars: test/loss"]
    assert [step for step, _ in points] == [1, 2, 3] and events.hparams_sessions(run / "logs") == 1


@pytest.mark.slow
def test_runs_killed_at_random_moments_store_the_same_as_uninterrupted_ones(tmp_path):
    seed = os.environ.get("FEATHERWEIGHT_SEED", "1")
    words = [sys.executable, ROOT / "tests/kills.py", "--kills", "15", "--seed", seed]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
