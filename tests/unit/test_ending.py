"""How programs end: Ctrl-C while libraries are loaded, one line and an exit code."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from utils import console, exit_codes
from utils.text import apart, together

ROOT = Path(__file__).parents[2]
INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def python(program, *, within="nothing"):
    """A program that is interrupted when it imports `within`."""
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
def test_ctrl_c_while_libraries_are_loaded_is_one_line(program, within):
    words = "'--config', 'configs/quickstart.yml', '--check'"
    done = python(f"import sys, {program}; sys.exit({program}.main([{words}]))", within=within)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted before it began; nothing was saved\n"


@pytest.mark.parametrize("name", ["convert", "export", "prune", "report", "sweep"])
def test_ctrl_c_while_a_script_is_loaded_is_one_line(name):
    program = f"import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_path('scripts/{name}.py', run_name='__main__')"
    done = python(program, within="argparse" if name != "sweep" else "shlex")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted before it began; nothing was saved\n"


def test_afterwards_it_is_an_exception_again_and_nohups_stay():
    program = f"""
import signal, sys
from utils import ending
def work():
    try:
        {INTERRUPT}
    except KeyboardInterrupt:
        print("caught")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending.leave_at_once()
    {INTERRUPT}
    ending.politely()
    {INTERRUPT}
    return 7
sys.exit(ending.code(work))
"""
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (7, "caught\n", "")


@pytest.mark.parametrize("words", [[], ["--no-such-option"], ["a", "b", "--force=5"]])
@pytest.mark.parametrize("name", ["convert", "export", "prune", "report"])
def test_words_that_a_script_does_not_understand_are_told_in_one_line(name, words, capsys):
    assert importlib.import_module(f"scripts.{name}").main(words) == 2
    heard = capsys.readouterr()
    assert heard.out == "" and heard.err.startswith("error: ") and heard.err.endswith("; --help says more\n")
    assert heard.err.count("\n") == 1


@pytest.mark.parametrize("count", [2, 20, 21, 1000, 1502])
def test_problems_have_a_line_each_however_many_they_are(capsys, count):
    problems = [f"option{i}: unknown" for i in range(count)]
    error = together(problems)

    def work():
        raise error

    assert exit_codes.code(work) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"error: {count:,} problems:" and told[1:3] == problems[:2]
    assert apart(error) == problems[:20] and len(told) == 1 + min(count, 20) + (count > 20)


def test_a_ctrl_c_that_was_swallowed_is_raised_before_training_begins():
    program = f"""
import sys
from utils import ending
class Gone:
    def __del__(self):
        {INTERRUPT}
def work():
    Gone()
    print("going on")
    from utils.signals import StopRequest
    StopRequest().listen()
    print("training")
sys.exit(ending.code(work))
"""
    done = python(program)
    assert (done.returncode, done.stdout) == (130, "going on\n")
    assert done.stderr.endswith("interrupted before training began; nothing was saved\n")


@pytest.mark.parametrize("told", [console.say, console.warn, exit_codes.complain])
def test_a_line_and_its_end_are_one_piece(monkeypatch, told):
    pieces = []

    class Unbuffered:
        def write(self, text):
            pieces.extend([text] * bool(text))

        def flush(self): ...

    monkeypatch.setattr(sys, "stdout", Unbuffered())
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    told("so it is")
    assert [piece.removeprefix("warning: ") for piece in pieces] == ["so it is\n"]
