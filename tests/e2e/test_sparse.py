"""Complete runs of trainer `sparse`: number of connections, records, printed densities, bit-exact resumption."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainers.callbacks import RunRecorder

ROOT = Path(__file__).parents[2]
QUICK = ROOT / "configs/sparse/quick.yml"
SPARSE = {"arch": "Conv2", "set": "digits", "conv_type": "SparseConv", "batch_size": 90, "low_data": 0.3}
SPARSE |= {"epochs": 3, "lr": 0.05, "seed": 1, "precision": "fp32"}
RULES = [  # options per run
    {"update_interval": 2},
    {"density": 0.05, "drop": "correlation", "grow": "random", "progress_interval": 2, "optimizer": "adam", "lr": 1e-3},
    {"density": 0.2, "drop": "magnitude", "grow": "gradient", "progress_interval": 4, "density_schedule": "cubic"},
]


@pytest.fixture
def sparse(tmp_path):
    """Return a function that writes the config of a quick sparse run and returns its path."""

    def write(**changes):
        path = tmp_path / "sparse.yml"
        path.write_text(yaml.safe_dump(SPARSE | changes))
        return path

    return write


def directory(path, density):
    return path / "runs/sparse" / (f"prune-rate={density}" if density else "") / "sparse"


def last(run):
    return torch.load(run / "checkpoints/last.pt", weights_only=True)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.get("drop", "hebbian"))
def test_a_run_stopped_in_every_epoch_equals_an_uninterrupted_one(program, sparse, tmp_path, monkeypatch, rules):
    path = sparse(**rules)
    assert program("--config", path, "--name", "whole")[0] == 0
    run = directory(tmp_path, rules.get("density"))
    # (calls of stop_asked that return False, finished batches of the epoch's five at the stop)
    for answers, step in ((2, 3), (4, 2), (4, 1)):
        with monkeypatch.context() as patched:
            asked = iter(range(10**6))
            patched.setattr(RunRecorder, "stop_asked", lambda self, asked=asked, n=answers: next(asked) >= n)
            assert program("--config", path, "--resume", "auto")[0] == 75
        assert last(run)["step"] == step
    assert program("--resume", run)[0] == 0
    whole, stopped = last(run.parent / "whole"), last(run)
    for part in ("model", "optimizer", "method", "rng"):
        assert same(whole[part], stopped[part]), part


def test_the_density_of_every_layer_is_in_the_checkpoint_and_in_tensorboard(program, sparse, tmp_path):
    path = sparse(density=0.05, progress_interval=2, layer_density="erdos_renyi_kernel")
    code, out, _ = program("--config", path)
    assert code == 0 and "18,384 of 367,680 weights kept (5.00 %), 95.00 % pruned" in out
    run = directory(tmp_path, 0.05)
    state = last(run)["model"]
    masks = {key.removesuffix(".constraint.mask"): value for key, value in state.items() if key.endswith("mask")}
    assert len(masks) == 5 and sum(int(mask.sum()) for mask in masks.values()) == 18384
    assert all(not state[f"{name}.weight"][mask == 0].any() for name, mask in masks.items())
    board = EventAccumulator(str(run / "logs")).Reload()
    for name, mask in masks.items():
        densities = [event.value for event in board.Scalars(f"weights/density_{name}")]
        assert densities == [pytest.approx(float(mask.mean()))] * 3
    assert program("--resume", run, "--evaluate")[0] == 0


def test_the_quick_config_learns_the_digits_with_a_tenth_of_the_weights(program, tmp_path):
    code, out, _ = program("--config", QUICK)
    assert code == 0 and "(10.00 %)" in out
    with (tmp_path / "runs/results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["Last Epoch Test Top 1"]) > 90 and row["Trainer"] == "sparse"  # 97 in our runs; 10 is chance


@pytest.mark.parametrize(
    ("words", "coming", "kept"),
    [
        ((), "; the density of SparseConv falls at the first rewiring", "  kept 14.53%"),
        (("--density", 0.1, "--progress-interval", 2), "", ""),
        (("--no-sparse-hold",), "", ""),
        (
            ("--drop", "random", "--grow", "random", "--live-share", 0.3),
            "; the density of SparseConv falls at the first rewiring",
            "  kept ",
        ),
        (
            ("--density", 0.1, "--density-schedule", "cubic", "--progress-interval", 2),
            "; the density of SparseConv falls to 10 %",
            "  kept 10.00%",
        ),
    ],
)
def test_epoch_lines_state_the_density_if_it_falls(program, sparse, words, coming, kept):
    code, out, _ = program("--config", sparse(epochs=2), *words)
    first, *_, last_epoch = [line for line in out.splitlines() if " on digits, trainer" in line or line[:6] == "epoch "]
    assert code == 0 and first.partition(" % pruned")[0] and first.split("pruned")[1] == coming
    assert kept in last_epoch and (bool(kept) == ("kept" in last_epoch))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--density", 2], "prune_rate: '2' on the command line, but it must be a float > 0 and <= 1"),
        (["--conv-type", "DenseConv", "--trainer", "sparse"], "conv_type SparseConv"),
        (["--density", 0.1, "--grow", "none"], "as many connections must grow as are dropped"),
        (["--first-layer-dense", "--arch", "MLP", "--last-layer-dense", "--hidden", 5], "would constrain no layer"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_exit_code_2(program, sparse, words, part):
    code, out, err = program("--config", sparse(), *words)
    assert code == 2 and part in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(("until", "warns"), [(0.5, True), (1.0, False)])
def test_a_longer_run_has_other_rewirings_if_those_of_the_run_have_ended(program, sparse, tmp_path, until, warns):
    assert program("--config", sparse(prune_rate=0.2, progress_interval=4, progress_until=until))[0] == 0
    code, _, err = program("--resume", directory(tmp_path, 0.2), "--epochs", 4)
    differs = "a run that was started with 4 epochs has other rewirings in the epochs trained so far"
    assert (code, err) == (0, f"warning: epochs: 3 in the run, 4 now: {differs}\n" if warns else "")
