"""The rank of this process, read from the environment variables of torchrun, Slurm's srun or Open MPI's mpirun."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from utils.errors import SilentExit, UsageError

LOOPBACK = "127.0.0.1"
PORT = 29500  # torch's default
# Seconds that silent processes wait before they exit: a launcher reports the first exit as the cause, and the process
# that prints the message has to be first.
SILENT_EXIT_DELAY = 5.0


@dataclass(frozen=True)
class ProcessInfo:
    """Rank and world size of a process, in the whole run and on its own machine.

    `address` and `port` are where rank 0 listens for the rendezvous. `attempt` is the number of times that the launcher
    has restarted all processes.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = LOOPBACK
    port: int = PORT
    attempt: int = 0

    def environment(self) -> dict[str, str]:
        """Return the environment variables that torch.distributed reads for the rendezvous.

        The init method env:// of torch.distributed reads them.
        """
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


ALONE = ProcessInfo()


def detect_process(env: Mapping[str, str]) -> ProcessInfo:
    """Read the rank and world size of this process from the launcher's environment variables.

    Returns ALONE, a single process, if no launcher has set its variables. torchrun's variables take precedence over
    Slurm's, and Slurm's over Open MPI's. Raises UsageError if variables are missing, unreadable or contradictory.
    """
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            process = _torchrun(env)
        elif "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:  # srun sets both, sbatch only the second
            process = _slurm(env)
        elif "OMPI_COMM_WORLD_SIZE" in env:
            process = _open_mpi(env)
        else:
            return ALONE
    except KeyError as missing:
        raise UsageError(f"environment: {missing.args[0]} is missing among the variables of the launcher") from missing
    except ValueError as error:
        raise UsageError(f"environment: the launcher's variables cannot be read: {error}") from error
    if not 0 <= process.rank < process.world:
        raise UsageError(
            f"environment: rank {process.rank} of {process.world} processes is impossible; ranks begin at 0"
        )
    return process


@contextmanager
def report_once(process: ProcessInfo) -> Iterator[None]:
    """Context manager in which only one process per machine reports a UsageError.

    Every process raises the same error in the `with` block. Local rank 0 raises the error. The others raise SilentExit
    after SILENT_EXIT_DELAY seconds.
    """
    try:
        yield
    except UsageError as error:
        if process.local_rank:
            time.sleep(SILENT_EXIT_DELAY)
            raise SilentExit(error.exit_code) from error
        raise


def _torchrun(env: Mapping[str, str]) -> ProcessInfo:
    return ProcessInfo(
        rank=int(env["RANK"]),
        world=int(env["WORLD_SIZE"]),
        local_rank=int(env.get("LOCAL_RANK", env["RANK"])),
        local_world=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
        address=env.get("MASTER_ADDR", LOOPBACK),
        port=int(env.get("MASTER_PORT", PORT)),
        attempt=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )


def _slurm(env: Mapping[str, str]) -> ProcessInfo:
    """Return the rank, world size and rendezvous address of this Slurm task.

    They are read from srun's variables in `env`. The port is computed from the job and step numbers, so that jobs on
    the same node use different ports.
    """
    world, nodes = int(env["SLURM_STEP_NUM_TASKS"]), env["SLURM_STEP_NODELIST"]
    port = 20000 + (int(env["SLURM_JOB_ID"]) * 100 + int(env["SLURM_STEP_ID"])) % 40000
    return ProcessInfo(
        rank=int(env["SLURM_PROCID"]),
        world=world,
        local_rank=int(env["SLURM_LOCALID"]),
        local_world=_local_tasks(env),
        address=env.get("MASTER_ADDR") or (_first_node(nodes) if world > 1 else LOOPBACK),
        port=int(env.get("MASTER_PORT", port)),
    )


def _local_tasks(env: Mapping[str, str]) -> int:
    """Return the number of Slurm tasks on this node.

    Slurm writes "2(x3),1" for two tasks on each of three nodes and one task on the fourth.
    """
    counts: list[int] = []
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"]):
        counts += [int(tasks)] * int(nodes or 1)
    node = int(env.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else 1


def _first_node(nodes: str) -> str:
    """Return the address of the first node in a Slurm node list, such as gpu[03-05,7].

    scontrol expands the list.
    """
    name = _output_of("scontrol", "show", "hostnames", nodes).split()[0]
    address = re.search(r"NodeAddr=(\S+)", _output_of("scontrol", "show", "node", name))
    return address[1] if address else name


def _output_of(*command: str) -> str:
    """Run a command and return its standard output. Raises UsageError if the command fails."""
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"environment: {' '.join(command)} failed; set MASTER_ADDR to the address of the first node"
        ) from error


def _open_mpi(env: Mapping[str, str]) -> ProcessInfo:
    world, local_world = int(env["OMPI_COMM_WORLD_SIZE"]), int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    if local_world < world and "MASTER_ADDR" not in env:
        raise UsageError(
            "environment: MASTER_ADDR is missing; mpirun -x MASTER_ADDR=HOST passes the address of rank 0 to the other "
            "machines"
        )
    return ProcessInfo(
        rank=int(env["OMPI_COMM_WORLD_RANK"]),
        world=world,
        local_rank=int(env["OMPI_COMM_WORLD_LOCAL_RANK"]),
        local_world=local_world,
        address=env.get("MASTER_ADDR", LOOPBACK),
        port=int(env.get("MASTER_PORT", PORT)),
    )
