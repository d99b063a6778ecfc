"""Runs that are stopped or killed resume bit-exactly, in the same directory, with one results row."""

import csv
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.records import checkpoints

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FEATHERWEIGHT_KILLS", "3"))


def start(cwd, *argv, **popen):
    return subprocess.Popen(
        [sys.executable, ROOT / "main.py", *map(str, argv)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def model_of(run):
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]


def assert_same(run, other):
    first, second = model_of(run), model_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def losses(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [(row["epoch"], row["train/loss"], row["test/loss"]) for row in csv.DictReader(file)]


def row_count(path):
    with path.open(newline="") as file:
        return len(list(csv.DictReader(file)))


@pytest.fixture
def whole(program, config, tmp_path):
    """Return (directory, config) of an uninterrupted run of six epochs."""
    path = config(epochs=6, arch="Conv2", batch_size=128)
    code, *_ = program("--config", path, "--log-dir", "whole", "--results", "whole.csv")
    assert code == 0
    return tmp_path / "whole/ticket/prune-rate=0.5/ticket", path


def test_a_run_killed_at_random_moments_ends_with_equal_weights_and_one_row(whole, tmp_path):
    expected, path = whole
    moments = random.Random(int(os.environ.get("FEATHERWEIGHT_SEED", "1")))
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    for _ in range(KILLS):
        process = start(tmp_path, "--config", path, "--resume", "auto")
        wait_for(lambda p=process: (run / "checkpoints/initial.pt").exists() or p.poll() is not None)
        time.sleep(moments.uniform(0, 2.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        status = run / "status.json"
        # --resume auto would start a new run
        if status.exists() and json.loads(status.read_text())["status"] == "done":
            break
    else:
        code = start(tmp_path, "--config", path, "--resume", "auto")
        _, err = code.communicate()
        assert code.returncode == 0, err
    assert_same(run, expected)
    assert losses(run) == losses(expected)
    assert [p.name for p in run.parent.iterdir()] == ["ticket"]
    assert not list(run.glob("*/[0-9]*")) and row_count(tmp_path / "runs/results.csv") == 1
    board = EventAccumulator(str(run / "logs")).Reload()
    assert [e.step for e in board.Scalars("test/loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_a_run_with_exit_code_75_and_it_resumes_bit_exactly(whole, tmp_path, number):
    expected, path = whole
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    popen = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}  # nohup may make the tests ignore SIGHUP
    process = start(tmp_path, "--config", path, **({} if number == signal.SIGINT else popen))
    wait_for(lambda: (run / "checkpoints/initial.pt").exists())
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and err.strip().endswith(f"--resume {run.relative_to(tmp_path)}"), (
        f"{process.returncode}: {err}"
    )
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "stopped"
    process = start(tmp_path, "--resume", run)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    inside = f" and {status['step']} batches" if status["step"] else ""
    assert f"{status['epoch']} epochs{inside} done" in out
    assert_same(run, expected)
    assert losses(run) == losses(expected)


def test_a_second_ctrl_c_exits_immediately(config, tmp_path):
    process = start(tmp_path, "--config", config(epochs=500, arch="Conv4", batch_size=1437))
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    wait_for(lambda: (run / "checkpoints/initial.pt").exists())
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (75, 130)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_last_checkpoint_causes_a_warning_and_an_earlier_one_is_used(
    program, whole, config, tmp_path, damage
):
    expected, path = whole
    program("--config", path, "--save-every", 2)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    last = run / "checkpoints/last.pt"
    data = bytearray(last.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    last.unlink()  # last.pt may be the same file as epoch_6.pt or best.pt
    last.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    (run / "checkpoints/epoch_6.pt").unlink()
    (run / "status.json").write_text('{"status": "running"}')
    (tmp_path / "runs/results.csv").unlink()
    code, _, err = program("--config", path, "--resume", "auto")
    assert code == 0
    assert "last.pt" in err and "is used instead" in err
    assert_same(run, expected)
    assert losses(run) == losses(expected) and row_count(tmp_path / "runs/results.csv") == 1


def contents(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != "status.json"}


def not_done(run):
    (run / "status.json").write_text((run / "status.json").read_text().replace('"done"', '"running"'))


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=["EIO", "memory"])
def test_a_checkpoint_that_the_system_cannot_read_ends_the_run_unchanged(
    program, config, tmp_path, monkeypatch, name, failure
):
    program("--config", config(), "--save-every", 1)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    not_done(run)
    before = contents(run)

    def fail(path, verify=checkpoints._check_zip):
        if path.name == name:
            raise failure
        return verify(path)

    monkeypatch.setattr(checkpoints, "_check_zip", fail)
    code, _, err = program("--resume", run, "--epochs", 3)
    assert code == 1 and f"{name} cannot be read: " in err.splitlines()[-1] and "nothing was changed" in err
    assert {path: data for path, data in contents(run).items() if path.suffix == ".pt"} == {
        path: data for path, data in before.items() if path.suffix == ".pt"
    }


def test_a_trained_run_without_checkpoints_is_not_restarted(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    before = contents(run)
    code, out, _ = program("--resume", run)
    assert code == 0 and "is finished already" in out
    not_done(run)
    code, _, err = program("--resume", run)
    assert code == 2 and err.splitlines()[-1].endswith("has no readable checkpoint; start a new run without --resume")
    assert contents(run) == before


def test_damaged_metrics_are_refused_before_anything_is_changed(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    with (run / "metrics.csv").open("a") as file:
        file.write("garbage\n")
    before = contents(run) | {run / "status.json": (run / "status.json").read_bytes()}
    code, _, err = program("--resume", run, "--epochs", 3)
    assert code == 2 and "metrics.csv is damaged" in err.splitlines()[-1]
    assert contents(run) | {run / "status.json": (run / "status.json").read_bytes()} == before


@pytest.mark.parametrize("damaged", [True, False])
def test_a_trained_run_without_best_checkpoint_reports_its_last_epoch_as_best(program, config, tmp_path, damaged):
    program("--config", config(epochs=3, lr=2.0))
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    not_done(run)
    best = run / "checkpoints/best.pt"
    best.unlink()
    if damaged:
        best.write_bytes(b"PK")
    (tmp_path / "runs/results.csv").unlink()
    code, _, err = program("--resume", run)
    assert code == 0 and "the best epoch is picked again, among " in err
    assert torch.load(best, weights_only=True)["epoch"] == 3
    with (tmp_path / "runs/results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["Best Epoch"] == "3" and row["Best Val Top 1"] == row["Current Val Top 1"]


def test_a_run_killed_before_its_first_checkpoint_restarts_in_its_directory(program, config, tmp_path):
    path = config()
    program("--config", path)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    (run / "status.json").unlink()
    first = losses(run)
    code, out, _ = program("--config", path, "--resume", "auto")
    assert code == 0 and "starts from the beginning" in out
    assert losses(run) == first


def test_resume_auto_starts_a_new_run_if_all_are_finished(program, config, tmp_path):
    path = config()
    assert program("--config", path, "--resume", "auto")[0] == 0
    code, out, _ = program("--config", path, "--resume", "auto")
    assert code == 0 and "a new run starts" in out
    assert row_count(tmp_path / "runs/results.csv") == 2


def test_resume_refuses_options_of_another_run_by_name(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    before = (run / "metrics.csv").read_bytes()
    code, _, err = program("--resume", run, "--lr", 0.2, "--seed", 5)
    assert code == 2 and "lr" in err and "0.1" in err and "0.2" in err and "seed" in err
    code, _, err = program("--resume", run, "--epochs", 1)
    assert code == 2 and "epochs: 2 in the run, 1 now" in err
    assert (run / "metrics.csv").read_bytes() == before


def test_resuming_with_more_epochs_warns_and_adds_a_second_row(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    code, out, _ = program("--resume", run)
    assert code == 0 and "is finished already" in out
    for message in ("warning: epochs: 2 in the run, 3 now", ""):
        code, _, err = program("--resume", run, "--epochs", 3)
        assert code == 0 and message in err
    assert [epoch for epoch, *_ in losses(run)] == ["1", "2", "3"]
    assert row_count(tmp_path / "runs/results.csv") == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 3


def test_an_extended_run_that_is_stopped_keeps_its_new_length(program, config, tmp_path, monkeypatch):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    with monkeypatch.context() as patched:
        patched.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: True)
        assert program("--resume", run, "--epochs", 4)[0] == 75
    code, *_ = program("--resume", run)
    assert code == 0 and [epoch for epoch, *_ in losses(run)] == ["1", "2", "3", "4"]
    assert row_count(tmp_path / "runs/results.csv") == 2


def test_resume_auto_skips_unfinished_runs_with_other_options(program, config, tmp_path, monkeypatch):
    path = config()
    with monkeypatch.context() as patched:
        patched.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: True)
        for seed in (5, 1):
            assert program("--config", path, "--seed", seed, "--resume", "auto")[0] == 75
    base = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    code, out, _ = program("--config", path, "--seed", 5, "--resume", "auto")
    assert (
        code == 0
        and f"--resume auto does not resume {(base / '0').relative_to(tmp_path)}: seed: 1 in the run, 5 now" in out
    )
    assert [json.loads((p / "status.json").read_text())["status"] for p in (base, base / "0")] == ["done", "stopped"]


def test_resume_auto_skips_an_unfinished_run_with_another_pretrained_file(program, config, tmp_path, monkeypatch):
    path = config()
    program("--config", path)
    base = tmp_path / "runs/ticket/prune-rate=0.5"
    first, last = (base / f"ticket/checkpoints/{name}.pt" for name in ("initial", "last"))
    auto = ("--config", path, "--name", "more", "--resume", "auto", "--pretrained")
    with monkeypatch.context() as patched:
        patched.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: True)
        assert program(*auto, first)[0] == 75
    code, out, _ = program(*auto, last)
    assert code == 0 and f"--resume auto does not resume runs/ticket/prune-rate=0.5/more: pretrained: '{first}'" in out
    assert [json.loads((p / "status.json").read_text())["status"] for p in (base / "more", base / "more/0")] == [
        "stopped",
        "done",
    ]


def test_a_run_killed_after_its_results_row_keeps_one_row_and_unique_curve_points(program, config, tmp_path):
    for split, options in (("test", ()), ("val", ("--val-split", 0.2))):
        path = config(name=f"{split}.yml")
        assert program("--config", path, *options)[0] == 0
        run = tmp_path / f"runs/{split}/prune-rate=0.5/{split}"
        (run / "status.json").write_text((run / "status.json").read_text().replace('"done"', '"running"'))
        assert program("--config", path, "--resume", "auto", *options)[0] == 0
        board = EventAccumulator(str(run / "logs")).Reload()
        for tag in board.Tags()["scalars"]:
            steps = [event.step for event in board.Scalars(tag)]
            assert steps == sorted(set(steps)), tag
    assert row_count(tmp_path / "runs/results.csv") == 2


def test_resuming_from_an_older_checkpoint_picks_the_best_epoch_again(program, config, tmp_path):
    path = config(epochs=4)
    program("--config", path, "--save-every", 1)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    expected = losses(run)
    code, *_ = program("--resume", run / "checkpoints/epoch_1.pt", "--epochs", 5)
    assert code == 0
    best = torch.load(run / "checkpoints/best.pt", weights_only=True)
    assert best["state"]["best"]["epoch"] == best["epoch"]
    assert losses(run)[0] == expected[0] and len(losses(run)) == 5


def test_a_run_without_checkpoints_restarts_from_its_pretrained_file(program, config, tmp_path):
    program("--config", config())
    best = tmp_path / "runs/ticket/prune-rate=0.5/ticket/checkpoints/best.pt"
    program("--config", config(), "--name", "more", "--pretrained", best)
    run = tmp_path / "runs/ticket/prune-rate=0.5/more"
    expected = losses(run)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    (run / "status.json").write_text('{"status": "running"}')
    assert program("--resume", run)[0] == 0
    assert losses(run) == expected


def test_a_run_directory_in_use_is_not_touched(program, config, tmp_path):
    from utils.files import try_lock

    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    (run / "status.json").write_text('{"status": "running"}')
    held = try_lock(run / ".lock")
    code, _, err = program("--resume", run)
    assert code == 2 and "is in use by another process" in err
    code, out, err = program("--config", config(), "--resume", "auto")
    assert code == 69 and err.startswith(f"{run.relative_to(tmp_path)} is being trained by another process")
    assert err.count("\n") == 1 and not (run / "0").exists() and "a new run starts" not in out
    assert program("--config", config(), "--seed", 5, "--resume", "auto")[0] == 0  # another run
    held.close()
    assert program("--config", config(), "--resume", "auto")[0] == 0
    assert json.loads((run / "status.json").read_text())["status"] == "done"


def test_a_full_disk_fails_in_one_line_and_keeps_the_last_checkpoint(config, tmp_path):
    path = config(epochs=3)
    limit = 200_000  # limit of the file size in bytes: a checkpoint of this network is larger

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(tmp_path, "--config", path, preexec_fn=small_disk)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("failed: cannot write") and err.count("\n") == 1
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    assert not list((run / "checkpoints").iterdir())


def test_concurrently_started_runs_get_separate_directories_and_rows(config, tmp_path):
    count = int(os.environ.get("FEATHERWEIGHT_RUNS", "4"))
    path = config(epochs=1)
    processes = [start(tmp_path, "--config", path) for _ in range(count)]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    with (tmp_path / "runs/results.csv").open(newline="") as file:
        directories = {row["Run Directory"] for row in csv.DictReader(file)}
    base = "runs/ticket/prune-rate=0.5/ticket"
    assert directories == {base, *(f"{base}/{i}" for i in range(count - 1))}
