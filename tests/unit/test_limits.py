"""Every number has a lower and an upper limit. A value beyond them is refused in one short line."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

import args
from args import FIELDS
from scripts import bench, convert, export, prune, readme, scaling, sweep
from utils.errors import UsageError
from utils.steps import LARGEST_STEP, stepped

ROOT = Path(args.__file__).parent
NUMBERS = {
    name: option
    for name, option in FIELDS.items()
    if (get_args(option.type) or (option.type,))[0] in (int, float, tuple[int, ...])
}
TOO_LARGE = [
    "1" + "0" * 30,
    "9" * 320,
    "9" * 5000,
    "0x" + "f" * 5000,
    "1e308",
    "-1e308",
    "-1" + "0" * 30,
    "1e999",
    "inf",
]
BASE = "set: digits\narch: MLP\n"


def test_every_numeric_option_has_a_lower_and_an_upper_limit() -> None:
    own = {option.name: option for option in fields(sweep.SweepOptions) if option.type is not bool}
    assert len(NUMBERS) > 50 and own.keys() == {"jobs", "only"}
    for name, option in (NUMBERS | own).items():
        if name != "prune_rate":  # has a separate rule: > 0 and <= 1, or -1
            assert re.fullmatch(r"(>=?) \S+ and (<=?) \S+", option.metadata["allowed"]), name


@pytest.mark.parametrize("name", NUMBERS)
def test_an_excessive_number_is_refused_in_one_short_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    for text in TOO_LARGE:
        file.write_text(BASE)
        with pytest.raises(UsageError, match=rf"\A{name}: [^\n]*\Z") as typed:
            args.parse(["--config", str(file), f"--{name}={text}"])
        file.write_text(f"{BASE}{name}: {text}\n")
        with pytest.raises(UsageError, match=rf"\A{name}: [^\n]*line 3, but [^\n]*\Z") as filed:
            args.parse(["--config", str(file)])
        assert len(str(typed.value)) < 450 and len(str(filed.value)) < 600


@pytest.mark.parametrize("name", [name for name, option in NUMBERS.items() if "tuple" in str(option.type)])
@pytest.mark.parametrize(
    "text", ["[1, 1" + "0" * 30 + "]", "[[1]]", "[" + "1," * 2000 + "1]", "[0x" + "f" * 5000 + "]"]
)
def test_a_list_with_an_excessive_number_or_length_is_refused_in_one_short_line(
    name: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yml"
    file.write_text(f"{BASE}{name}: {text}\n")
    with pytest.raises(UsageError, match=rf"\A{name}: [^\n]*a list of ints [^\n]*\Z") as error:
        args.parse(["--config", str(file)])
    assert len(str(error.value)) < 600


def test_from_flat_refuses_huge_python_integers() -> None:
    with pytest.raises(UsageError, match=r"\Aarch: a number of thousands of digits in [^\n]*one of FC, [^\n]*\Z"):
        args.from_flat({"set": "digits", "arch": 10**5000})
    for value in (10**400, 10**5000, -(10**400)):
        with pytest.raises(UsageError, match=r"\Aepochs: [^\n]* but it must be an int >= 1 and <= 1e6\Z"):
            args.from_flat({"set": "digits", "arch": "Conv2", "epochs": value})


@pytest.mark.parametrize(
    "text", ["0:1e308:1e308", "0:1e7:1e7", "1e308:1e308:1", "0:1:1e-320", f"0:1:{'9' * 5000}e-9999"]
)
def test_stepped_refuses_too_large_values_and_too_small_steps(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        stepped(text)
    assert stepped(f"0:{LARGEST_STEP}:{LARGEST_STEP}") == [0, LARGEST_STEP]


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)
        else:
            yield action


def takes_numbers(action: Any) -> bool:
    try:
        return isinstance(action.type("1"), int | float)
    except (TypeError, argparse.ArgumentTypeError):
        return False


@pytest.mark.parametrize("script", [prune, export, convert, bench])
def test_numeric_arguments_of_scripts_have_limits(script: Any) -> None:
    numbers = [action for action in actions(script.parser()) if takes_numbers(action)]
    assert len(numbers) == {prune: 5, export: 1, convert: 0, bench: 4}[script]
    for action in numbers:
        for text in (*TOO_LARGE, "nan", "", "x" * 5000):
            with pytest.raises(argparse.ArgumentTypeError, match=r"\A[^\n]{1,230} given, an? \w+ >= [^\n]*\Z"):
                action.type(text)


def test_only_paths_py_converts_arguments_without_a_check() -> None:
    files = [
        *ROOT.glob("*.py"),
        *(path for room in ("data", "models", "scripts", "trainers", "utils") for path in (ROOT / room).rglob("*.py")),
    ]
    found = {path.name for path in files if re.search(r"type=(int|float|Path|type\()|expanduser", path.read_text())}
    assert len(files) > 90 and found == {"paths.py"}


def test_sweep_scaling_and_readme_refuse_bad_arguments_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yml").write_text(BASE)
    for words in (["--jobs", "1" + "0" * 30], ["--only", "9" * 5000], ["--hidden", "9" * 5000]):
        assert sweep.main(["--config", str(tmp_path / "c.yml"), *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for program, words in ((scaling, ["--node", "1" + "0" * 30]), (scaling, ["--nodes"]), (readme, ["stray"])):
        assert program.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1


def test_a_grid_of_a_million_cells_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yml").write_text(BASE)
    many = [str(number) for number in range(1, 1001)]
    assert sweep.main(["--config", str(tmp_path / "c.yml"), "--seed", *many, "--batch-size", *many]) == 2
    assert capsys.readouterr().err == "error: a grid of 1,000,000 cells; at most 10,000\n"
