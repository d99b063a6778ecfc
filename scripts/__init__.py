"""Commands that a user runs besides training, each as `python scripts/NAME.py`. Nothing imports a command."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the project's folder
sys.path.append(str(ROOT / "scripts"))  # `python -m scripts.NAME` then finds start.py too
RECORDS = ROOT / "scripts" / "records"  # measurements, from which tables are generated
REPRODUCE = ROOT / "scripts" / "reproduce"  # published results
CURVES = REPRODUCE / "pruning_curves.csv"  # published accuracies of pruned networks
