"""The commands in scripts/: start, end on Ctrl-C, and dependencies among them."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import convert, export, results
from utils import stop_signal
from utils.config.script_parser import command
from utils.errors import UsageError

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(path for path in SCRIPTS.glob("*.py") if path.stem not in ("__init__", "start"))


def imports(path):
    """Return the names of the modules that a file imports, of `from a import b` both a and a.b."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return (
        plain
        | {node.module for node in froms}
        | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    )


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_no_module_imports_a_command(path):
    files = [
        *SCRIPTS.rglob("*.py"),
        *(f for room in ("data", "models", "trainers", "utils") for f in (SCRIPTS.parent / room).rglob("*.py")),
    ]
    assert [str(file) for file in files if f"scripts.{path.stem}" in imports(file)] == []
    assert len(files) > 90


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_starts_through_start_py(path):
    first = ast.parse(path.read_text()).body[2]
    assert ast.unparse(first).startswith("if __name__ == '__main__':\n    import start\n    start.prepare(loads_torch=")
    assert "sys.path" not in path.read_text()


@pytest.mark.parametrize("words", [["scripts/sweep.py"], ["-m", "scripts.sweep"]], ids=["file", "module"])
def test_a_command_runs_as_a_file_and_as_a_module(words):
    line = [sys.executable, *words, "--help"]
    done = subprocess.run(line, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Run main.py once"), done.stderr


def test_ctrl_c_ends_a_command_with_one_line(capsys):
    old = signal.getsignal(signal.SIGINT)
    stop_signal.exit_on_interrupt()  # as start.prepare sets it while libraries load

    @command
    def main(argv):
        os.kill(os.getpid(), signal.SIGINT)

    try:
        assert main([]) == 130
    finally:
        signal.signal(signal.SIGINT, old)
    assert capsys.readouterr().err == "interrupted; no file is half-written\n"


def test_a_command_returns_its_exit_code_or_that_of_its_failure(capsys):
    def work(argv):
        if argv == ["bad"]:
            raise UsageError("bad: it is bad")
        return len(argv) or None

    main = command(work)
    assert [main([]), main(["one"]), main(["bad"])] == [0, 1, 2]
    assert capsys.readouterr().err == "error: bad: it is bad\n"


@pytest.mark.parametrize("module", [convert, export, results])
def test_a_missing_command_is_called_a_command(module, capsys):
    assert module.main([]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the following arguments are required: COMMAND") and "program" not in err
    assert module.main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: argument COMMAND: invalid choice: 'nothing'")
