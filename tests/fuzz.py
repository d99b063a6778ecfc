"""Generate valid and invalid configurations and command lines, and run them in this process through main.py.

python tests/fuzz.py --cases 20000 --seed 0

A case passes if main.py returns 0, 1 or 2, prints short printable lines and writes no unexpected file. Parsing the
options may take `LIMIT` seconds of CPU time, and the whole case `BUILDS` seconds. Each case is drawn from its own
number, so `--only SEED:NUMBER` repeats a case. The exit code is 1 if a case fails.
"""

import argparse
import contextlib
import io
import os
import random
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import args  # noqa: E402
import main  # noqa: E402
from args import FIELDS  # noqa: E402
from utils.config.fields import Ints, flags  # noqa: E402
from utils.errors import UsageError  # noqa: E402
from utils.stop_signal import restored_handlers  # noqa: E402

LIMIT, BUILDS = 2.0, 30.0  # seconds of CPU time
HANGS = 120  # seconds of wall-clock time
LONGEST_LINE, MOST_LINES = 2000, 120
SMALL = ("FC", "MLP", "CircuitMLP", "Conv2", "Conv2_BinAct", "LeNet5_Caffe", "cResNet20")
SEPARATE = {
    "config",
    "resume",
    "evaluate",
    "check",
    "dry_run",
    "multigpu",
    "download",
    "device",
}  # set by the case itself
LARGE = (10**6, 10**12, 2**31, 2**40, 2**63, 2**64, 10**30, 10**309, 10**5000)
WORDS = (
    "",
    " ",
    "~",
    "~/x",
    "~nobody-here/x",
    "$HOME/x",
    "${NONE}/y",
    "..",
    ".",
    "/",
    "a/b",
    "-",
    "--",
    "=1",
    "+1",
    "@x",
)
WORDS += ("null", "None", "True", "yes", "no", "on", "off", "nan", ".nan", "inf", "-.inf", "010", "008", "0x1F", "0b11")
WORDS += (
    "1_000",
    "1:30",
    "1e3",
    "1e400",
    ".5",
    "5.",
    "+3",
    "1,2",
    "1,,2",
    "[1, 2]",
    "a$\\bad{$b",
    "实验",
    "\x1b[31mred",
)
WORDS += ("a\nerror: forged", "a\tb", "\x00", "\ud800", "x" * 300, "x" * 5000, "&a [*a]", "!!python/object:os.system x")
OBJECTS = (
    None,
    True,
    False,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    [1, "x"],
    1.5,
    -1,
    0,
    1,
    float("nan"),
    float("inf"),
    1e308,
)


@dataclass
class Case:
    """One call of main.py: the text of the YAML file and the arguments besides --config."""

    text: bytes
    words: list[str]
    trains: bool = False


@dataclass
class Report:
    """Counts of exit codes, descriptions of the faults, and the slowest case."""

    codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")


def valid_value(draw: random.Random, name: str) -> Any:
    """Return a valid value of the option `name`."""
    option = FIELDS[name]
    kind, allowed = (get_args(option.type) or (option.type,))[0], option.metadata["allowed"]
    if not isinstance(allowed, str):
        return draw.choice(list(allowed))
    if kind is bool:
        return draw.random() < 0.5
    if kind is str:
        return draw.choice(["0:2:0.5", "none"]) if name == "sweep_on" else draw.choice(["a", "b c", "x1"])
    if kind == Ints:
        return [draw.choice([1, 4, 16]) for _ in range(draw.randint(1, 3))]
    return draw.choice([1, 2, 3, 8]) if kind is int else draw.choice([0.1, 0.5, 0.9, 1e-4, 1.0])


def invalid_value(draw: random.Random, name: str) -> Any:
    """Return an extreme value, an odd value or a value of another type."""
    make = draw.randrange(4)
    if make == 0:
        large = draw.choice(LARGE)
        return large * draw.choice([1, -1]) if draw.random() < 0.7 else [1, large]
    if make == 1:
        return draw.choice(WORDS)
    return draw.choice(OBJECTS) if make == 2 else valid_value(draw, draw.choice(list(FIELDS)))


def values(draw: random.Random, count: int, chance: float) -> dict[str, Any]:
    """Return values of `count` options by name, each invalid with probability `chance`."""
    names = draw.sample(sorted(FIELDS.keys() - SEPARATE), count)
    return {name: invalid_value(draw, name) if draw.random() < chance else valid_value(draw, name) for name in names}


def as_arguments(draw: random.Random, chosen: dict[str, Any]) -> list[str]:
    """Return the command-line arguments of the options, in any of their spellings."""
    words: list[str] = []
    for name, value in chosen.items():
        flag = draw.choice(flags(name, FIELDS[name]))
        text = ",".join(map(shortened, value)) if isinstance(value, list) else shortened(value)
        together = draw.random() < 0.3 and flag.startswith("--")
        if isinstance(value, bool):
            words.append(flag)
        else:
            words += [f"{flag}={text}"] if together else [flag, text]
    return words


def shortened(value: Any) -> str:
    """Return str(value), also for an int with more decimal digits than Python prints."""
    return hex(value) if isinstance(value, int) and value.bit_length() > 10_000 else str(value)


def damaged(draw: random.Random, text: bytes) -> bytes:
    """Return the text of a file with a few bytes removed, repeated or inserted."""
    data = bytearray(text)
    for _ in range(draw.randint(1, 4)):
        place = draw.randint(0, len(data))
        piece = draw.choice(
            [b"\x00", b"\xff\xfe", b"\t", b": ", b"- ", b"{", b"[" * 40, b"&a ", b"*a", b"? ", b"\r", b"'"]
        )
        cut = draw.randint(0, 6)
        data[place : place + cut] = draw.choice([b"", piece, bytes(data[place : place + cut]) * 2])
    return bytes(data)


