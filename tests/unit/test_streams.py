"""Text that a stream cannot encode is escaped, and a closed or full stream does not end a program."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import console
from utils.console import Progress, say, warn
from utils.text import csv_cell, csv_text, escaped, visible

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from utils import exit_codes
from utils.console import Progress, say, warn
def work():
    warn("实验 \\udcff \\x1b[31m")
    for _ in range({lines}):
        say("0.5 ± 0.1 (3) × 2 实验")
    with Progress("epoch ±", 3) as bar:
        bar.advance()
    print("printed ±")
    return 7
sys.exit(exit_codes.run_program(work))
"""


def python(text, redirection="", **env):
    text = text.encode("ascii", "backslashreplace").decode()  # Unicode escapes in literals are equivalent
    command = f'exec "{sys.executable}" -c "$TEXT" {redirection}'
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    words = ["bash", "-c", f"set -o pipefail; {command.removeprefix('exec ') if '|' in redirection else command}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, env=kept | {"TEXT": text} | env)


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_characters_that_a_stream_cannot_encode_are_escaped(env):
    done = python(PROGRAM.format(lines=1), **env)
    assert (done.returncode, done.stderr) == (7, b"warning: \\u5b9e\\u9a8c \\udcff \\x1b[31m\n")
    assert done.stdout == b"0.5 \\xb1 0.1 (3) \\xd7 2 \\u5b9e\\u9a8c\nprinted \\xb1\n"


def test_non_utf_8_bytes_and_control_characters_are_escaped_on_every_stream():
    done = python(PROGRAM.format(lines=1), PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr.decode()) == (7, "warning: 实验 \\udcff \\x1b[31m\n")
    assert done.stdout.decode() == "0.5 ± 0.1 (3) × 2 实验\nprinted ±\n"


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "| true", "2>&1 | true", "> /dev/full"])
@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_closed_or_full_stream_does_not_change_the_exit_code(redirection, lines):
    done = python(PROGRAM.format(lines=lines), redirection)
    assert done.returncode == 7 and b"Error" not in done.stderr and b"ignored" not in done.stderr


def test_a_file_opened_later_does_not_get_the_descriptor_of_a_closed_stream(tmp_path):
    text = "import os\n" + PROGRAM.replace("def work():", "def work():\n    file = open(sys.argv[1], 'w')").replace(
        "    return 7", "    os.write(1, b'from a library')\n    return file.fileno()"
    )
    done = python(text.format(lines=1), f"{tmp_path / 'file'} >&- 2>&-")
    assert done.returncode > 2 and (tmp_path / "file").read_text() == ""


def test_lines_for_a_closed_standard_error_do_not_reach_standard_output():
    assert python(PROGRAM.format(lines=0), "2>&-").stdout == "printed ±\n".encode()


def test_a_stream_without_a_descriptor_works_and_may_be_closed(monkeypatch, capsys):
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stdout", notebook)
    console.prepare_streams()
    say("±\r\x9b2J ok")
    notebook.close()
    say("gone")
    assert sys.stdout.name == os.devnull and capsys.readouterr().out == ""


def test_lines_are_written_to_a_stream_that_was_not_prepared(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    say("± 1")
    say("and on")
    assert shown.getvalue() == b"\\xb1 1\nand on\n"


def test_a_progress_bar_works_on_an_ascii_terminal(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(shown, encoding="ascii"))
    console.prepare_streams()
    with Progress("Epoche ±实", 2) as bar:
        bar.advance()
        bar.show(1, 0.5, 10.0, 3.0)
    warn("±")
    assert b"Epoche \\xb1\\u5b9e" in shown.getvalue() and b"warning: \\xb1\n" in shown.getvalue()


PROGRAMS = [ROOT / "main.py", ROOT / "parallel_main.py"]
PROGRAMS += [path for path in sorted((ROOT / "scripts").glob("*.py")) if "sys.exit(main(" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_runs_through_run_program(path):
    text = path.read_text("utf-8")
    starts = ("return exit_codes.run_program(", "\n@command\ndef main(", "\nmain = command(")
    assert any(start in text for start in starts)


def test_only_the_console_module_prints():
    expected = {"utils/console.py": 2, "args.py": 1}  # args prints --help
    found = {}
    for path in [
        *ROOT.glob("*.py"),
        *(p for room in ("data", "models", "trainers", "utils", "scripts") for p in (ROOT / room).rglob("*.py")),
    ]:
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        count = sum(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
        found |= {str(path.relative_to(ROOT)): count} if count else {}
    assert found == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± 实验", "plain ± 实验"),
        ("a\nerror: forged", "a\\nerror: forged"),
        ("\x1b[2J\x9b1m\r", "\\x1b[2J\\x9b1m\\r"),
        ("gnp\u202e.exe", "gnp\\u202e.exe"),
        ("\udcff", "\\udcff"),
        ("x" * 200, "x" * 77 + "..."),
        pytest.param(10**5000, "an int of thousands of digits", id="digits"),
        (0.5, "0.5"),
        (None, "None"),
        (ValueError("a\nb"), "a\\nb"),
        ([[1], [1]], "a list"),
    ],
)
def test_a_value_from_a_file_is_escaped_on_one_line(text, shown):
    assert escaped(text) == shown


def test_visible_keeps_line_feeds_and_tabs_of_a_message():
    assert visible("2 problems:\n\tone\r\n") == "2 problems:\n\tone\\r\n"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-x", "'-x"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        ("plain", "plain"),
        ("-0.5", "-0.5"),
        ("+1e-4", "+1e-4"),
    ],
)
def test_a_formula_is_stored_as_text_and_read_back_unchanged(value, stored):
    assert (csv_cell(value), csv_text(stored)) == (stored, value)


def test_csv_cell_keeps_numbers_and_none_and_escapes_paths():
    assert [csv_cell(value) for value in (-1, -0.5, True, None)] == [-1, -0.5, True, None]
    assert csv_cell(Path("=a/b")) == "'=a/b" and csv_cell("\udcff") == "\\udcff"
