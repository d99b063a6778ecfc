"""A constraint, an architecture, a data set, a trainer and an option can be added as the documentation states.

Examples are added to a copy of the project: one new file, one registry row and one test case each. An option is one
field and its use. Nothing else in the copy changes.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TERNARY = '''
from models.constraints.base import Constraint
from models.constraints.topk_mask import keep_largest, kept_count


class TernaryWeight(Constraint):
    """Weights of -1, 0 and 1: the signs of the largest, straight through."""

    def __init__(self, weight, *, density, generator=None):
        super().__init__()
        self.kept = kept_count(weight.numel(), density)

    def forward(self, weight):
        ternary = weight.sign() * keep_largest(weight.detach().abs(), self.kept)
        return ternary.detach() + (weight - weight.detach())
'''
TINY = """
from torch import nn


class TinyNet(nn.Sequential):
    def __init__(self, *, num_classes, in_shape, bn_type, width_mult):
        channels, height, width = in_shape
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
"""
STRIPES = """
import numpy as np
from data.types import Split


def read_stripes(_root, _download):
    labels = np.arange(60, dtype=np.int64) % 3
    images = np.zeros((60, 8, 8, 1), np.uint8)
    images[np.arange(60), labels] = 255
    return Split(images, labels), Split(images[:30].copy(), labels[:30].copy())
"""
HALVING = """
from trainers.methods.base import Method


class Halving(Method):
    def __init__(self, *, loss_divisor, **usual):
        super().__init__(**usual)
        self.divisor = loss_divisor

    def loss(self, logits, labels):
        return super().loss(logits, labels) / self.divisor
"""
NEW_FILES = {
    "models/constraints/ternary.py": TERNARY,
    "models/tiny.py": TINY,
    "data/readers/stripes.py": STRIPES,
    "trainers/methods/halving.py": HALVING,
}
ROWS = {  # file -> (line that the new one follows, new line)
    "models/constraints/registry.py": (
        "CONV_TYPES: dict[str, ConvType] = {\n",
        '"TernaryConv": ConvType("ternary", "models.constraints.ternary:TernaryWeight", density="optional"),\n',
    ),
    "models/registry.py": (
        "ARCHS: dict[str, Arch] = {\n",
        '"TinyNet": Arch("models.tiny:TinyNet", has_batch_norm=False),\n',
    ),
    "data/registry.py": (
        "SETS: dict[str, SetSpec] = {\n",
        '"stripes": SetSpec((1, 8, 8), 3, (0.1,), (0.3,), False, "data.readers.stripes:read_stripes"),\n',
    ),
    "trainers/registry.py": (
        "TRAINERS = {\n",
        '"halving": Trainer("trainers.methods.halving:Halving", ("loss_divisor",), variant_of="default"),\n',
    ),
}
CASES = {  # of tests/cases.py
    "CONSTRAINT_CASES = {": '"TernaryConv": ConstraintCase(("weight",), ""),',
    "LIGHT = [": '("TinyNet", (1, 5, 3), {}),',
    "SET_CASES = {": '"stripes": "TinyNet",',
    "METHOD_CASES = {": '"halving": "DenseConv",',
}
FIELD = (
    "utils/config/run_option_groups.py",
    "class OptimOptions:\n",
    '    loss_divisor: float = opt(2.0, "trainer halving: divisor of the loss", "> 0 and <= 10")\n',
)


def insert(path: Path, after: str, line: str) -> None:
    text = path.read_text()
    assert text.count(after) == 1
    path.write_text(text.replace(after, after + line))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the additions."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("scripts/records", "docs")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for name, text in NEW_FILES.items():
        (folder / name).write_text(text)
    for name, (after, line) in ROWS.items():
        insert(folder / name, after, line)
    for after, line in CASES.items():
        insert(folder / "tests/cases.py", after, line)
    insert(folder / FIELD[0], *FIELD[1:])
    return folder


def python(project: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return done.stdout


@pytest.mark.slow
def test_all_additions_train_together(project: Path) -> None:
    config = project / "own.yml"
    config.write_text(
        "set: stripes\narch: TinyNet\nconv_type: TernaryConv\ntrainer: halving\nprune_rate: 0.9\nepochs: 2\n"
    )
    output = python(project, "main.py", "--config", str(config), "--loss-divisor", "4", "--lr", "0.5")
    assert "TinyNet on stripes, trainer halving" in output and "test accuracy" in output
    assert "--loss-divisor" in python(project, "main.py", "--help")


@pytest.mark.slow
def test_the_tests_of_every_case_pass_for_all_additions(project: Path) -> None:
    chosen = "TinyNet or TernaryConv or halving or stripes or registered or row or names_a_trainer"
    output = python(project, "-m", "pytest", "-q", "tests/unit/test_cases.py", "-k", chosen, "-p", "no:cacheprovider")
    assert "passed" in output or "[100%]" in output


@pytest.mark.slow
def test_an_addition_without_a_test_case_fails_the_tests(project: Path) -> None:
    cases = project / "tests/cases.py"
    whole = cases.read_text()
    cases.write_text(whole.replace(CASES["LIGHT = ["], ""))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/unit/test_cases.py",
        "-k",
        "registered",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    cases.write_text(whole)
    assert done.returncode == 1 and "TinyNet" in done.stdout
