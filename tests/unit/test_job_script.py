"""scripts/slurm/job.sh without Slurm: what a job does when its program has saved."""

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
def test_a_saved_job_asks_again_where_the_controller_does_not_take_it_back(refusals, asked):
    words = ["bash", "-c", SCRIPT.format(refusals=refusals, code=75)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = done.stdout.splitlines()
    assert done.returncode == 75 and said[0] == "saved: back into the queue"
    assert said.count("asked: requeue 7") == asked and said.count("waits 5") == min(refusals, 4)
    assert ("did not take job 7 back" in done.stderr) is (refusals == 9)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_another_end_is_the_jobs(code):
    words = ["bash", "-c", SCRIPT.format(refusals=0, code=code)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_run_that_another_process_trains_is_no_failure_and_does_not_come_back():
    words = ["bash", "-c", SCRIPT.format(refusals=0, code=69)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
