"""Start parallel_main.py with one process per GPU under torch's launcher, for --multigpu with several GPUs."""

import os
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.distributed.launcher_env import LOOPBACK
from utils.errors import SilentExit, Stopped

PROGRAM = Path(__file__).resolve().parents[2] / "parallel_main.py"


def run_processes(argv: Sequence[str], processes: int) -> None:
    """Run parallel_main.py in several local processes, and wait until they end.

    There are `processes` processes, each with the arguments `argv`. If processes fail, raises SilentExit with the exit
    code of the first. That process has printed the message.
    """
    store = local_store()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="static",  # uses `store`; the store of the backend "c10d" listens on every interface
        rdzv_endpoint=f"{LOOPBACK}:{store.port}",
        rdzv_configs={"rank": 0},
        max_restarts=0,
        local_addr=LOOPBACK,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",  # forwarded; SIGUSR2 is not by default
    )
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    try:
        elastic_launch(config, sys.executable)("-u", str(PROGRAM), *argv)
    except ChildFailedError as error:
        raise SilentExit(max(1, error.get_first_failure()[1].exitcode)) from error
    except SignalException as error:
        raise SilentExit(Stopped.exit_code) from error


def local_store() -> TCPStore:
    """Return a rendezvous store that listens only on the loopback interface.

    Anyone who can reach a store can write to it.
    """
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
