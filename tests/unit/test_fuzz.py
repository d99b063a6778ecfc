"""A short form of tests/fuzz.py: generated configurations and command lines end in an exit code and short lines."""

import pytest

from tests.fuzz import fuzz


@pytest.mark.parametrize(
    ("first", "count"), [(0, 100), *(pytest.param(first, 500, marks=pytest.mark.slow) for first in (1000, 2000))]
)
def test_no_configuration_and_no_command_line_ends_badly(first, count):
    report = fuzz(range(first, first + count), seed=0)
    assert report.faults == []
    assert report.codes.total() == count and report.codes[0] and report.codes[2]
