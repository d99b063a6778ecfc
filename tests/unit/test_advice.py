"""The parsers accept the advice of messages, and messages escape text from files."""

import ast
import pickle
import re
import shlex
import struct
from pathlib import Path

import pytest
import torch
import yaml

from args import FIELDS, parse
from data import load
from data.readers import cifar
from models.registry import ARCHS
from scripts import report
from tests.unit.test_data_sources import ROWS, write_cifar_py
from utils import exit_codes
from utils.config.biprop import DEAD
from utils.config.fields import flags
from utils.errors import UsageError
from utils.text import shown

ROOT = Path(__file__).parents[2]
OTHERS = {
    "--help",
    "--logdir",
    "--nproc-per-node",
    "--standalone",
    "--porcelain",
    "--untracked-files",
    "--no",
}  # flags of torchrun, git and TensorBoard


def literals(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def sources():
    rooms = ("data", "models", "trainers", "utils", "scripts")
    return [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]


def test_messages_name_only_existing_flags():
    parsers = [*(ROOT / "scripts").glob("*.py"), ROOT / "utils/config/script_parser.py"]
    scripts = set().union(*(set(literals(path)) for path in parsers))
    machine = {"--flops", "--layer", "--between"}  # flags of scripts/scaling.py, made from the fields of its Cluster
    sweep = {"--jobs", "--only", "--table"}
    known = {flag for name, option in FIELDS.items() for flag in flags(name, option)} | OTHERS | machine | sweep
    known |= {f"--{name.replace('_', '-')}" for name in DEAD} | {word for word in scripts if word.startswith("--")}
    named = {
        (path.name, flag.replace("_", "-"))
        for path in sources()
        for text in literals(path)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*\w", text)
    }
    assert len(named) > 100 and [(name, flag) for name, flag in sorted(named) if flag not in known] == []


FAULTS = [
    ["--arch", "resnet18"],
    ["--arch", "Conv4Wid"],
    ["--set", "cifar10"],
    ["--set", "imagefolder"],
    ["--conv-type", "subnet_conv"],
    ["--optimizer", "Adam"],
    ["--precision", "fp16"],
    ["--leraning-rate", "0.1"],
    ["--batchsize", "12"],
    ["--pretrainde", "x"],
    ["my config.yml"],
    ["$(reboot).yaml"],
    ["--nesterov", "--optimizer", "adam"],
    ["--score-init-constant", "0.5"],
    ["--trainer", "binary"],
    ["--trainer", "sparse"],
    ["--jsd"],
]
APPLIED = {  # pattern of the advice in a message -> the arguments after following it
    r"did you mean (--config .+)\?": lambda m, argv: [w for w in argv if w not in m[1]] + shlex.split(m[1]),
    r"did you mean '(--[\w-]+)'\?": lambda m, argv: [m[1], *argv[1:]],
    r"did you mean '(\w+)'\?": lambda m, argv: [argv[0], m[1]],
    r"but it needs (\w+) (\w+)(?: or|:|,|$)": lambda m, argv: [*argv, f"--{m[1].replace('_', '-')}", m[2]],
    r"but it needs augmix or gaussian_aug": lambda _, argv: [*argv, "--augmix"],
}


def problems(argv, config):
    try:
        parse([*argv, *([] if "--config" in argv else ["--config", config])])
    except UsageError as error:
        return [line for line in str(error).splitlines() if not line.endswith(" problems:")]
    return []


@pytest.mark.parametrize("argv", FAULTS, ids=" ".join)
def test_the_advice_of_an_error_message_resolves_the_error(config, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    for name in ("my config.yml", "$(reboot).yaml"):
        config(name)
    before = problems(argv, config())
    assert before
    advised = [(re.search(p, line, re.M), act) for line in before for p, act in APPLIED.items() if re.search(p, line)]
    if not advised:
        assert argv == ["--precision", "fp16"] and "one of auto, fp32, bf16" in before[0]
        return
    match, act = advised[0]
    after = problems(act(match, argv), config())
    assert match.string not in after and not any("unknown" in line or "must be" in line for line in after), after


@pytest.mark.parametrize("name", ARCHS)
def test_error_for_a_lower_case_architecture_suggests_its_name(config, name):
    (line,) = problems(["--arch", name.lower()], config()) or [None]
    assert name == name.lower() or f"did you mean {name!r}?" in line


# --- text from files


@pytest.fixture
def small_cifar(monkeypatch):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", ROWS)


FORGED = "a\x1b[2J\rb\nerror: forged\u202e"


@pytest.fixture
def reported(monkeypatch):
    lines = []
    monkeypatch.setattr(exit_codes.console, "write_error", lines.append)
    return lambda work: (exit_codes.run_program(work), [lines.pop()])


@pytest.mark.parametrize(
    "values",
    [{FORGED: 1}, {"arch": FORGED}, {"lr": FORGED}, {"name": FORGED}, {"prune_rate": FORGED}, {"epochs": "9" * 10_000}],
    ids=["key", "choice", "number", "text", "rate", "long"],
)
def test_hostile_config_values_are_reported_escaped_on_one_line(program, config, tmp_path, values):
    path = tmp_path / "config.yml"
    known = {key: value for key, value in yaml.safe_load(Path(config()).read_text()).items() if key not in values}
    path.write_text(yaml.safe_dump(known | values))
    code, out, err = program("--config", path)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")
    assert not {"\x1b", "\r", "\u202e"} & {*err} and len(err) < 1600


def test_a_hostile_yaml_tag_is_reported_escaped_on_one_line(program, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text("arch: !%1b[2J%0aerror:%20forged x\n")
    code, _, err = program("--config", path)
    assert (code, err.count("\n")) == (2, 1) and "\x1b" not in err and "\\x1b[2J\\nerror: forged" in err


def test_a_hostile_metrics_column_is_reported_escaped_on_one_line(program, config, tmp_path, capsys):
    program("--config", config(epochs=1))
    path = tmp_path / "runs/ticket/prune-rate=0.5/ticket/metrics.csv"
    header, row = path.read_text().splitlines()
    path.write_text(f'{header},"{FORGED}"\n{row},1\n', newline="")
    assert report.main([str(path.parent), "--measure", "none"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a\\x1b[2J\\rb\\nerror: forged\\u202e" in err


def test_an_exponentially_nested_list_is_shown_in_short():
    value = []
    for _ in range(60):
        value = [value, value]
    text_shown = shown(value)
    assert text_shown.startswith("[[[[") and len(text_shown) < 300 and "\n" not in text_shown
    assert shown([1, "x", None]) == "[1, 'x', None]" and "\n" not in shown(torch.ones(3, 3))


def test_a_line_break_in_a_quoted_name_cannot_forge_an_error_line(reported):
    def work():
        raise UsageError(f"file {FORGED} is bad")

    def several():
        raise UsageError("2 problems:\none\ntwo")

    # The stream escapes the other control characters.
    assert reported(work) == (2, ["error: file a\x1b[2J\rb\\nerror: forged\u202e is bad"])
    assert reported(several) == (2, ["error: 2 problems:\none\ntwo"])


def test_a_hostile_global_of_a_pickle_is_reported_escaped_on_one_line(tmp_path, small_cifar):
    write_cifar_py(tmp_path)
    name = "x\x1b[2J\nerror: forged" + "y" * 10**5
    text = b"\x8c\2os" + b"X" + struct.pack("<I", len(name)) + name.encode() + b"\x93."
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"\x80\4" + text)
    with pytest.raises(UsageError, match=r"refers to os\.x") as caught:
        load("CIFAR10", tmp_path)
    assert not {"\n", "\x1b"} & {*str(caught.value)} and len(str(caught.value)) < 600


def test_an_exponentially_nested_array_shape_is_reported_on_one_line(tmp_path, small_cifar):
    """Fifty tuples, each twice in the next one."""
    write_cifar_py(tmp_path)
    path, shape = tmp_path / "cifar-10-batches-py/data_batch_1", ()
    for _ in range(50):
        shape = (shape, shape)
    dtype = b"cnumpy\ndtype\nX\2\0\0\0u1K\0K\1\x87R"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85X\1\0\0\0b\x87R"
    array += b"(K\1" + pickle.dumps(shape, protocol=2)[2:-1] + dtype + b"\x89X\0\0\0\0tb"
    path.write_bytes(b"\x80\2}(X\4\0\0\0data" + array + b"X\6\0\0\0labels](K\1eu.")
    with pytest.raises(
        UsageError, match=r"1 labels and an array of shape \(a tuple, a tuple\) and dtype u1; 6 labels and shape"
    ):
        load("CIFAR10", tmp_path)
