"""Measure the structure of one or more checkouts, one column per checkout.

    python .ci/house.py [CHECKOUT ...] [--starts N]

Imports include those inside functions and under TYPE_CHECKING. Start-up times are the median and the quartiles of N
starts; the checkouts and commands take turns.
"""

import argparse
import ast
import io
import re
import statistics
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

from sizes import functions, p95, sources, split

Graph = dict[str, set[str]]
Definition = ast.FunctionDef | ast.ClassDef
NO_VERB = re.compile(r"(What|Whether|How|Those|Which|Where|Who)\b")
COMMANDS = {
    "`python -c pass`": ["-c", "pass"],
    "`--help`": ["main.py", "--help"],
    "misspelt option": ["main.py", "--config", "configs/quickstart.yml", "--prune-rte", "0.5"],
}


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of everything imported, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph_of(trees: dict[Path, ast.Module]) -> Graph:
    """Return the modules of the project that each module imports."""
    modules = {module_of(path) for path in trees}
    graph: Graph = {}
    for path, tree in trees.items():
        here, others = module_of(path), set(imports(tree))
        found = {name if name in modules else name.rpartition(".")[0] for name in others}
        graph[here] = (found & modules) - {here}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import one another, directly or through others."""

    reach = {name: set(others) for name, others in graph.items()}
    for middle in graph:  # Warshall's closure
        for others in reach.values():
            others |= reach[middle] if middle in others else set()
    groups = {frozenset(n for n in reach[m] if m in reach[n]) for m in graph if m in reach[m]}
    return sorted(sorted(group) for group in groups)


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Yield the public functions and classes of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def docstrings(tree: ast.Module) -> list[str]:
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | Definition)]
    return [text for node in documented if (text := ast.get_docstring(node))]


def comments(text: str) -> int:
    """Count the comments that are no instructions to a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [t.string for t in tokens if t.type == tokenize.COMMENT]
    return sum(not re.match(r"# (noqa|type: ignore|pragma)", comment) for comment in found)


def spread(values: list[int]) -> str:
    return f"{statistics.median(values):g} · {p95(values)} · {max(values)}"


def measure(root: Path) -> dict[str, str]:
    """Return the measures of a checkout by their names."""
    code, tests = split(sources(root))
    trees = {path: ast.parse(text) for path, text in code.items()}
    lines = {path: text.count("\n") for path, text in code.items()}
    graph, total = graph_of(trees), sum(lines.values())
    named = [node for tree in trees.values() for node in public(tree)]
    texts = [text for tree in trees.values() for text in docstrings(tree)]
    rows = {"all code": f"{total:,} lines in {len(code)} files"}
    rows["all tests"] = f"{sum(text.count(chr(10)) for text in tests.values()):,} lines in {len(tests)} files"
    for package in sorted({path.parent for path in code}):
        sizes = [n for path, n in lines.items() if path.parent == package]
        rows[f"`{package}/`" if package.parts else "top level"] = f"{sum(sizes):,} in {len(sizes)}"
    rows["lines per function: median · p95 · max"] = spread([n for text in code.values() for _, n in functions(text)])
    rows["lines per file: median · p95 · max"] = spread(list(lines.values()))
    rows["import circles"] = "; ".join(" ↔ ".join(circle) for circle in circles(graph)) or "none"
    rows["imports per module: median · p95 · max"] = spread([len(others) for others in graph.values()])
    rows["most imports"] = ", ".join(sorted(graph, key=lambda name: -len(graph[name]))[:3])
    share = sum(ast.get_docstring(node) is not None for node in named) / len(named)
    rows["public functions and classes with a docstring"] = f"{share:.0%} of {len(named)}"
    verbless = sum(bool(NO_VERB.match(text)) for text in texts)
    rows["docstrings that begin with What, Whether, How …"] = f"{verbless} of {len(texts)}"
    rows["comments per 100 lines"] = f"{100 * sum(map(comments, code.values())) / total:.1f}"
    return rows


def start_up(roots: list[Path], count: int) -> dict[str, list[str]]:
    """Return the seconds from start to exit, per command one cell per checkout."""
    seconds: dict[tuple[str, Path], list[float]] = {(name, root): [] for name in COMMANDS for root in roots}
    for _ in range(count):
        for (name, root), taken in seconds.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *COMMANDS[name]], cwd=root, capture_output=True)
            taken.append(time.perf_counter() - began)
    cells: dict[str, list[str]] = {}
    for (name, _), taken in seconds.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        cells.setdefault(f"{name}: seconds (n = {count})", []).append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--starts", type=int, default=21)
    given = parser.parse_args()
    columns = [measure(root) for root in given.checkout]
    names = sorted({name for column in columns for name in column}, key=lambda name: (name not in columns[-1], name))
    rows = {name: [column.get(name, "–") for column in columns] for name in names}
    rows |= start_up(given.checkout, given.starts)
    head = ["measure", *map(str, given.checkout)]
    for line in (head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
