"""The launcher of --multigpu: its processes listen only on the loopback interface."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds after which a test fails instead of hanging the suite
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
START = "import sys; from utils.distributed import spawn; spawn.run_processes(sys.argv[1:], 2)"


def tree(pid):
    """Return the ids of the process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        below = [int(child) for child in children.read_text().split()]
    except OSError:
        return {pid}
    return {pid}.union(*map(tree, below))


def sockets(pid):
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            yield str(path.readlink())
        except OSError:
            continue


def listening(pid):
    """Return (inode, hexadecimal address) of every TCP socket on which the processes of the tree listen."""
    held = {link for process in tree(pid) for link in sockets(process)}
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    fields = [line.split() for line in lines]
    return {(f[9], f[1].partition(":")[0]) for f in fields if f[3] == "0A" and f"socket:[{f[9]}]" in held}


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="needs Linux")
def test_the_launcher_and_its_processes_listen_only_on_the_loopback_interface(tmp_path, config):
    path = config(batch_size=50, epochs=1000, precision=None)
    words = ["--config", path, "--device", "cpu", "--log-dir", tmp_path / "runs", "--results", tmp_path / "r.csv"]
    environment = {key: value for key, value in os.environ.items() if not key.endswith("SOCKET_IFNAME")}
    program = subprocess.Popen(
        [sys.executable, "-c", START, *map(str, words)], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    found, end = set(), time.monotonic() + LIMIT
    try:
        while not list(tmp_path.glob("runs/**/metrics.csv")) and time.monotonic() < end:
            found |= listening(program.pid)
            time.sleep(0.02)
        assert program.poll() is None and time.monotonic() < end
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=LIMIT)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.communicate()
    assert len(found) >= 3  # the rendezvous store and the connections between the processes
    assert {address for _, address in found} <= LOOPBACK
