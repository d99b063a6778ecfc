"""Check the size limits: functions, files, and lines of tests per line of code. Exit with 1 and one line per fault."""

import ast
import subprocess
import sys
from pathlib import Path

LONGEST_FUNCTION, P95_FUNCTION = 60, 25
LONGEST_FILE, P95_FILE = 350, 250
LONGEST_TEST_FILE = 500
TESTS_PER_LINE = 0.7


def p95(sizes: list[int]) -> int:
    """Return the 95th percentile, an element of `sizes`."""
    return sorted(sizes)[int(0.95 * (len(sizes) - 1))]


def sources(root: Path) -> dict[Path, str]:
    """Return the text of every tracked Python file under `root`, by its relative path."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "*.py"], capture_output=True, text=True, check=True)
    return {Path(f): (root / f).read_text() for f in listed.stdout.split() if (root / f).exists()}


def split(texts: dict[Path, str]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return (code, tests). The scripts in .ci belong to neither."""
    code = {f: text for f, text in texts.items() if f.parts[0] not in ("tests", ".ci")}
    return code, {f: text for f, text in texts.items() if f.parts[0] == "tests"}


def functions(text: str) -> list[tuple[str, int]]:
    """Return (name, lines) of every function, nested functions included."""
    nodes = ast.walk(ast.parse(text))
    return [(n.name, (n.end_lineno or 0) - n.lineno + 1) for n in nodes if isinstance(n, ast.FunctionDef)]


def main() -> int:
    """Print the faults, or the totals where there are none."""
    code, tests = split(sources(Path()))
    lines, test_lines = ({f: text.count("\n") for f, text in part.items()} for part in (code, tests))
    sized = [(f, name, size) for f, text in code.items() for name, size in functions(text)]
    ratio = sum(test_lines.values()) / sum(lines.values())
    faults = [f"{f}: {n} lines, at most {LONGEST_FILE}" for f, n in lines.items() if n > LONGEST_FILE]
    faults += [f"{f}: {n} lines, at most {LONGEST_TEST_FILE}" for f, n in test_lines.items() if n > LONGEST_TEST_FILE]
    faults += [f"{f}: {name} has {n} lines, at most {LONGEST_FUNCTION}" for f, name, n in sized if n > LONGEST_FUNCTION]
    for what, value, limit in (
        ("95 % of functions", p95([size for _, _, size in sized]), P95_FUNCTION),
        ("95 % of files", p95(list(lines.values())), P95_FILE),
    ):
        if value > limit:
            faults.append(f"{what} have up to {value} lines, at most {limit}")
    if ratio < TESTS_PER_LINE:
        faults.append(f"{ratio:.2f} lines of tests per line of code, at least {TESTS_PER_LINE}")
    print("\n".join(faults) or f"sizes hold: {sum(lines.values())} lines of code, {ratio:.2f} of tests per line")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
