"""The rank of a process from each launcher's environment, and the rank's slice of a batch."""

import pytest

from utils.distributed import launcher_env
from utils.distributed.batch_slice import BatchSlice, check_batch
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
    ("env", "process"),
    [
        ({}, ProcessInfo()),
        (TORCHRUN, ProcessInfo(3, 4, 1, 2, "a", 7, 2)),
        (SLURM, ProcessInfo(5, 6, 0, 1, "gpu3", 20000 + 40001 % 40000)),
        (MPI, ProcessInfo(1, 2, 1, 2)),
        (MPI | SLURM | TORCHRUN, ProcessInfo(3, 4, 1, 2, "a", 7, 2)),
        (MPI | SLURM, ProcessInfo(5, 6, 0, 1, "gpu3", 20001)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ProcessInfo()),  # the batch script itself is not a task
    ],
)
def test_the_rank_is_read_from_the_launchers_environment(env, process):
    assert launcher_env.detect_process(env) == process


@pytest.mark.parametrize(
    ("tasks", "counts"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,3(x2)", [1, 3, 3])], ids=["a", "b", "c"]
)
def test_the_local_world_size_is_read_from_slurms_tasks_per_node(tasks, counts):
    found = [
        launcher_env.detect_process(SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}).local_world
        for node in range(len(counts))
    ]
    assert found == counts


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (TORCHRUN | {"RANK": "4"}, "rank 4 of 4"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "cannot be read"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "MASTER_ADDR"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is missing"),
    ],
)
def test_a_contradictory_environment_is_refused(env, message):
    with pytest.raises(UsageError, match=message):
        launcher_env.detect_process(env)


@pytest.mark.parametrize("total", [2, 3, 7, 120])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_slices_of_all_ranks_partition_the_batch(total, world):
    slices = [BatchSlice.of(total, rank, world) for rank in range(world)]
    rows = [row for one in slices for row in range(total)[one.rows]]
    assert rows == [*range(total)]
    assert max(s.count for s in slices) - min(s.count for s in slices) <= 1
    assert sum(s.weight for s in slices) / world == pytest.approx(1)


@pytest.mark.parametrize(
    ("batch", "images", "world", "nearest"),
    [(100, 1437, 3, "99 or 102"), (256, 257, 2, "254 or 258"), (1, 10, 2, "2"), (8, 9, 4, "12")],
)
def test_a_batch_size_that_cannot_be_sliced_is_refused_with_the_nearest_valid_sizes(batch, images, world, nearest):
    with pytest.raises(UsageError, match="batch_size") as refused:
        check_batch(batch, images, world)
    assert refused.value.args[0].split("; ")[-1] == f"use {nearest}"
    for size in nearest.split(" or "):
        check_batch(int(size), images, world)


def test_more_ranks_than_images_are_refused():
    with pytest.raises(UsageError, match="3 processes have 2 training images"):
        check_batch(3, 2, 3)
