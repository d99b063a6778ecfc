"""Shared fixtures: one torch thread (the suite runs in several processes) and small configs on the digits."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported, here and in the programs that tests start

from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TICKET = {
    "arch": "FC",
    "set": "digits",
    "conv_type": "SubnetConv",
    "freeze_weights": True,
    "prune_rate": 0.5,
    "lr": 0.1,
    "lr_policy": "cosine_lr",
    "batch_size": 64,
    "epochs": 2,
    "seed": 1,
    "precision": "fp32",
}


@pytest.fixture
def on_threads():
    """Context manager: torch computes on n threads within `with on_threads(n)`."""
    import torch

    @contextmanager
    def on(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return on


@pytest.fixture
def config(tmp_path):
    """Return a function that writes a config of a quick ticket on the digits, with changes, and returns its path."""

    def write(name="ticket.yml", **changes):
        path = tmp_path / name
        values = {key: value for key, value in (TICKET | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Return a function that runs main.py in this process and in an empty folder: (exit code, stdout, stderr)."""
    import signal

    import main

    monkeypatch.chdir(tmp_path)
    taken = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in taken}

    def run(*argv):
        capsys.readouterr()
        code = main.main([str(a) for a in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def registries():
    """Restore the registries and the options after a test that loads plug-ins in this process."""
    from utils import plugin_files
    from utils.config import options, plugins

    tables = [*plugins.TABLES.values(), options.FIELDS, options.ADDED, plugins._origins]
    tables += [plugin_files._loaded, plugin_files._names]
    before = [dict(table) for table in tables]
    yield
    for name in [name for name in sys.modules if name.startswith("plugin_") or name in plugin_files._names.values()]:
        del sys.modules[name]
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
