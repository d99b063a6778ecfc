"""scripts/slurm/job.sh with a stand-in for Slurm: the job requeues itself after its program has saved."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
scontrol() {{ echo "asked: $*"; [ "$((asked += 1))" -gt {refusals} ]; }}
sleep() {{ echo "waits $1"; }}
asked=0 SLURM_JOB_ID=7
. scripts/slurm/job.sh
run bash -c 'exit {code}'
"""


@pytest.mark.parametrize(("refusals", "asked"), [(0, 1), (2, 3), (9, 4)])
def test_a_saved_job_retries_to_requeue_itself_if_the_controller_refuses(refusals, asked):
    words = ["bash", "-c", SCRIPT.format(refusals=refusals, code=75)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 75 and lines[0] == "saved: requeueing the job"
    assert lines.count("asked: requeue 7") == asked and lines.count("waits 5") == min(refusals, 4)
    assert ("did not requeue job 7" in done.stderr) is (refusals == 9)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_any_other_exit_code_becomes_that_of_the_job(code):
    words = ["bash", "-c", SCRIPT.format(refusals=0, code=code)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_run_in_use_by_another_process_ends_the_job_without_failure():
    words = ["bash", "-c", SCRIPT.format(refusals=0, code=69)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
