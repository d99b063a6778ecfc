#!/usr/bin/env bash
# BIPROP's curves on CIFAR-10: Conv2/4/6/8, MPT-1/32 and MPT-1/1, six prune rates (the fraction KEPT), three seeds.
# Prints a table at the end. The same command resumes after an interruption. Paths are relative to the project.
# Examples:
#   bash scripts/mpt_cifar_script.sh --dry-run
#   DATA=~/datasets LOG=/scratch/mpt SEEDS="1 2" JOBS=4 bash scripts/mpt_cifar_script.sh --prune-rate 0.5
set -euo pipefail
DATA=${DATA:-./datasets}
LOG=${LOG:-runs}
SEEDS=${SEEDS:-1 2 3}
JOBS=${JOBS:-1}
EPOCHS=${EPOCHS:-250}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
configs=()
for depth in 2 4 6 8; do
  configs+=("configs/smallscale/conv$depth/conv${depth}_kn_unsigned.yml")         # MPT-1/32
  configs+=("configs/smallscale/conv$depth/conv${depth}_BinAct_kn_unsigned.yml")  # MPT-1/1
done

# The seed is the first axis and varies slowest, so a third of the time gives the whole table for one seed.
read -ra seeds <<< "$SEEDS"
exec "$PYTHON" scripts/sweep.py --seed "${seeds[@]}" --config "${configs[@]}" --prune-rate 0.8 0.6 0.5 0.4 0.2 0.1 \
  --epochs "$EPOCHS" --data "$DATA" --log-dir "$LOG" --results "$LOG/results.csv" --jobs "$JOBS" "$@"
