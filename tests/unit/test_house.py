"""The structure of the code: layers of imports, no import cycles, and forbidden patterns per package."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {  # layer of the longest prefix of a module's name; docs/architecture.md shows them
    "utils": 0,
    "utils.config": 1,
    "models.registry": 1,
    "models.constraints.registry": 1,
    "trainers.registry": 1,
    "trainers.schedules": 1,
    "data.registry": 1,
    "utils.records.registry": 1,
    "args": 2,
    "utils.distributed": 3,
    "utils.records": 3,
    "models": 4,
    "data": 4,
    "trainers": 5,
    "trainers.build": 6,
    "trainers.resume": 6,
    "trainers.restore": 6,
    "trainers.load_trained": 6,
    "trainers.checkpoint_sources": 6,
    "trainers.checkpoint_entries": 6,
    "trainers.experiment": 6,
    "trainers.trained_run": 6,
    "featherweight": 7,
    "main": 7,
    "parallel_main": 7,
    "scripts": 8,
    "examples": 8,
}
EMPTY = {"utils", "utils.records", "trainers"}  # packages whose __init__ imports nothing
SEPARATE = {("models", "data"), ("data", "models")}


def load(name: str) -> ModuleType:
    """Import a module of .ci/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("sizes")
house = load("house")
CODE, _ = house.split(house.sources(ROOT))
GRAPH = house.graph_of({path: house.ast.parse(text) for path, text in CODE.items()})
FILES = [ROOT / path for path in CODE]


def floor(module: str) -> int:
    names = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return FLOORS[max(names, key=len)]


@pytest.mark.parametrize("module", GRAPH)
def test_modules_import_only_their_own_package_and_lower_layers(module: str) -> None:
    for other in GRAPH[module] - EMPTY:
        if module.startswith(f"{other}.") or other == "scripts":
            continue  # every import of a module also imports the __init__ of its package
        same_room = floor(other) == floor(module) and (
            module.split(".")[0] == other.split(".")[0] or floor(module) == 1
        )
        below = floor(other) < floor(module)
        assert same_room or below, f"{module} imports {other}"
        assert (module.split(".")[0], other.split(".")[0]) not in SEPARATE


def test_imports_have_no_cycles() -> None:
    assert house.circles(GRAPH) == []


FORBIDDEN = [  # (files, pattern, why)
    ("models/**/*.py", r"\b(cuda|autocast|rank)\b", "devices, precision and ranks belong to the Runtime"),
    (
        "trainers/methods/*.py",
        r"\b(cuda|autocast|rank|backward\()",
        "a method adds to the loop, no more",
    ),
    ("trainers/loop.py", r"prune_score|SubnetConv|Shift|print\(", "the loop knows no method and prints nothing"),
    ("trainers/*.py", r"conv_type ==|\"bn\" in|\.anomaly", "types come from the tables"),
    (
        "{models,data,trainers,scripts}/**/*.py",
        r"\btorch(\.\w+)*\._\w|\._(conv_|forward_pre|reversed_|schema\b|version\b|modules\b|parameters\b)|_use_new_zip",
        "private names of torch stand in utils/torch_compat.py, each with its reason",
    ),
    ("**/*.py", r"except:|except Exception: *pass|FIXME|TODO", "nothing is swallowed or left"),
    ("**/*.py", r"/(root|home|mnt|work)/\w", "no machine's paths"),
]


@pytest.mark.parametrize(("files", "pattern", "why"), FORBIDDEN)
def test_forbidden_patterns_do_not_occur_in_the_code(files, pattern, why):
    braces = re.search(r"\{(.*)\}", files)
    globs = [files.replace(braces[0], part) for part in braces[1].split(",")] if braces else [files]
    found = [p for glob in globs for p in ROOT.glob(glob) if p in FILES]
    assert found
    for path in found:
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
        hit = re.search(pattern, code)
        assert hit is None, f"{path.name}: {hit and hit[0]!r}: {why}"


def test_every_training_method_has_at_most_120_lines():
    methods = [path for path in FILES if path.parent.name == "methods" and path.name != "base.py"]
    assert len(methods) >= 6
    assert [(p.name, n) for p in methods if (n := p.read_text().count("\n")) > 120] == []


def test_only_the_training_loop_calls_backward():
    hits = [path for path, text in CODE.items() if ".backward()" in text and path.parts[0] != "scripts"]
    assert hits == [Path("trainers/loop.py")]


def test_importing_args_and_registries_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, args, trainers.registry; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
