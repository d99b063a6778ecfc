"""What an interrupted run stores, event files included, is what an unbroken one stores, for every trainer."""

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
    """Runs a case of tests/kills.py unbroken, and once more, stopped where `stop_asked` first says so; returns both
    folders."""

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
    expected = kills.stored(kills.the_run(whole), whole)
    assert kills.differences(kills.the_run(stopped), stopped, expected) == []
    return expected


@pytest.mark.parametrize("name", kills.CASES)
@pytest.mark.parametrize("batches", [0, 5])
def test_a_stopped_run_stores_what_an_unbroken_one_stores(whole_and_stopped, name, batches):
    """Between two epochs, and within one."""
    calls = []

    def stop_asked(self):
        calls.append(1)
        return len(self._metrics._rows) >= 2 and (batches == 0 or len(calls) % 12 > batches)

    expected = assert_equal(*whole_and_stopped(name, stop_asked))
    assert {"shift": "shifts/epoch_4", "binary": "weight_sweep/epoch_4"}.get(name, "train/loss") in str(expected.keys())


@pytest.mark.parametrize("name", ["shift", "binary", "dense"])
def test_a_run_killed_between_its_last_epoch_and_its_end_keeps_its_curves(program, tmp_path, name):
    config = tmp_path / f"{name}.yml"
    config.write_text(yaml.safe_dump(kills.COMMON | kills.CASES[name]))
    assert program("--config", config)[0] == 0
    run = kills.the_run(tmp_path)
    expected = kills.stored(run, tmp_path)
    for _ in range(2):
        status = json.loads((run / "status.json").read_text()) | {"status": "running"}
        (run / "status.json").write_text(json.dumps(status))
        assert program("--config", config, "--resume", "auto")[0] == 0
        assert kills.differences(run, tmp_path, expected) == []
    assert events.hparams_sessions(run / "logs") == 1


def test_a_run_made_longer_ends_its_event_files_once(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert program("--resume", run, "--epochs", 3)[0] == 0
    points = events.shown(run / "logs")["scalars: test/loss"]
    assert [step for step, _ in points] == [1, 2, 3] and events.hparams_sessions(run / "logs") == 1


@pytest.mark.slow
def test_killed_at_random_moments_runs_store_what_unbroken_ones_store(tmp_path):
    seed = os.environ.get("FEATHERWEIGHT_SEED", "1")
    words = [sys.executable, ROOT / "tests/kills.py", "--kills", "15", "--seed", seed]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
