"""parallel_main.py under torchrun: one run of several processes, its failures and its resumption."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/quickstart.yml"
RUN = "runs/quickstart/prune-rate=0.5/quickstart"
TYPED = ["--config", CONFIG, "--precision", "fp32", "--seed", 1, "--batch-size", 120, "--device", "cpu"]
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI"))} | {"OMP_NUM_THREADS": "1"}


def command(processes, *more, program="parallel_main.py", launch=()):
    """Return the command that runs the program in `processes` processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *launch]
    return [str(word) for word in [sys.executable, *(torchrun * (processes > 1)), ROOT / program, *TYPED, *more]]


def run(folder, processes, *more, env=ENV, **options):
    words = command(processes, *more, **options)
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(folder / RUN / "checkpoints/last.pt", weights_only=True)["model"]


def equal(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_many_processes_make_one_run(tmp_path):
    done = run(tmp_path, 3, "--epochs", 2, "--grad-compression", "bf16")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(" on ")[0] for line in done.stdout.splitlines() if line.startswith("rank")) == [
        f"rank {rank} of 3" for rank in range(3)
    ]
    assert done.stdout.count("epoch 1/2") == done.stdout.count("test accuracy") == 1
    assert len(rows(tmp_path / "runs/results.csv")) == 1 and len(rows(tmp_path / RUN / "metrics.csv")) == 2
    assert [p.name for p in (tmp_path / "runs/quickstart/prune-rate=0.5").iterdir()] == ["quickstart"]


