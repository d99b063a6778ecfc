"""Sweeps of real runs: each cell runs once, stopped and killed cells resume, failed cells are reported."""

import csv
import functools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts import sweep

ROOT = Path(__file__).parents[2]
DENSE = {"conv_type": None, "prune_rate": None, "freeze_weights": None}


@pytest.fixture
def start(tmp_path):
    """Return a function that starts scripts/sweep.py in an empty folder. Leftover processes are killed at the end."""
    started = []

    def begin(*argv):
        command = [sys.executable, ROOT / "scripts/sweep.py", *map(str, argv)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # nohup may make the tests ignore this signal
        reset_sighup = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
        started.append(subprocess.Popen(command, cwd=tmp_path, process_group=0, preexec_fn=reset_sighup, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


def rows(tmp_path):
    with (tmp_path / "runs/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def statuses(tmp_path):
    return [json.loads(path.read_text())["status"] for path in sorted((tmp_path / "runs").rglob("status.json"))]


def test_each_cell_runs_once_and_a_second_sweep_only_prints_the_table(start, config, tmp_path):
    argv = ("--config", config(epochs=1), "--prune-rate", 0.8, 0.3, "--seed", 1, 2, "--jobs", 2)
    code, out, err = ended(start(*argv))
    assert (code, err) == (0, "")
    made = rows(tmp_path)
    assert {(r["Prune Rate"], r["Seed"]) for r in made} == {("0.8", "1"), ("0.8", "2"), ("0.3", "1"), ("0.3", "2")}
    for rate, kept in (("0.8", "80 %"), ("0.3", "30 %")):
        values = [float(r["Last Epoch Test Top 1"]) for r in made if r["Prune Rate"] == rate]
        assert f"| {kept} | {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (2) |" in out
    assert "cells: 4, finished: 0, to run: 4" in out and "picked on: test" in out
    assert all(f"seed={r['Seed']}: {float(r['Last Epoch Test Top 1']):.2f} % in" in out for r in made)
    code, again, err = ended(start(*argv))
    assert (code, err) == (0, "") and rows(tmp_path) == made and "started" not in again
    assert again == "cells: 4, finished: 4, to run: 0\n" + out[out.index("\n| kept") :]
    code, shown, _ = ended(start(*argv, "--table", "--seed", 2, 3))
    assert code == 0 and shown.count("(1) |") == 2 and "± " not in shown.split("\n\n")[0]


def test_a_failed_cell_is_listed_with_its_last_line_and_the_others_run(start, config, tmp_path):
    code, out, err = ended(start("--config", config(epochs=1, **DENSE), "--lr", "1e6", "0.1", "--print-freq", 1))
    assert code == 1 and len(rows(tmp_path)) == 1 and statuses(tmp_path) == ["done", "failed"]
    assert err.startswith("warning: failed: ticket lr=1e6: failed: diverged: ") and err.count("\n") == 1
    table = {line.split("|")[2].strip(): line.split("|")[3].strip() for line in out.splitlines() if line[:3] == "| 1"}
    assert table["1e6"] == "-" and table["0.1"].endswith(" (1)")


def test_ctrl_c_saves_the_running_cells_and_the_same_command_resumes_them(start, config, tmp_path):
    argv = ("--config", config(epochs=40), "--seed", 1, 2, 3, "--jobs", 2)
    process = start(*argv)
    wait_for(lambda: len(list((tmp_path / "runs").rglob("initial.pt"))) == 2, process)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches the whole process group
    code, out, err = ended(process)
    assert (code, err) == (75, "") and "stopped by SIGINT, cells left: 3" in out
    assert statuses(tmp_path) == ["stopped", "stopped"] and not (tmp_path / "runs/results.csv").exists()
    code, out, err = ended(start(*argv, "--jobs", 1))
    assert (code, err) == (0, "") and statuses(tmp_path) == ["done"] * 3 and "(3) |" in out
    logs = [path.read_text() for path in sorted((tmp_path / "runs/sweep-logs").iterdir())]
    assert ["resuming from" in log for log in logs] == [True, True, False]


def test_a_killed_cell_is_resumed_and_a_closed_terminal_saves_a_running_one(start, config, tmp_path):
    argv = ("--config", config(epochs=40), "--seed", 1)
    _, command, _ = ended(start(*argv, "--dry-run"))
    process = subprocess.Popen(shlex.split(command), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: list(tmp_path.rglob("last.pt")), process)
    process.kill()
    process.communicate()
    process = start(*argv)
    logs = tmp_path / "runs/sweep-logs"
    wait_for(lambda: any("\nepoch " in log.read_text() for log in logs.glob("*.log")), process)
    os.killpg(process.pid, signal.SIGHUP)
    code, out, err = ended(process)
    assert (code, err) == (75, "") and "stopped by SIGHUP, cells left: 1" in out and statuses(tmp_path) == ["stopped"]
    code, _, err = ended(start(*argv))
    assert (code, err) == (0, "") and statuses(tmp_path) == ["done"] and len(rows(tmp_path)) == 1
    (log,) = logs.iterdir()
    assert log.read_text().count("resuming from") == 2


def test_two_concurrent_sweeps_share_the_cells(start, config, tmp_path):
    argv = ("--config", config(epochs=1), "--seed", 1, 2)
    together = [ended(process) for process in (start(*argv), start(*argv))]
    assert {code for code, *_ in together} <= {0, 75} and not any(err for *_, err in together)
    assert sorted(r["Seed"] for r in rows(tmp_path)) == ["1", "2"] and statuses(tmp_path) == ["done", "done"]
    code, out, _ = ended(start(*argv))
    assert code == 0 and "finished: 2, to run: 0" in out and "(2) |" in out


def test_an_unfinished_run_of_another_length_is_not_resumed(program, config, tmp_path, monkeypatch):
    path = config(epochs=3)
    with monkeypatch.context() as patched:
        patched.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: True)
        assert program("--config", path, "--resume", "auto")[0] == 75
    for epochs in (1, 4):
        code, out, _ = program("--config", path, "--epochs", epochs, "--resume", "auto")
        assert code == 0 and f": epochs: 3 in the run, {epochs} now" in out and "a new run starts" in out
    assert statuses(tmp_path) == ["done", "done", "stopped"]


def test_the_published_sweep_is_one_command_from_any_folder(tmp_path):
    def commands(*argv, **variables):
        script = ["bash", ROOT / "scripts/mpt_cifar_script.sh", "--dry-run", *argv]
        env = os.environ | {"PYTHON": sys.executable} | variables
        done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        return [shlex.split(line) for line in done.stdout.splitlines()]

    assert len(commands()) == 4 * 2 * 6 * 3
    chosen = commands("--epochs", "1", "--prune-rate", "0.5", SEEDS="7", DATA="/d a", LOG="out", JOBS="2", EPOCHS="9")
    assert len(chosen) == 4 * 2
    told = " ".join(chosen[-1])
    for part in ("conv8_BinAct_kn_unsigned.yml", "--seed 7", "--data /d a", "--log-dir out", "--epochs 1"):
        assert part in told
    assert "--results out/results.csv" in told and "main.py" in chosen[0]
    assert len(sweep.checked(chosen[0][2:-2])[1]) == 1


def test_bad_input_that_only_a_cell_detects_stops_the_sweep(start, config, tmp_path):
    code, out, _ = ended(start("--config", config(set="MNIST"), "--data", "nowhere", "--seed", 1, 2, 3))
    assert code == 1 and "2 cells are not started" in out and "MNIST was not found" in out
    assert out.count(": started") == 1 and not (tmp_path / "runs/results.csv").exists()
