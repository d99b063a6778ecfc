"""The sizes to hold: functions, files, and tests per line of code. Exits with 1 and a line for each that does not."""

import ast
import subprocess
import sys
from pathlib import Path

LONGEST_FUNCTION, P95_FUNCTION = 60, 25
LONGEST_FILE, P95_FILE = 350, 250
LONGEST_TEST_FILE = 500
TESTS_PER_LINE = 0.7


def p95(sizes: list[int]) -> int:
    return sorted(sizes)[int(0.95 * (len(sizes) - 1))]


def functions(path: Path) -> list[tuple[str, int]]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [(n.name, (n.end_lineno or 0) - n.lineno + 1) for n in nodes if isinstance(n, ast.FunctionDef)]


def main() -> int:
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    lines = {Path(f): Path(f).read_text().count("\n") for f in listed if Path(f).exists()}
    code = {f: n for f, n in lines.items() if f.parts[0] not in ("tests", ".ci")}
    tests = {f: n for f, n in lines.items() if f.parts[0] == "tests"}
    faults = [f"{f}: {n} lines, at most {LONGEST_FILE}" for f, n in code.items() if n > LONGEST_FILE]
    faults += [f"{f}: {n} lines, at most {LONGEST_TEST_FILE}" for f, n in tests.items() if n > LONGEST_TEST_FILE]
    sizes = []
    for file in code:
        for name, size in functions(file):
            sizes.append(size)
            if size > LONGEST_FUNCTION:
                faults.append(f"{file}: {name} has {size} lines, at most {LONGEST_FUNCTION}")
    for what, value, limit in (
        ("95 % of functions", p95(sizes), P95_FUNCTION),
        ("95 % of files", p95(list(code.values())), P95_FILE),
    ):
        if value > limit:
            faults.append(f"{what} have up to {value} lines, at most {limit}")
    ratio = sum(tests.values()) / sum(code.values())
    if ratio < TESTS_PER_LINE:
        faults.append(f"{ratio:.2f} lines of tests per line of code, at least {TESTS_PER_LINE}")
    print("\n".join(faults) or f"sizes hold: {sum(code.values())} lines of code, {ratio:.2f} of tests per line")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
