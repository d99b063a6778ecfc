"""Which process this is, by what each launcher says, and what it has of a batch."""

import pytest

from utils.distributed import launcher_env
from utils.distributed.batch_slice import Share, check_batch
from utils.distributed.launcher_env import ProcessInfo
from utils.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}
TORCHRUN |= {"MASTER_PORT": "7", "TORCHELASTIC_RESTART_COUNT": "2"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
SLURM |= {"SLURM_STEP_NODELIST": "gpu[3-5]", "SLURM_STEP_TASKS_PER_NODE": "3,2,1", "SLURM_JOB_ID": "400"}
SLURM |= {"SLURM_STEP_ID": "1", "MASTER_ADDR": "gpu3"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, ProcessInfo()),
        (TORCHRUN, ProcessInfo(3, 4, 1, 2, "a", 7, 2)),
        (SLURM, ProcessInfo(5, 6, 0, 1, "gpu3", 20000 + 40001 % 40000)),
        (MPI, ProcessInfo(1, 2, 1, 2)),
        (MPI | SLURM | TORCHRUN, ProcessInfo(3, 4, 1, 2, "a", 7, 2)),
        (MPI | SLURM, ProcessInfo(5, 6, 0, 1, "gpu3", 20001)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ProcessInfo()),  # a batch script itself is no task
    ],
)
def test_the_place_is_what_the_launcher_says(env, place):
    assert launcher_env.find(env) == place


@pytest.mark.parametrize(
    ("tasks", "counts"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,3(x2)", [1, 3, 3])], ids=["a", "b", "c"]
)
def test_slurms_short_form_of_tasks_per_node(tasks, counts):
    found = [
        launcher_env.find(SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}).local_world
        for node in range(len(counts))
    ]
    assert found == counts


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (TORCHRUN | {"RANK": "4"}, "rank 4 of 4"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "cannot be read"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "MASTER_ADDR"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is missing"),
    ],
)
def test_what_cannot_be_is_said(env, says):
    with pytest.raises(UsageError, match=says):
        launcher_env.find(env)


@pytest.mark.parametrize("total", [2, 3, 7, 120])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shares_are_the_batch(total, parts):
    shares = [Share.of(total, number, parts) for number in range(parts)]
    rows = [row for share in shares for row in range(total)[share.rows]]
    assert rows == [*range(total)]
    assert max(s.count for s in shares) - min(s.count for s in shares) <= 1
    assert sum(s.weight for s in shares) / parts == pytest.approx(1)


@pytest.mark.parametrize(
    ("batch", "images", "processes", "near"),
    [(100, 1437, 3, "99 or 102"), (256, 257, 2, "254 or 258"), (1, 10, 2, "2"), (8, 9, 4, "12")],
)
def test_a_batch_that_does_not_fit_names_the_nearest_that_do(batch, images, processes, near):
    with pytest.raises(UsageError, match="batch_size") as told:
        check_batch(batch, images, processes)
    assert told.value.args[0].split("; ")[-1] == f"{near} would do"
    for size in near.split(" or "):
        check_batch(int(size), images, processes)


def test_more_processes_than_images_cannot_be():
    with pytest.raises(UsageError, match="3 processes have 2 training images"):
        check_batch(3, 2, 3)