@pytest.mark.parametrize(
    ("before", "after", "exact"),
    [
        (2, 2, True),
        (2, 1, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, 3, True), (1, 3, False))),
    ],
)
def test_a_killed_run_resumes_with_the_same_or_another_number_of_processes(tmp_path, before, after, exact):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert run(whole, before, "--epochs", 4).returncode == 0
    with subprocess.Popen(
        command(before, "--epochs", 4, "--save-minutes", 1e-6), cwd=parts, env=ENV, stdout=subprocess.DEVNULL
    ) as process:
        last = parts / RUN / "checkpoints/last.pt"  # saved at every check, also within the epoch
        wait_until(lambda: last.exists() and torch.load(last, weights_only=True)["step"] == 10)
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
    stored = torch.load(last, weights_only=True)
    done = run(parts, after, "--epochs", 4, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert f"{stored['epoch']} epochs" in done.stdout and len(rows(parts / "runs/results.csv")) == 1
    if exact:
        assert equal(weights(whole), weights(parts))
    else:
        losses = [[float(row["train/loss"]) for row in rows(folder / RUN / "metrics.csv")] for folder in (whole, parts)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def children(pid):
    """Return the ids of the parallel_main processes that `pid` has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "parallel_main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_restarted_run_repeats_only_the_steps_after_the_last_checkpoint(tmp_path):
    words = command(2, "--epochs", 6, launch=("--max-restarts=3",))
    with subprocess.Popen(words, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: (tmp_path / RUN / "metrics.csv").exists() and rows(tmp_path / RUN / "metrics.csv"))
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert b"resuming from" in out
    assert len(rows(tmp_path / "runs/results.csv")) == 1
    assert [int(float(row["epoch"])) for row in rows(tmp_path / RUN / "metrics.csv")] == [1, 2, 3, 4, 5, 6]


def test_without_restarts_a_killed_rank_ends_the_run_soon(tmp_path):
    with subprocess.Popen(command(2, "--epochs", 500), cwd=tmp_path, env=ENV, stderr=subprocess.PIPE) as process:
        wait_until(lambda: (tmp_path / RUN / "metrics.csv").exists() and rows(tmp_path / RUN / "metrics.csv"))
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode != 0 and not (tmp_path / "runs/results.csv").exists()
    assert b'parallel_main.py", line' not in err  # no traceback of this program


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--batch-size", 100), ["batch_size: 100 given", "3 processes", "use 99 or 102"]),
        (("--lr", "fast"), ["lr", "fast"]),
        (("--data", "nowhere", "--set", "MNIST", "--width-mult", 1), ["MNIST", "nowhere"]),
        (("--resume", "nowhere"), ["resume: nowhere"]),
    ],
)
def test_bad_input_is_reported_once(tmp_path, more, parts):
    done = run(tmp_path, 3, *more)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(part in errors[0] for part in parts), done.stderr
    assert "warning" not in done.stderr
    assert done.returncode != 0 and not (tmp_path / "runs").exists()


def test_missing_ranks_are_named_after_the_timeout(tmp_path):
    began = time.monotonic()
    env = ENV | {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613"}
    done = run(tmp_path, 1, "--init-timeout", 2, env=env)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "within 2 s" in done.stderr and "rank 0 of 3 on " in done.stdout
    assert time.monotonic() - began < 60


def two_launchers(folder, *more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    launch += ["--rdzv-id=two", "--max-restarts=3", "--monitor-interval=0.1", str(ROOT / "parallel_main.py")]
    words = [sys.executable, "-m", "torch.distributed.run", *launch, *map(str, TYPED), *map(str, more)]
    return [subprocess.Popen(words, cwd=folder, env=ENV, stdout=subprocess.PIPE, text=True) for _ in range(2)]


def test_two_launchers_train_one_run_as_on_two_machines(tmp_path):
    started = two_launchers(tmp_path, "--epochs", 1)
    output = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum(text.count("test accuracy") for text in output) == 1 and "rank 1 of 2" in "".join(output)
    assert len(rows(tmp_path / "runs/results.csv")) == 1


@pytest.mark.slow
def test_two_launchers_resume_after_a_worker_of_one_is_killed(tmp_path):
    started = two_launchers(tmp_path, "--epochs", 6)
    wait_until(lambda: (tmp_path / RUN / "metrics.csv").exists() and rows(tmp_path / RUN / "metrics.csv"))
    os.kill(children(started[1].pid)[-1], signal.SIGKILL)
    output = "".join(process.communicate(timeout=100)[0] for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert "resuming from" in output and len(rows(tmp_path / "runs/results.csv")) == 1
    assert [int(float(row["epoch"])) for row in rows(tmp_path / RUN / "metrics.csv")] == [1, 2, 3, 4, 5, 6]


def test_the_scope_of_batch_norm_statistics_and_options_without_effect_are_reported(tmp_path):
    words = ("--arch", "cResNet20", "--epochs", 1, "--dry-run", 1)
    line = "batch norm: each process uses the statistics of its slice"
    for more, times in (((), 1), (("--sync-bn",), 0)):
        done = run(tmp_path, 2, *words, *more)
        assert (done.returncode, done.stdout.count(line)) == (0, times), done.stderr
    assert "× 2 processes" in done.stdout
    alone = run(tmp_path, 1, *words, "--sync-bn", "--grad-compression", "bf16")
    assert alone.returncode == 0 and line not in alone.stdout
    assert "sync_bn has no effect on one process" in alone.stderr
    assert "grad_compression has no effect on one process" in alone.stderr


def test_an_error_of_one_rank_is_reported_with_the_rank_and_ends_all(tmp_path):
    """The traceback of a fault of the program names the rank, and the other ranks print nothing."""
    broken = "import os, trainers.loop as loop\ntrue = loop.add_batch\n"
    broken += "def add(*given):\n    true(*given)\n    assert os.environ['RANK'] != '1', 'broken'\n"
    broken += "loop.add_batch = add\nimport sys, parallel_main\nsys.exit(parallel_main.main(sys.argv[1:]))\n"
    (tmp_path / "broken.py").write_text(broken)
    began = time.monotonic()
    done = run(tmp_path, 3, "--epochs", 500, program=tmp_path / "broken.py", env=ENV | {"PYTHONPATH": str(ROOT)})
    assert done.returncode != 0 and time.monotonic() - began < 60  # 30 of the end, the others of the start
    assert done.stderr.count("AssertionError: broken") == 1 and "rank 1 of 3 on " in done.stderr
    assert json.loads((tmp_path / RUN / "status.json").read_text())["status"] in ("failed", "running")


def test_on_one_process_parallel_main_equals_main(tmp_path):
    for folder, program in (("a", "main.py"), ("b", "parallel_main.py")):
        (tmp_path / folder).mkdir()
        done = run(tmp_path / folder, 1, "--epochs", 1, program=program)
        assert (done.returncode, done.stderr) == (0, "")
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_command_of_the_page_runs(tmp_path):
    (line,) = re.findall(r"^torchrun (.*)$", (ROOT / "docs/gpus.md").read_text(), flags=re.M)
    words = line.replace("parallel_main.py", str(ROOT / "parallel_main.py")).replace("configs/", f"{ROOT}/configs/")
    whole = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words.split(), "--epochs", "1"]
    done = subprocess.run(whole, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and "rank 1 of 2" in done.stdout and done.stdout.count("test accuracy") == 1


def test_only_gradients_of_scores_are_sent(tmp_path):
    """A step of a ticket passes four bytes per score to all-reduce, two with bf16 compression."""
    program = tmp_path / "bytes.py"
    program.write_text(BYTES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(
        launch, env=ENV | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    scores, weights, sent, halved = map(int, done.stdout.split("sent ")[1].split()[:4])
    assert 0 < scores == weights and sent == 4 * scores and halved == 2 * scores


BYTES = """
import gc
import os
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from models import build
from models.constraints import constrain
from trainers.optimizers import freeze_weights
from trainers.ddp import Replicas
from utils.distributed import launcher_env, rendezvous, runtime

process = launcher_env.detect_process(os.environ)
here = runtime.choose("cpu", "fp32", None, deterministic=False, process=process)
true, seen = dist.all_reduce, []


def counted(tensor, *more, **options):
    seen.append(tensor.nbytes)
    return true(tensor, *more, **options)


def bytes_of(network):
    seen.clear()
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    return sum(seen)


with rendezvous.process_group(here, 60):
    net = constrain(build("Conv2", num_classes=10, in_shape=(1, 8, 8)), "SubnetConv", density=0.5)
    freeze_weights(net)
    dist.all_reduce = counted
    plain = Replicas(here).wrap(net)
    plain.register_comm_hook(None, default_hooks.allreduce_hook)  # what DDP does, in Python
    sent = bytes_of(plain)
    del plain
    halved = bytes_of(Replicas(here, compression="bf16").wrap(net))
    scores = sum(p.numel() for n, p in net.named_parameters() if n.endswith("scores"))
    weights = sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight"))
    gc.collect()  # a DDP network with a hook, left to the end of the interpreter, aborts one process in ten
    if process.rank == 0:
        print("sent", scores, weights, sent, halved)
"""


SPAWN = """
import sys
from utils import exit_codes
from utils.distributed import spawn
sys.exit(exit_codes.run_program(lambda: spawn.run_processes(sys.argv[1:], 2)))
"""


def test_multigpu_starts_one_process_per_gpu_and_returns_their_exit_code(tmp_path):
    for more, code, says in (
        (("--epochs", "1"), 0, "test accuracy"),
        (("--batch-size", "5"), 2, "batch_size: 5 given"),
    ):
        words = [sys.executable, "-c", SPAWN, *map(str, TYPED), *more]
        done = subprocess.run(
            words, cwd=tmp_path, env=ENV | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == code and (done.stdout + done.stderr).count(says) == 1
        assert "Traceback" not in done.stderr


def test_multigpu_saves_and_stops_when_its_launcher_gets_sigusr2(tmp_path):
    words = [sys.executable, "-c", SPAWN, *map(str, TYPED), "--epochs", "500"]
    with subprocess.Popen(words, cwd=tmp_path, env=ENV | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as process:
        wait_until(lambda: (tmp_path / RUN / "metrics.csv").exists() and rows(tmp_path / RUN / "metrics.csv"))
        os.kill(process.pid, signal.SIGUSR2)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and b"stopped by SIGUSR2 and saved" in err
    assert json.loads((tmp_path / RUN / "status.json").read_text())["status"] == "stopped"
