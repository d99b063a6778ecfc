"""The lock of a run names its owner, needs no clock, and is free once its process is killed."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import sweep
from utils.errors import RunInUse
from utils.files import try_lock
from utils.records import run as runs
from utils.records.run import Run

ROOT = Path(__file__).parents[2]
BASE = "runs/ticket/prune-rate=0.5/ticket"


def start(folder, *argv):
    words = [sys.executable, ROOT / "main.py", *map(str, argv)]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def running_process(config, tmp_path):
    """A process on this machine that trains a long run."""
    process = start(tmp_path, "--config", config(epochs=5000))
    end = time.monotonic() + 60
    while not (tmp_path / BASE / "checkpoints/last.pt").exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def test_a_running_run_cannot_be_started_again_and_a_killed_run_can_be_resumed_immediately(
    running_process, program, config, tmp_path
):
    path = config(epochs=5000)
    code, out, err = program("--config", path, "--resume", "auto")
    who = f"another process (pid {running_process.pid} on '{platform.node()}')"
    assert (code, out, err) == (69, "", f"{BASE} is being trained by {who}; nothing was started\n")
    code, _, err = program("--resume", BASE)
    assert code == 2 and err.endswith(f"is in use by {who}\n")
    assert [path.name for path in (tmp_path / BASE).iterdir() if path.name.isdigit()] == []
    running_process.kill()
    running_process.wait()
    go_on = start(tmp_path, "--config", path, "--resume", "auto")
    assert "resuming from" in go_on.stdout.readline()
    go_on.kill()
    go_on.communicate()


def test_a_sweep_skips_a_cell_that_another_process_trains(running_process, config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (15, 10, 2, 1, 12)}
    try:
        code = sweep.main(["--config", config(epochs=5000)])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    output = capsys.readouterr()
    assert code == 75 and "ticket: skipped, another process is training it\n" in output.out and not output.err
    assert "cells left: 1; run the same command to continue" in output.out and "failed" not in output.out


def test_one_of_several_processes_that_start_the_same_run_trains_it(config, tmp_path):
    path = config(epochs=50_000, seed=None)
    processes = [start(tmp_path, "--config", path, "--resume", "auto") for _ in range(3)]
    end = time.monotonic() + 240
    while len(left := [process for process in processes if process.poll() is not None]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    for process in {*processes} - {*left}:
        process.kill()
    output = {process.pid: (process.communicate()[1], process.returncode) for process in processes}
    assert {code for _, code in output.values()} == {69, -signal.SIGKILL}, output
    assert [path.parent.name for path in (tmp_path / "runs").rglob("config.yaml")] == ["ticket"]
    assert all(output[process.pid][0].startswith(f"{BASE} is being trained by") for process in left)


def test_a_directory_abandoned_before_config_yaml_is_reused(program, config, tmp_path):
    run = tmp_path / BASE
    (run / "logs").mkdir(parents=True)
    (run / ".lock").write_text("")
    (run / ".config.yaml.7.tmp").write_text("half")
    assert program("--config", config(epochs=1))[0] == 0
    assert (run / "config.yaml").exists() and not list(run.glob(".*.tmp"))
    (tmp_path / "runs/ticket/prune-rate=0.5/mine").mkdir()
    (tmp_path / "runs/ticket/prune-rate=0.5/mine/notes.txt").write_text("of the user")
    assert program("--config", config(epochs=1), "--name", "mine")[0] == 0
    assert (tmp_path / "runs/ticket/prune-rate=0.5/mine/0/config.yaml").exists()


def test_a_run_taken_over_by_another_process_ends_with_an_error(program, config, tmp_path, monkeypatch):
    """On a network file system without shared locks a second process gets the lock too. The first one then ends."""
    run = tmp_path / BASE
    theirs = json.dumps({"host": "elsewhere", "pid": 7, "process": "0"})
    epochs = []

    def metrics(self, model):
        epochs.append(1)
        if len(epochs) == 2:
            (run / ".lock").write_text(theirs)
            (run / "status.json").write_text('{"status": "running", "epoch": 1, "epochs": 4}')
        return {}

    monkeypatch.setattr("trainers.methods.prune_score.PruneScore.metrics", metrics)
    code, _, err = program("--config", config(epochs=4))
    owner = "another process (pid 7 on 'elsewhere')"
    assert code == 1
    assert err == f"failed: {BASE} is now trained by {owner}; its file system shares no locks: start runs once\n"
    assert json.loads((run / "status.json").read_text())["status"] == "running" and len(epochs) == 2
    monkeypatch.undo()
    assert program_in(tmp_path, "--config", config(epochs=4), "--resume", "auto") == 0


def program_in(folder, *argv):
    process = start(folder, *argv)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize("text", ["", "text", "[1]", "null", '{"pid": 1}', '{"pid": "x", "host": 1}', "[" * 100_000])
def test_a_damaged_lock_file_names_no_owner(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    assert Run(tmp_path).lock_owner() == "another process"


def test_help_and_the_page_of_runs_list_exit_code_69():
    help_text = subprocess.run([sys.executable, ROOT / "main.py", "--help"], capture_output=True, text=True).stdout
    assert re.search(r"^ +69 +another process is training this run", help_text, re.M)
    assert re.search(r"^\| 69 \|", (ROOT / "docs/runs.md").read_text(), re.M)


def test_a_lock_of_another_machine_is_reported_with_its_host(tmp_path, config):
    import args

    options = args.parse(["--config", config(), "--log-dir", str(tmp_path / "runs"), "--resume", "auto"])
    home = runs.base_directory(options)
    run = runs.create(options)
    run.describe(options, {})
    held = os.open(home / ".lock", os.O_RDWR)
    (home / ".lock").write_text(json.dumps({"host": "node7", "pid": 99, "process": "0"}))
    trained_elsewhere = r"is being trained by another process \(pid 99 on 'node7'\); nothing was started"
    with pytest.raises(RunInUse, match=trained_elsewhere):
        runs.lock_unfinished(options, lambda path: True)
    os.close(held)
    assert try_lock(home / ".lock") is None
