"""The example in the docstring of featherweight.py runs as it is printed."""

import re
import shutil
import textwrap
from pathlib import Path

import PIL.Image

import featherweight
from data.readers.digits import read_digits

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_docstring_trains_opens_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    test = read_digits(Path(), False)[1]
    PIL.Image.fromarray(test.images[0, :, :, 0]).save("digit.png")
    blocks = re.findall(r"^    .*(?:\n(?:    .*)?)*", featherweight.__doc__, flags=re.M)
    lines = textwrap.dedent(blocks[0]).strip().splitlines()
    assert "import featherweight as fw" in lines and len(lines) <= 10
    exec("\n".join(lines), {})
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\d \d+\.\d %", last)
    assert last.split()[0] == str(test.labels[0])
