"""Exit codes and messages of programs: Ctrl-C at any time, bad input, several problems."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from utils import console, exit_codes
from utils.errors import RunFailed, RunInUse, SilentExit, Stopped, UsageError
from utils.text import combined_error, split_problems

ROOT = Path(__file__).parents[2]
INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def python(program, *, within="nothing"):
    """Run `program`, which gets SIGINT when it imports `within`."""
    hook = f"""
import builtins
def hooked(name, *rest, real=builtins.__import__, **more):
    if name == {within!r}:
        {INTERRUPT}
    return real(name, *rest, **more)
builtins.__import__ = hooked
"""
    words = [sys.executable, "-c", hook + program]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("program", ["main", "parallel_main"])
@pytest.mark.parametrize("within", ["args", "trainers", "torch.utils.data"])
def test_ctrl_c_while_a_program_imports_prints_one_line(program, within):
    words = "'--config', 'configs/quickstart.yml', '--check'"
    done = python(f"import sys, {program}; sys.exit({program}.main([{words}]))", within=within)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted before it began; nothing was saved\n"


@pytest.mark.parametrize("name", ["convert", "export", "prune", "report", "sweep"])
def test_ctrl_c_while_a_script_imports_prints_one_line(name):
    program = "import runpy, sys; sys.argv[1:] = ['--help']; sys.path[0] = 'scripts'; "
    program += f"runpy.run_path('scripts/{name}.py', run_name='__main__')"
    done = python(program, within="argparse" if name != "sweep" else "shlex")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted before it began; nothing was saved\n"


def test_ctrl_c_raises_keyboard_interrupt_after_the_imports_and_an_ignored_sigint_stays_ignored():
    program = f"""
import signal, sys
from utils import exit_codes, stop_signal
def work():
    try:
        {INTERRUPT}
    except KeyboardInterrupt:
        print("caught")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_signal.exit_on_interrupt()
    {INTERRUPT}
    stop_signal.raise_on_interrupt()
    {INTERRUPT}
    return 7
sys.exit(exit_codes.run_program(work))
"""
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (7, "caught\n", "")


def test_ctrl_c_during_a_script_runs_its_cleanup():
    program = f"""
import sys
from utils import exit_codes, stop_signal
stop_signal.exit_on_interrupt()
def work():
    try:
        {INTERRUPT}
    finally:
        print("cleaned up")
sys.exit(exit_codes.run_program(work, interrupted=exit_codes.INTERRUPTED))
"""
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaned up\n", f"{exit_codes.INTERRUPTED}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("lr: too\nlarge"), 2, "error: lr: too\\nlarge (rank 1)\n"),
        (RunFailed("diverged"), 1, "failed: diverged (rank 1)\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "failed: [Errno 2] No such file: 'x' (rank 1)\n"),
        (RunInUse("runs/a is being trained"), 69, "runs/a is being trained (rank 1)\n"),
        (Stopped("stopped and saved"), 75, "stopped and saved (rank 1)\n"),
        (SilentExit(7), 7, ""),
        (ModuleNotFoundError("", name="tqdm"), 1, "failed: tqdm is not installed; pip install -r requirements.txt"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_exception_has_its_exit_code_and_its_line(error, code, line, capsys):
    error.add_note("rank 1")

    def work():
        raise error

    assert exit_codes.run_program(work) == code
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("words", [[], ["--no-such-option"], ["a", "b", "--force=5"]])
@pytest.mark.parametrize("name", ["convert", "export", "prune", "report"])
def test_a_script_reports_unknown_arguments_in_one_line(name, words, capsys):
    assert importlib.import_module(f"scripts.{name}").main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.endswith("; see --help\n")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("count", [2, 20, 21, 1000, 1502])
def test_the_first_20_of_many_problems_are_listed_one_per_line(capsys, count):
    problems = [f"option{i}: unknown" for i in range(count)]
    error = combined_error(problems)

    def work():
        raise error

    assert exit_codes.run_program(work) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {count:,} problems:" and lines[1:3] == problems[:2]
    assert split_problems(error) == problems[:20] and len(lines) == 1 + min(count, 20) + (count > 20)


def test_a_ctrl_c_lost_in_a_destructor_is_raised_before_training_begins():
    program = f"""
import sys
from utils import exit_codes
class Gone:
    def __del__(self):
        {INTERRUPT}
def work():
    Gone()
    print("going on")
    from utils.stop_signal import StopRequest
    StopRequest().listen()
    print("training")
sys.exit(exit_codes.run_program(work))
"""
    done = python(program)
    assert (done.returncode, done.stdout) == (130, "going on\n")
    assert done.stderr.endswith("interrupted before training began; nothing was saved\n")


@pytest.mark.parametrize("write", [console.say, console.warn, console.write_error])
def test_a_line_and_its_line_end_are_written_in_one_call(monkeypatch, write):
    pieces = []

    class Unbuffered:
        def write(self, text):
            pieces.extend([text] * bool(text))

        def flush(self): ...

    monkeypatch.setattr(sys, "stdout", Unbuffered())
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    write("a line")
    assert [piece.removeprefix("warning: ") for piece in pieces] == ["a line\n"]
