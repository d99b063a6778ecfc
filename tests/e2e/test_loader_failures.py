"""Runs whose workers lack resources or hang end with one line, an exit code, a status and no leftover process."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.folders import write_set

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds after which a test fails instead of hanging the suite
NAMESPACE = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.fixture
def command(tmp_path, config):
    """Return the command of a run on 24 training and 12 test images in a folder, with 2 workers and batches of 12."""
    root = write_set(tmp_path / "set", train=8, val=4)
    path = config(
        arch="MLP", hidden=[4], conv_type="DenseConv", freeze_weights=False, prune_rate=None, lr=0.001,
        set="ImageFolder", data=str(root), image_size=224, batch_size=12, workers=2,
        log_dir=str(tmp_path / "runs"), results=str(tmp_path / "runs/results.csv"),
    )  # fmt: skip
    return [sys.executable, "main.py", "--config", path, "--name", "it"]


def run(words, **more):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, **more)


def status(tmp_path):
    return json.loads((tmp_path / "runs/ticket/it/status.json").read_text())


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def may_mount():
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=LIMIT, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_dev_shm_ends_the_run_with_one_line(tmp_path, command):
    if not may_mount():
        pytest.skip("mounting is not permitted; tests/unit/test_workers.py tests this without a mount")
    done = run([*NAMESPACE, *command])
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("failed: loader processes need ") and "No space left on device" in done.stderr
    assert "/dev/shm" in done.stderr and "--workers 0" in done.stderr
    assert status(tmp_path)["status"] == "failed" and "/dev/shm" in status(tmp_path)["reason"]
    alone = run([*NAMESPACE, *command, "--workers", "0"])
    assert (alone.returncode, alone.stderr) == (0, "")


def test_too_few_file_descriptors_end_the_run_with_one_line(tmp_path, command):
    few = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))}
    done = run([*command, "--workers", "8", "--batch-size", "1"], **few)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "loader processes were started: Too many open files" in done.stderr and "--workers 0" in done.stderr
    assert status(tmp_path)["status"] == "failed" and "Too many open files" in status(tmp_path)["reason"]
    assert "epoch 1/" not in done.stdout  # the workers of the test set start before training too


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGUSR2", "SIGINT"))])
def test_a_signal_stops_a_run_whose_workers_hang(tmp_path, command, name):
    words = [*command, "--epochs", "1000", "--batch-size", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **pipes)
    try:
        while not program.stdout.readline().startswith("epoch 1/"):
            assert program.poll() is None, program.stderr.read()
        workers = children_of(program.pid)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        program.send_signal(getattr(signal, name))
        _, err = program.communicate(timeout=LIMIT)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    assert (program.returncode, err.count("\n")) == (75, 1) and name in err and "--resume" in err
    assert len(workers) == 4 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert status(tmp_path)["status"] == "stopped"
