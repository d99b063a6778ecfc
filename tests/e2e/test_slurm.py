"""The job scripts on a Slurm cluster of two nodes: runs on both, requeued runs, and sweeps as job arrays."""

import csv
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NONE = 'SLURM_CONF is not set, so there is no cluster for tests; eval "$(../shared/slurm/up)" starts one'
pytestmark = [pytest.mark.slurm, pytest.mark.skipif("SLURM_CONF" not in os.environ, reason=NONE)]
TRAIN, SWEEP = "scripts/slurm/train.sbatch", "scripts/slurm/sweep.sbatch"
DENSE = {"conv_type": None, "prune_rate": None, "freeze_weights": None}
LONG = {"arch": "Conv2", "epochs": 20}


def slurm(*command, cwd=None):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr


def jobs(job):
    """Return Slurm's record of the job, or of each task of a job array."""
    lines = slurm("scontrol", "show", "--oneliner", "job", job).splitlines()
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line]


def states(job):
    return sorted(known["JobState"] for known in jobs(job))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition not met:\n" + slurm("squeue", "--states=all")
        time.sleep(0.2)


def ended(job):
    """Wait for the last task, and return the sorted states of all tasks."""
    wait_for(lambda: not {*states(job)} & {"PENDING", "RUNNING", "COMPLETING"})
    return states(job)


