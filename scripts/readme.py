"""Write the generated parts of README.md and docs/: tables and a picture from records, tables of options.

Accuracies come from scripts/records/runs.csv (rows of results.csv), speeds from bench_*.json (scripts/bench.py --out),
published numbers from scripts/reproduce/targets.csv, and options from their declarations.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=False)

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts import ROOT
from scripts.parts import readme_options as options
from scripts.parts import readme_pictures as pictures
from scripts.parts import readme_records as records
from scripts.parts import readme_speed as speed
from scripts.parts import readme_systems as systems
from scripts.parts.pages import Tables, code, update
from utils.config.options import GROUPS
from utils.config.script_parser import Parser, command

EXAMPLES = ("own_network", "ternary_constraint", "shapes_set", "confidence_penalty", "json_recorder")
SUBNETS = ("SubnetConv", "GlobalSubnetConv")
PAGES: dict[Path, Tables] = {
    ROOT / "README.md": {"reasons": speed.reasons, "systems": systems.systems("docs/")},
    ROOT / "docs/index.md": {"systems": systems.systems("")},
    ROOT / "docs/concepts.md": {"constraints": options.constraints, "architectures": options.architectures},
    ROOT / "docs/configuration.md": {group: partial(options.options, group) for group in GROUPS},
    ROOT / "docs/data.md": {"sets": options.sets},
    ROOT / "docs/biprop.md": {
        "tickets": records.tickets,
        "measured": records.measured(*SUBNETS, of="^configs/(?!fashion)"),
    },
    ROOT / "docs/binary.md": {"measured": records.measured("BinaryConv"), "speed": speed.binary_speed},
    ROOT / "docs/sparse.md": {
        "lenet5": records.rules("lenet5", "low-data=0.2"),
        "conv4": records.rules("conv4", ""),
        "conv4-part": records.rules("conv4", "low-data=0.4"),
        "counting": speed.counting,
        "notebook": records.measured("SparseConv", of="cifar10_lenet_hebbian"),
    },
    ROOT / "docs/shift.md": {
        "published": records.published("DeepShift"),
        "measured": records.measured("ShiftQ", "ShiftPS"),
    },
    ROOT / "docs/extending.md": {name: partial(code, ROOT / f"examples/{name}.py") for name in EXAMPLES},
    ROOT / "docs/pruning.md": {"pruning": systems.pruning, "savings": systems.savings},
    ROOT / "docs/results.md": {
        "published": records.published(),
        "conditions": speed.conditions,
        "speed": speed.speed,
        "accuracy": records.accuracy,
    },
}


@command
def main(argv: Sequence[str]) -> int:
    """Write the generated parts of the pages. With --check write nothing and return 1 if one is out of date."""
    parser = Parser(__doc__)
    parser.add_check()
    check = parser.parse_args(argv).check
    return pictures.update_picture(check=check) | update(PAGES, "scripts/readme.py", check=check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
