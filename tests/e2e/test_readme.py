"""What the README shows is true."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python main\.py (.*)$", README, flags=re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_accepted(program, monkeypatch, command):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if "--help" in words:
        with pytest.raises(SystemExit) as done:
            program(*words)
        assert done.value.code == 0
    else:
        code, out, _ = program(*words, "--check")
        assert code == 0 and "weights kept" in out
    assert len(COMMANDS) >= 6


def test_the_python_of_the_readme_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names: dict[str, object] = {}
    exec(block, names)
    net, plain, x = names["net"].eval(), names["plain"].eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(x), plain(x), atol=1e-5)


def test_the_tables_of_the_readme_are_those_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme

    assert readme.main(["--check"]) == 0, "python scripts/readme.py writes them"
    sys.modules.pop("readme")
