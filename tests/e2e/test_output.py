"""Complete programs with ASCII, closed or full output streams."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import main
import parallel_main
from scripts import convert, prune, report, scaling, sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ascii_only(monkeypatch, program):
    """Return a function that runs a program's `main` on ASCII streams: (exit code, standard output, standard error)."""

    def run(work, *argv):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        code = work([str(word) for word in argv])
        return code, *(stream.buffer.getvalue().decode("ascii") for stream in streams.values())

    return run


def test_every_program_handles_a_run_with_a_non_ascii_name(ascii_only, config, tmp_path):
    words = ("--config", config(epochs=1), "--name", "实验")
    for work in (main.main, parallel_main.main):
        code, out, err = ascii_only(work, *words)
        assert (code, err) == (0, "") and "run directory  runs/ticket/prune-rate=0.5/\\u5b9e\\u9a8c" in out
    run = tmp_path / "runs/ticket/prune-rate=0.5/实验"
    code, out, err = ascii_only(main.main, *words, "--resume", "auto", "--set", "数字")
    assert (code, out) == (2, "") and err.startswith("error: set: '\\u6570\\u5b57' on the command line")
    assert ascii_only(report.main, run, "--title", "±", "--out", tmp_path / "实.png")[0] == 0
    assert ascii_only(prune.main, run, "--percent", 50, "--repeat", 1)[0] == 0
    assert ascii_only(convert.main, "biprop", run, tmp_path / "实.pth")[0] == 0
    seeds = ("--config", config(epochs=1, seed=None), "--seed", 1, 2)
    for seed in (1, 2):
        assert ascii_only(main.main, *seeds[:2], "--seed", seed)[0] == 0
    code, out, err = ascii_only(sweep.main, *seeds, "--table")
    assert (code, err) == (0, "") and " \\xb1 " in out
    assert ascii_only(scaling.main, "--between", "1e8")[0] == 0


@pytest.mark.parametrize("redirection", ["| head -1", ">&- 2>&-", "> /dev/full 2>&1"])
def test_a_run_with_closed_or_full_output_finishes(config, tmp_path, redirection):
    command = f'set -o pipefail; "{sys.executable}" "{ROOT / "main.py"}" --config "{config(epochs=1)}" {redirection}'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert '"done"' in (tmp_path / "runs/ticket/prune-rate=0.5/ticket/status.json").read_text()


@pytest.mark.parametrize("redirection", ["| true", ">&-", "> /dev/full"])
@pytest.mark.parametrize("program", ["main.py", "scripts/sweep.py"])
def test_help_into_a_closed_stream_ends_without_an_error(redirection, program):
    command = f'set -o pipefail; "{sys.executable}" "{ROOT / program}" --help {redirection}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
