"""The house keeps its order: imports point downwards, and each room leaves to the others what is theirs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {"args": 0, "utils": 1, "models": 2, "data": 2, "trainers": 3, "main": 5, "parallel_main": 5, "scripts": 6}
FILES = [
    p
    for name in FLOORS
    for p in ([ROOT / f"{name}.py"] if name in ("args", "main", "parallel_main") else (ROOT / name).rglob("*.py"))
]


def floor(module):
    if module in ("utils.choices", "utils.declared", "utils.paths", "utils.rules"):
        return -1  # what args.py is made of
    return 4 if module == "trainers.experiment" else FLOORS.get(module.split(".")[0])


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "trainers")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downwards(path):
    here = module_of(path)
    for other in imports(path):
        if floor(other) is not None and other != "utils":
            same_room = other.split(".")[0] == here.split(".")[0] and floor(other) <= floor(here)
            assert same_room or floor(other) < floor(here), f"{here} imports {other}"


FORBIDDEN = [  # (files, pattern, why)
    ("models/**/*.py", r"\b(cuda|autocast|rank)\b", "devices, precision and ranks belong to the Runtime"),
    (
        "trainers/{default,prune_score,binary,weight_sweep,statistics,sparse,shift,method}.py",
        r"\b(cuda|autocast|rank|backward\()",
        "a method adds to the loop, no more",
    ),
    ("trainers/loop.py", r"prune_score|SubnetConv|Shift|print\(", "the loop knows no method and prints nothing"),
    ("trainers/*.py", r"conv_type ==|\"bn\" in|\.anomaly", "types come from the tables"),
    ("**/*.py", r"except:|except Exception: *pass|FIXME|TODO", "nothing is swallowed or left"),
    ("**/*.py", r"/(root|home|mnt|work)/\w", "no machine's paths"),
]


@pytest.mark.parametrize(("files", "pattern", "why"), FORBIDDEN)
def test_each_room_leaves_to_the_others_what_is_theirs(files, pattern, why):
    braces = re.search(r"\{(.*)\}", files)
    globs = [files.replace(braces[0], part) for part in braces[1].split(",")] if braces else [files]
    found = [p for glob in globs for p in ROOT.glob(glob) if p in FILES]
    assert found
    for path in found:
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
        hit = re.search(pattern, code)
        assert hit is None, f"{path.name}: {hit and hit[0]!r}: {why}"


def test_what_a_method_adds_is_short():
    methods = [ROOT / "trainers" / f"{name}.py" for name in ("default", "prune_score", "binary", "sparse", "shift")]
    assert [(p.name, n) for p in methods if (n := p.read_text().count("\n")) > 120] == []


def test_only_the_loop_trains():
    hits = [module_of(p) for p in FILES if ".backward()" in p.read_text() and "scripts" not in p.parts]
    assert hits == ["trainers.loop"]


def test_help_is_read_without_torch():
    assert not {"torch", "numpy"} & {name.split(".")[0] for name in imports(ROOT / "args.py")}
