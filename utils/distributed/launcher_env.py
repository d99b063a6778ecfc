"""Which of how many processes this is: read from what torchrun, srun or mpirun has put into the environment."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from utils.errors import SilentExit, UsageError

PORT = 29500  # torch's own
FIRST_GOES = 5.0  # seconds that others wait for the first to tell: a launcher takes the first end for the cause


@dataclass(frozen=True)
class ProcessInfo:
    """Process `rank` of `world`, number `local_rank` of the `local_world` on its machine; rank 0 listens at `address`,
    `port`. `attempt` counts how often the launcher has started them all again."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = PORT
    attempt: int = 0

    def environment(self) -> dict[str, str]:
        """The variables by which torch.distributed finds the others."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


ALONE = ProcessInfo()


def find(env: Mapping[str, str]) -> ProcessInfo:
    """The place of this process: torchrun's word counts before Slurm's, and that before Open MPI's; alone without any.

    Raises UsageError for variables that do not fit together.
    """
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            place = _torchrun(env)
        elif "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:  # srun's; sbatch's script itself has the second
            place = _slurm(env)
        elif "OMPI_COMM_WORLD_SIZE" in env:
            place = _open_mpi(env)
        else:
            return ALONE
    except KeyError as missing:
        raise UsageError(f"environment: {missing.args[0]} is missing beside what the launcher has set") from missing
    except ValueError as error:
        raise UsageError(f"environment: what the launcher has set cannot be read: {error}") from error
    if not 0 <= place.rank < place.world:
        raise UsageError(f"environment: rank {place.rank} of {place.world} processes cannot be; ranks begin at 0")
    return place


@contextmanager
def said_once(place: ProcessInfo) -> Iterator[None]:
    """Bad input, of which every process of a machine would say the same, is left to the first of them to tell."""
    try:
        yield
    except UsageError as error:
        if place.local_rank:
            time.sleep(FIRST_GOES)
            raise SilentExit(2) from error
        raise


def _torchrun(env: Mapping[str, str]) -> ProcessInfo:
    return ProcessInfo(
        rank=int(env["RANK"]),
        world=int(env["WORLD_SIZE"]),
        local_rank=int(env.get("LOCAL_RANK", env["RANK"])),
        local_world=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
        address=env.get("MASTER_ADDR", "127.0.0.1"),
        port=int(env.get("MASTER_PORT", PORT)),
        attempt=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )


def _slurm(env: Mapping[str, str]) -> ProcessInfo:
    """A job step's; its port follows from the job's number, so that jobs which share a node do not meet."""
    world, nodes = int(env["SLURM_STEP_NUM_TASKS"]), env["SLURM_STEP_NODELIST"]
    port = 20000 + (int(env["SLURM_JOB_ID"]) * 100 + int(env["SLURM_STEP_ID"])) % 40000
    return ProcessInfo(
        rank=int(env["SLURM_PROCID"]),
        world=world,
        local_rank=int(env["SLURM_LOCALID"]),
        local_world=_tasks_here(env),
        address=env.get("MASTER_ADDR") or (_first_node(nodes) if world > 1 else "127.0.0.1"),
        port=int(env.get("MASTER_PORT", port)),
    )


def _tasks_here(env: Mapping[str, str]) -> int:
    """This node's tasks: "2(x3),1" means two on each of the first three nodes and one on the fourth."""
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"]):
        counts += [int(tasks)] * int(times or 1)
    return counts[int(env.get("SLURM_NODEID", 0))] if int(env.get("SLURM_NODEID", 0)) < len(counts) else 1


def _first_node(nodes: str) -> str:
    """The address of the first node of a list such as gpu[03-05,7]: Slurm's own commands know how to read it."""
    name = _said_by("scontrol", "show", "hostnames", nodes).split()[0]
    found = re.search(r"NodeAddr=(\S+)", _said_by("scontrol", "show", "node", name))
    return found[1] if found else name


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"environment: {' '.join(command)} failed; set MASTER_ADDR to the address of the first node"
        ) from error


def _open_mpi(env: Mapping[str, str]) -> ProcessInfo:
    world, here = int(env["OMPI_COMM_WORLD_SIZE"]), int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    if here < world and "MASTER_ADDR" not in env:
        raise UsageError(
            "environment: MASTER_ADDR is missing; mpirun -x MASTER_ADDR=HOST tells the processes of other machines "
            "where rank 0 is"
        )
    return ProcessInfo(
        rank=int(env["OMPI_COMM_WORLD_RANK"]),
        world=world,
        local_rank=int(env["OMPI_COMM_WORLD_LOCAL_RANK"]),
        local_world=here,
        address=env.get("MASTER_ADDR", "127.0.0.1"),
        port=int(env.get("MASTER_PORT", PORT)),
    )