def generate(draw: random.Random) -> Case:
    """Return a random case: base options, changes in the file and on the command line, and sometimes a damaged file."""
    content = {"arch": draw.choice([*FIELDS["arch"].metadata["allowed"]]), "set": "digits"}
    if trains := draw.random() < 0.03:  # only valid values, of a network that trains a step quickly
        content |= {"arch": draw.choice(SMALL), "epochs": 1, "batch_size": 16} | values(draw, draw.randint(0, 8), 0.0)
        content |= {"set": "digits", "arch": draw.choice(SMALL), "name": "x", "seed": 1}
        if "MLP" in content["arch"]:
            content["hidden"] = [16, 8]
        content["conv_type"] = draw.choice([*FIELDS["conv_type"].metadata["allowed"]])
        content["prune_rate"] = draw.choice([0.1, 0.5, -1])
        for path in ("log_dir", "results", "data", "pretrained"):
            content.pop(path, None)
        return Case(as_yaml(content), ["--dry-run", "1", "--device", "cpu", "--workers", "0"], trains)
    if draw.random() < 0.5:
        content |= {
            "conv_type": draw.choice([*FIELDS["conv_type"].metadata["allowed"]]),
            "prune_rate": draw.choice([0.5, -1]),
        }
    content |= values(draw, draw.randint(0, 6), draw.choice([0.0, 0.3, 1.0]))
    text = as_yaml(content)
    if draw.random() < 0.2:
        text = damaged(draw, text)
    words = as_arguments(draw, values(draw, draw.randint(0, 4), draw.choice([0.0, 0.3, 1.0])))
    if draw.random() < 0.1:
        words.insert(
            draw.randint(0, len(words)), draw.choice([*WORDS, "--lerning-rate", "-z", "--", "--seed=", "x.yml"])
        )
    return Case(text, [*words, "--check"])


def as_yaml(content: dict[str, Any]) -> bytes:
    """Return the options as YAML text."""
    lines = [f"{key}: {scalar(value)}\n" for key, value in content.items()]
    return "".join(lines).encode(errors="replace")


def scalar(value: Any) -> str:
    """Return one value in YAML's short form, with integers of any size."""
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return shortened(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def timed(work: Callable[[], int | None]) -> tuple[int, float, str]:
    """Return the exit code, the CPU seconds and the standard error of `work`. Exceptions of `work` propagate."""
    err, start = io.StringIO(), time.process_time()
    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            code = work() or 0
    except SystemExit as end:  # --help
        code = int(end.code or 0)
    finally:
        signal.alarm(0)
    return code, time.process_time() - start, err.getvalue()


def hangs(_number: int, _frame: object) -> None:
    raise AssertionError(f"it did not end within {HANGS} s")


def read(words: list[str]) -> None:
    """Parse the options without running anything."""
    with contextlib.suppress(UsageError):
        args.parse(words)


def run(case: Case, name: str, report: Report) -> None:
    """Run a case in an empty folder and add its result to `report`."""
    case_text = f"{name}: {case.text[:400]!r} {shlex.join(case.words)[:600]}"
    words = ["--config", "c.yml", *case.words]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("c.yml").write_bytes(case.text)
        try:
            _, reading, _ = timed(lambda: read(words))
            with restored_handlers():
                code, seconds, stderr = timed(lambda: main.main(words))
        except Exception:
            report.faults.append(f"{case_text}\n{traceback.format_exc()}")
            return
        left = sorted(str(path) for path in Path().rglob("*") if path.name != "c.yml")
    report.codes[code] += 1
    report.slowest = max(report.slowest, (reading, case_text))
    lines = stderr.splitlines()
    faults = {
        f"exit code {code}": code not in (0, 1, 2) or (code == 1 and not case.trains),
        f"{reading:.1f} s to read": reading > LIMIT,
        f"{seconds:.1f} s in all": seconds > BUILDS,
        f"{len(lines)} lines": len(lines) > MOST_LINES,
        "a long line": any(len(line) > LONGEST_LINE for line in lines),
        "a line that is not printable": not all(line.isprintable() for line in stderr.split("\n")),
        "no word of what is wrong": code != 0 and not lines,
        f"files left: {left[:5]}": bool(left) and not (case.trains and code != 2),
    }
    report.faults += [f"{case_text}\n  {what}; it said: {stderr[:600]}" for what, is_so in faults.items() if is_so]


def fuzz(cases: range, seed: int, *, progress: bool = False) -> Report:
    """Run the cases with the given numbers, each drawn from (seed, number)."""
    report = Report()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for number in cases:
        run(generate(random.Random(f"{seed}:{number}")), f"{seed}:{number}", report)
        if progress and number % 500 == 499:
            print(f"{number + 1} cases, {dict(report.codes)}, {len(report.faults)} faults", flush=True)
    return report


def from_command_line() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="SEED:NUMBER of one case")
    asked = parser.parse_args()
    seed, cases = asked.seed, range(asked.cases)
    if asked.only:
        seed, number = map(int, asked.only.split(":"))
        cases = range(number, number + 1)
    report = fuzz(cases, seed, progress=True)
    print("\n\n".join(report.faults))
    print(f"{len(cases)} cases, seed {seed}: exit codes {dict(report.codes)}, {len(report.faults)} faults")
    print(f"slowest: {report.slowest[0]:.2f} s, {report.slowest[1]}")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(from_command_line())
