""".ci/house.py: its measures of a small checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "args.py": '"""Options."""\n\n\ndef parse(): ...\n',
    "models/__init__.py": "",
    "models/a.py": '"""How."""\n\n\ndef lazy():\n    """Return b."""\n    from models import b\n\n    return b  # x\n',
    "models/b.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from models.a import lazy\n",
    "tests/test_a.py": "def test_nothing(): ...\n",
}


@pytest.fixture(scope="module")
def measures(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", root, *words], check=True)
    command = [sys.executable, ROOT / ".ci/house.py", root, "--starts", "2"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.strip("| ").split(" | ") for line in table.splitlines())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("all code", "16 lines in 4 files"),
        ("all tests", "1 lines in 1 files"),
        ("import circles", "models.a ↔ models.b"),  # one import inside a function, one under TYPE_CHECKING
        ("public functions and classes with a docstring", "50% of 2"),
        ("docstrings that begin with What, Whether, How …", "1 of 3"),
        ("comments per 100 lines", "6.2"),
    ],
)
def test_house_measures_a_checkout(measures, name, value):
    assert measures[name] == value
