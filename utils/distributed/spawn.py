"""--multigpu with several GPUs: parallel_main.py, a process for each, started by torch's own launcher."""

import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.errors import RESUMABLE, SilentExit

LOOPBACK = "127.0.0.1"
PROGRAM = Path(__file__).resolve().parents[2] / "parallel_main.py"


def start(argv: Sequence[str], processes: int) -> None:
    """Run parallel_main.py with `argv` in so many processes of this machine, and wait for their end.

    Raises SilentExit with their exit code, where it is not 0: what there is to say they have said.
    """
    signal.signal(signal.SIGUSR2, _pass_on)  # torch passes on those that it knows to end a job
    store = local_store()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="static",  # which takes up `store`: the store of "c10d" listens on every interface
        rdzv_endpoint=f"{LOOPBACK}:{store.port}",
        rdzv_configs={"rank": 0},
        max_restarts=0,
        local_addr=LOOPBACK,
    )
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    try:
        elastic_launch(config, sys.executable)("-u", str(PROGRAM), *argv)
    except ChildFailedError as error:
        raise SilentExit(max(1, error.get_first_failure()[1].exitcode)) from error
    except SignalException as error:
        raise SilentExit(RESUMABLE) from error


def local_store() -> TCPStore:
    """A store that listens on the loopback interface alone: whoever reaches a store may write into it."""
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )


def _pass_on(number: int, _frame: object) -> None:
    raise SignalException("to be passed on", sigval=signal.Signals(number))
