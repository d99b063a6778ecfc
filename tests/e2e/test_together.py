"""Training with two and three processes equals training with one."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.together import CASES, in_float64, outcome
from utils.distributed.runtime import ALONE

pytestmark = pytest.mark.xdist_group("together")  # all tests of this file share one start of the processes
ROOT = Path(__file__).parents[2]
CLOSE = {"float32": 1e-5, "float64": 1e-10}
# compared only in float64: in float32 rounding may flip a ReLU or a sign, after which all steps differ
SENSITIVE = {"binary activations", "ticket of signs", "lottery", "dense", "residual", "circuit"}
LOCAL = {"batch norm of each"}  # each rank normalises its own slice, so the result differs from that of one process
ONE = [name for name in CASES if name not in LOCAL]
EVERY = [(kind, name) for name in ONE for kind in CLOSE if kind == "float64" or name not in SENSITIVE]
PROCESSES = [2, pytest.param(3, marks=pytest.mark.slow)]
RANDOM_EVALUATION = {"sampled ticket"}  # each rank draws masks for its own batches


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return a function: number of processes -> per rank, type -> case -> outcome."""

    @cache
    def of(processes):
        out = tmp_path_factory.mktemp("together") / "found.pt"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [*launch, ROOT / "tests/together.py", out],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        found = [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(processes)]
        return [dict(zip(CLOSE, each, strict=True)) for each in found]

    return of


@cache
def outcome_of_one_process(kind, name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if kind == "float32":
            return outcome(name, ALONE)
        with in_float64():
            return outcome(name, ALONE)
    finally:
        torch.set_num_threads(threads)


def distance(found, expected):
    """Return the largest difference relative to the largest magnitude."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_training_with_several_processes_equals_training_with_one(kind, name, processes, outcomes):
    one, found, close = outcome_of_one_process(kind, name), outcomes(processes)[0][kind][name], CLOSE[kind]
    assert len(one["losses"]) >= 16
    assert found["losses"] == pytest.approx(one["losses"], rel=close)
    different = sum(int((found["kept"][at] != kept).sum()) for at, kept in one["kept"].items())
    assert different <= 1e-3 * sum(kept.numel() for kept in one["kept"].values())
    far = {key: d for key, value in one["state"].items() if (d := distance(found["state"][key], value)) > close}
    assert far == {}
    for split in ["train"] if name in RANDOM_EVALUATION else ["train", "held out"]:
        assert found["scores"][split] == pytest.approx(one["scores"][split], rel=close)
    assert found["tables"] == one["tables"]


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("name", CASES)
def test_all_ranks_end_with_the_same_network(name, processes, outcomes):
    first, *others = (found["float32"][name] for found in outcomes(processes))
    for other in others:
        assert all(torch.equal(value, other["state"][key]) for key, value in first["state"].items())
        assert all(torch.equal(kept, other["kept"][at]) for at, kept in first["kept"].items())
        assert other["scores"] == first["scores"] and other["losses"] == first["losses"]
