"""A value has the same meaning in a YAML file and on the command line, for every option and every spelling."""

import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import args
from args import FIELDS
from utils.config.fields import cast
from utils.config.yaml_loader import load_yaml
from utils.errors import UsageError

REFUSED = "refused"
WRITTEN = """010 008 0o10 0x10 0b11 1_000 _1 1__0 +5 -5 1e3 1E3 1e-3 .5 5. 5.0 0.5 1. 1:30 1:30:00 0:4:0.1 0:4:1
010,008 1,2 1_0,2 300, , 1;2 1.5e e5 .inf -.inf inf nan .nan infinity ~ null Null NULL nULL None none N yes no on off
true False y TRUE 2001-01-01 2001-99-99 2001-01-01T00:00:00Z << = digits batch_norm 0 00 -0 0.0 1e400 ٣ 1² 0.1.2 1e1e1
1,010 0,0 --5 +-5 1e+2 1_e2 685_230.15 190:20:30.15"""
SPELLINGS = [*WRITTEN.split(), "9" * 400, "0x" + "f" * 5000, "9" * 5000]


def result(option: Any, value: Any) -> object:
    try:
        made = cast(option, value)
    except (ValueError, TypeError, OverflowError):
        return REFUSED
    assert type(made) in (int, float, str, bool, tuple, type(None))
    return made


@given(st.text("0123456789_+-.:,eExXobBnaiftyTFN~lus=<", min_size=1, max_size=12))
@example("null")
def test_any_text_has_the_same_value_in_yaml_and_on_the_command_line_or_is_refused(text: str) -> None:
    check_equal_in_file_and_on_command_line(text)


@pytest.mark.parametrize("text", SPELLINGS, ids=lambda text: text[:12])
def test_text_that_other_yaml_readers_convert_has_the_value_of_the_command_line(text: str) -> None:
    check_equal_in_file_and_on_command_line(text)


def check_equal_in_file_and_on_command_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "c.yml")
        file.write_text(f"x: {text}\n")
        try:
            read = load_yaml(file)["x"]
        except UsageError as error:
            assert "line 1" in str(error)
            return
    for name, option in FIELDS.items():
        kind = (get_args(option.type) or (option.type,))[0]
        if kind is bool:  # on the command line the parser converts the text
            continue
        typed, filed = result(option, text), result(option, read)
        if kind in (int, float):
            assert filed == typed, name
        assert filed in (typed, REFUSED), name
        if typed != REFUSED and filed == REFUSED:
            assert text == "~" or not isinstance(read, str), name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        *((words, True) for words in ("--nesterov", "--nesterov true", "--nesterov=On", "--no-nesterov --nesterov")),
        *((words, False) for words in ("--nesterov no", "--nesterov=FALSE", "--no-nesterov")),
    ],
)
def test_a_boolean_flag_may_have_a_value(tmp_path: Path, words: str, expected: bool) -> None:
    file = tmp_path / "c.yml"
    file.write_text(f"arch: FC\nset: digits\nnesterov: {not expected}\n")
    assert args.parse(["--config", str(file), *words.split()]).optim.nesterov is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("010", 10), ("008", 8), ("1_000", 1000), ("+5", 5)),
        *((text, None) for text in ("0o10", "0x10", "1:30", "1e3", "5.", "None", "2001-01-01", "yes", "9" * 5000)),
    ],
)
@pytest.mark.parametrize("name", ["seed", "epochs", "hidden"])
def test_ints_of_a_file_are_decimal_or_refused_with_the_line_number(
    tmp_path: Path, name: str, text: str, expected: int | None
) -> None:
    file = tmp_path / "c.yml"
    values = [text, f"[{text}]", f"[7, {text}]"] if name == "hidden" else [text]
    for value in values:
        file.write_text(f"set: digits\narch: MLP\n{name}: {value}\n")
        if expected is None:
            with pytest.raises(UsageError, match=rf"\A{name}: [^\n]* in [^\n]*c.yml, line 3, but [^\n]*\Z"):
                args.parse(["--config", str(file)])
        else:
            got = args.parse(["--config", str(file)]).flat()[name]
            assert got == ([7, expected][-len(value.split(",")) :] if name == "hidden" else expected)


@pytest.mark.parametrize(("text", "expected"), [(".5", 0.5), ("05", 5.0), ("1e-1", 0.1), ("1_0", 10.0), (".inf", None)])
def test_floats_of_a_file_have_the_syntax_of_the_command_line(
    tmp_path: Path, text: str, expected: float | None
) -> None:
    file = tmp_path / "c.yml"
    file.write_text(f"set: digits\narch: Conv2\nlr: {text}\n")
    if expected is not None:
        assert args.parse(["--config", str(file)]).optim.lr == expected
    else:
        with pytest.raises(UsageError, match=r"lr: .inf in [^\n]*, line 3, but it must be a float"):
            args.parse(["--config", str(file)])


@pytest.mark.parametrize("text", ["7", "010", "2001-01-01", "yes", "1e3", "0x10"])
def test_text_options_keep_unquoted_values_as_written(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yml"
    file.write_text(f"set: digits\narch: Conv2\nname: {text}\n")
    assert args.parse(["--config", str(file)]).run.name == text


@pytest.mark.parametrize("text", ["no", "off", "false", "~", "None", "0"])
def test_error_for_an_invalid_choice_quotes_the_text_of_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yml"
    file.write_text(f"set: digits\narch: MLP\noptimizer: {text}\n")
    with pytest.raises(
        UsageError, match=rf"\Aoptimizer: '?{text}'? in [^\n]*, line 3[^\n]*, but it must be one of sgd"
    ):
        args.parse(["--config", str(file)])


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "true", "false", "True", "FALSE", "On"])
def test_booleans_accept_the_spellings_of_yaml(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yml"
    file.write_text(f"set: digits\narch: Conv2\nnesterov: {text}\n")
    assert args.parse(["--config", str(file)]).optim.nesterov == (text.lower() in ("yes", "on", "true"))
