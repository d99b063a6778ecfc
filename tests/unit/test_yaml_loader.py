"""YAML files that are not a configuration are refused quickly in one short line."""

import os
import time
from pathlib import Path

import pytest

import args
from utils.config.yaml_loader import Bare, load_yaml
from utils.errors import UsageError
from utils.text import MOST_PROBLEMS, nearest, shown

DENSE = "set: digits\narch: Conv2\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LONG = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
# name -> (content of the file, part of the message)
REFUSED = {
    "aliases of aliases": (
        LAUGHS + "lr: *i\n",
        r"line \d cannot be read: its aliases \(\*name\) expand to more than 250,000",
    ),
    "merges of merges": (MERGES, r"line \d cannot be read: its aliases \(\*name\) expand to more than 250,000"),
    "a long text many times": (LONG, r"its aliases \(\*name\) expand to more than 250,000 characters"),
    "a list within itself": ("a: &a [*a]\n", "its aliases .* expand to"),
    "a mapping within itself": ("&a\na: *a\n", "its aliases .* expand to"),
    "20,000 keys": ("".join(f"k{i}: 1\n" for i in range(20_000)), "it holds more than 5,000 values"),
    "a long list": ("hidden: [" + "1," * 100_000 + "1]", "it holds more than 5,000 values"),
    "deep lists": ("a: " + "[" * 100_000, "it is more than 20 levels deep"),
    "deep mappings": ("a: " + "{a: " * 1000, "it is more than 20 levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(400)), "it is more than 20 levels deep"),
    "a list as a key": (DENSE + "? [a, b]\n: c\n", "line 3 cannot be read: a list or a mapping cannot be a key"),
    "a mapping as a key": (DENSE + "? {a: b}\n: c\n", "line 3 cannot be read: a list or a mapping cannot be a key"),
    "a list as an inner key": (
        DENSE + "lr:\n  ? [a]\n  : c\n",
        "line 4 cannot be read: a list or a mapping cannot be a key",
    ),
    "aliases as a key": (
        LAUGHS + "? *i\n: 1\n",
        "line 10 cannot be read: a list or a mapping cannot be a key|its aliases .* expand to",
    ),
    "a huge file": ("#" * 300_000, "more than 250,000 bytes; a configuration has a few thousand"),
    "bytes": (bytes(range(256)), "it is not text: it has a zero byte"),
    "a byte 0": ("a: \0\n", "it is not text: it has a zero byte"),
    "UTF-16": (DENSE.encode("utf-16"), "it is UTF-16; it must be UTF-8"),
    "Latin 1": ("name: é\n".encode("latin-1"), "can't decode byte 0xe9"),
    "two documents": (DENSE + "---\n" + DENSE, "line 3 cannot be read: but found another document"),
    "a tag": ("seed: !!set {a, b}\n", "line 1 cannot be read: could not determine a constructor"),
    "code": ("lr: !!python/object/apply:os.system [ls]\n", "line 1 cannot be read: could not determine a constructor"),
    "an int that is a list": ("seed: !!int [1]\n", "line 1 cannot be read: expected a scalar node"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_yaml_file_is_refused_quickly_in_one_short_line(name: str, tmp_path: Path) -> None:
    content, reason = REFUSED[name]
    (tmp_path / "c.yml").write_bytes(content.encode() if isinstance(content, str) else content)
    start = time.monotonic()
    with pytest.raises(UsageError, match=rf"\Aconfig: [^\n]*({reason})[^\n]*; pass a YAML file\Z") as error:
        args.parse(["--config", str(tmp_path / "c.yml")])
    assert time.monotonic() - start < 20, "the limits make this a second instead of minutes"
    assert len(str(error.value)) < 700


def test_a_configuration_can_be_read_from_a_pipe() -> None:
    ends = os.pipe()  # as <(command) of the shell
    os.write(ends[1], DENSE.encode())
    os.close(ends[1])
    assert load_yaml(f"/dev/fd/{ends[0]}") == {"set": "digits", "arch": "Conv2"}
    os.close(ends[0])


def test_many_unknown_keys_are_counted_and_the_first_ones_listed(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(DENSE + "".join(f"lr_{i}: 1\n" for i in range(2000)))
    with pytest.raises(UsageError) as error:
        args.parse(["--config", str(tmp_path / "c.yml")])
    head, *lines, rest = str(error.value).splitlines()
    assert (head, len(lines), rest) == ("2,000 problems:", MOST_PROBLEMS, f"and {2000 - MOST_PROBLEMS:,} more")
    assert lines[0].startswith("lr_0: unknown option in ") and "line 3 (did you mean 'lr'?)" in lines[0]


def test_a_line_break_in_a_key_cannot_forge_an_error_line(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(DENSE + '"x\\nerror: forged": 1\n? ' + "k" * 900 + "\n: 1\n")
    with pytest.raises(UsageError) as error:
        args.parse(["--config", str(tmp_path / "c.yml")])
    assert len(str(error.value).splitlines()) == 3 and r"x\nerror: forged" in str(error.value)
    assert max(map(len, str(error.value).splitlines())) < 500


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_crlf_line_ends_are_accepted(tmp_path: Path, start: bytes, end: str) -> None:
    (tmp_path / "c.yml").write_bytes(start + DENSE.replace("\n", end).encode())
    assert load_yaml(tmp_path / "c.yml") == {"set": "digits", "arch": "Conv2"}


def test_anchors_and_aliases_are_supported(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("set: digits\narch: MLP\nhidden: &h [30, 20]\nactivation_bits: *h\n")
    options = args.parse(["--config", str(tmp_path / "c.yml"), "--activation-bits", "8,8"])
    assert options.model.hidden == (30, 20)


def test_unquoted_values_except_null_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(
        "a: 010\nb: 1:30\nc: 2001-01-01\nd: no\ne: '010'\nf: ~\ng: null\nh:\ni: [08, 0x1f]\n"
    )
    content = load_yaml(tmp_path / "c.yml")
    texts = ["010", "1:30", "2001-01-01", "no", "010", "~", None, None, ["08", "0x1f"]]
    assert [*content.values()] == texts
    assert [isinstance(value, Bare) for value in content.values()] == [True] * 4 + [False, True] + [False] * 3


def test_long_values_are_shortened_in_messages() -> None:
    for value in (10**5000, "9" * 5000, ["x" * 100] * 1000, "\0" * 500, {1: "y" * 10**6}):
        assert len(shown(value)) < 240 and shown(value).isprintable()
    assert nearest("lr" * 10**6, ["lr"]) == ""