@pytest.fixture
def submit(tmp_path):
    """Return a function that runs sbatch in a copy of the project with its own runs. Jobs left over are cancelled."""
    for name in (".venv", "main.py", "parallel_main.py", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    submitted = []

    def sbatch(*words):
        submitted.append(slurm("sbatch", "--parsable", *words, cwd=tmp_path).strip())
        return submitted[-1]

    yield sbatch
    for job in submitted:
        slurm("scancel", job)
        wait_for(lambda job=job: not {*states(job)} & {"RUNNING", "COMPLETING"})


def log(tmp_path, job):
    return "".join(path.read_text() for path in sorted((tmp_path / "runs").glob(f"slurm-*-{job}.out")))


def rows(tmp_path):
    with (tmp_path / "runs/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in ("train/loss", "test/loss")]


def statuses(tmp_path):
    return [json.loads(path.read_text())["status"] for path in (tmp_path / "runs").rglob("status.json")]


def epochs(tmp_path):
    """Return the number of epochs trained, over all runs."""
    return sum(len(path.read_text().splitlines()) - 1 for path in (tmp_path / "runs").rglob("metrics.csv"))


def restart_now(job, tmp_path):
    """Start a requeued job, which Slurm would delay by two minutes. A start within the second in which the job ended
    would confuse the two."""
    wait_for(lambda: not {*states(job)} & {"RUNNING", "COMPLETING"})
    assert states(job) == ["PENDING"], log(tmp_path, job)
    time.sleep(2)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_job_on_two_nodes_equals_one_process(submit, program, config, tmp_path):
    path = config(arch="Conv2", lr=0.01, batch_size=120, **DENSE)
    job = submit("--nodes=2", "--ntasks-per-node=1", TRAIN, "--config", path)
    assert ended(job) == ["COMPLETED"] and jobs(job)[0]["NodeList"] == "n[1-2]", log(tmp_path, job)
    assert all(f"rank {rank} of 2" in log(tmp_path, job) for rank in (0, 1)) and len(rows(tmp_path)) == 1
    assert program("--config", path, "--log-dir", "alone", "--results", "alone.csv")[0] == 0
    together, alone = tmp_path / "runs/ticket/ticket", tmp_path / "alone/ticket/ticket"
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    found, expected = (torch.load(r / "checkpoints/last.pt", weights_only=True)["model"] for r in (together, alone))
    assert found.keys() == expected.keys()
    for key, weights in expected.items():
        assert (found[key] - weights).abs().max() <= 1e-5 * weights.abs().max(), key


def test_a_signalled_job_saves_requeues_itself_and_ends_with_one_row(submit, config, tmp_path):
    job = submit("--nodes=2", "--ntasks-per-node=1", TRAIN, "--config", config(**LONG))
    wait_for(lambda: epochs(tmp_path) >= 2)
    slurm("scancel", "--batch", "--signal=USR2", job)  # as --signal=B:USR2@120 does two minutes before the time limit
    restart_now(job, tmp_path)
    assert statuses(tmp_path) == ["stopped"] and epochs(tmp_path) < LONG["epochs"]
    assert ended(job) == ["COMPLETED"], log(tmp_path, job)
    said = log(tmp_path, job)
    assert "saved: requeueing the job" in said and "resuming from" in said and jobs(job)[0]["Restarts"] == "1"
    assert statuses(tmp_path) == ["done"] and len(rows(tmp_path)) == 1 and epochs(tmp_path) == LONG["epochs"]


def test_a_cancelled_job_saves_and_is_not_requeued(submit, config, tmp_path):
    job = submit(TRAIN, "--config", config(**LONG))
    wait_for(lambda: epochs(tmp_path) >= 1)
    slurm("scancel", job)
    assert ended(job) == ["CANCELLED"] and statuses(tmp_path) == ["stopped"]
    assert "requeueing" not in log(tmp_path, job)


def test_a_sweep_of_eight_cells_runs_each_once(submit, config, tmp_path):
    grid = ("--config", config(epochs=1), "--prune-rate", 0.5, 0.3, "--seed", 1, 2, 3, 4)
    job = submit("--array=0-8", SWEEP, *grid)  # one task too many
    assert ended(job) == ["COMPLETED"] * 8 + ["FAILED"]
    assert log(tmp_path, f"{job}_8") == "error: only: '8' on the command line, but the cells of this grid are 0 to 7\n"
    made = rows(tmp_path)
    expected = {(rate, seed) for rate in ("0.5", "0.3") for seed in "1234"}
    assert len(made) == 8 and {(row["Prune Rate"], row["Seed"]) for row in made} == expected
    again = submit("--array=0-7", SWEEP, *grid)
    assert ended(again) == ["COMPLETED"] * 8 and rows(tmp_path) == made and len(statuses(tmp_path)) == 8
    assert log(tmp_path, f"{again}_*").count("cells: 1, finished: 1, to run: 0") == 8


def test_each_task_runs_its_line_of_a_list_and_only_a_stopped_task_runs_again(submit, config, tmp_path):
    first, second = config("one.yml", epochs=1), config("the other.yml", **LONG)
    (tmp_path / "list").write_text(f"# two runs\n\n--config {first}\n--config '{second}' --seed 3\n")
    job = submit("--array=0-1", SWEEP, "--list", "list", "--lr", 0.05)
    wait_for(lambda: states(job) == ["COMPLETED", "RUNNING"] and epochs(tmp_path) >= 3)
    slurm("scancel", "--batch", "--signal=USR2", f"{job}_1")
    restart_now(f"{job}_1", tmp_path)
    assert states(f"{job}_0") == ["COMPLETED"]
    assert ended(job) == ["COMPLETED", "COMPLETED"], log(tmp_path, f"{job}_*")
    assert {(row["Seed"], row["Epochs"]) for row in rows(tmp_path)} == {("1", "1"), ("3", "20")}
    assert len(rows(tmp_path)) == 2 and [known["Restarts"] for known in jobs(f"{job}_0")] == ["0"]


def test_a_task_number_can_be_the_seed_and_bad_input_ends_the_job(submit, config, tmp_path):
    job = submit("--array=7", "--cpus-per-task=2", TRAIN, "--config", config(), "--seed", "%a", "--check")
    wrong = submit(TRAIN, "--config", "nowhere.yml")
    (tmp_path / "list").write_text("--seed 1\n")
    beyond = submit("--array=1", SWEEP, "--list", "list", "--config", config())
    assert ended(job) == ["COMPLETED"] and "seed: 7" in (tmp_path / f"runs/slurm-train-{job}.out").read_text()
    assert ended(wrong) == ["FAILED"] and jobs(wrong)[0]["ExitCode"] == "2:0"
    assert "nowhere.yml" in log(tmp_path, wrong)
    assert ended(beyond) == ["FAILED"] and not (tmp_path / "runs/results.csv").exists()
    said = "error: list has 1 lines of options, numbered from 0; none for task 1\n"
    assert log(tmp_path, f"{beyond}_1") == said


@pytest.mark.parametrize("script", [TRAIN, SWEEP])
def test_the_job_scripts_request_a_signal_an_appended_log_and_requeueing(script):
    said = slurm("sbatch", "--test-only", "--verbose", script, cwd=ROOT)
    for option, value in {"signal": "B:USR2@120", "open-mode": "a", "requeue": "requeue"}.items():
        assert re.search(rf"{option} +: {value}$", said, flags=re.M), said
    output = re.search(r" output +: (\S+)$", said, flags=re.M)
    # Slurm does not create the folder of the log: without the folder the job fails and writes no log.
    assert output and (ROOT / output[1]).parent.is_dir()
