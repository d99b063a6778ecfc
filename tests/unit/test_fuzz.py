"""A short run of tests/fuzz.py: generated configurations and command lines end with an exit code and short lines."""

import subprocess
import sys

import pytest

from tests import fuzz as module
from tests.fuzz import fuzz


@pytest.mark.parametrize(
    ("first", "count"), [(0, 100), *(pytest.param(first, 500, marks=pytest.mark.slow) for first in (1000, 2000))]
)
def test_generated_configurations_and_command_lines_cause_no_fault(first, count):
    report = fuzz(range(first, first + count), seed=0)
    assert report.faults == []
    assert report.codes.total() == count and report.codes[0] and report.codes[2]


def test_the_fuzzer_runs_as_a_command(tmp_path):
    words = [sys.executable, module.__file__, "--cases", "2", "--seed", "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "2 cases" in done.stdout, done.stderr
