"""Complete runs of binary networks: accuracy, weight sweeps, statistics, histograms, bit-exact resumption."""

import csv
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIGS = Path(__file__).parents[2] / "configs/binary"
SMALL = {"arch": "CircuitMLP", "hidden": [60, 40], "conv_type": "BinaryConv", "pixels": "binary", "optimizer": "adam"}
SMALL |= {"lr": 0.02, "initial_ones": 0.02, "test_batch_size": 360, "batch_size": 100}
SMALL |= {"freeze_weights": None, "prune_rate": None, "lr_policy": None}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_quick_config_learns_and_records_weight_sweeps_and_statistics(program, tmp_path):
    words = ["--epochs", 12, "--sweep-every", 8, "--sweep-on", "0:2:0.5", "--seed", 1]
    code, out, err = program("--config", CONFIGS / "quick.yml", *words)
    assert (code, err) == (0, "") and "trainer binary" in out
    (row,) = rows(tmp_path / "runs/results.csv")
    assert float(row["Last Epoch Test Top 1"]) > 55  # 70 in our run; 10 is chance
    assert (row["Trainer"], row["Conv Type"]) == ("binary", "BinaryConv") and float(row["Pruned"]) > 0.97
    run = tmp_path / row["Run Directory"]
    sweep = rows(run / "weight_sweep.csv")
    assert [(r["epoch"], r["on"]) for r in sweep] == [
        (e, o) for e in ("8", "12") for o in ["0.0", "0.5", "1.0", "1.5", "2.0"]
    ]
    last = {row["on"]: float(row["acc@1"]) for row in sweep[5:]}
    assert last["1.0"] == pytest.approx(float(row["Last Epoch Test Top 1"]), abs=0.006)
    # The accuracy hardly depends on the value of the ones.
    assert last["0.0"] < 20 and min(last["0.5"], last["1.5"], last["2.0"]) > 40
    assert (run / "weight_sweep.png").read_bytes().startswith(b"\x89PNG")
    board = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0}).Reload()
    (tag,) = (tag for tag in board.Tags()["scalars"] if tag.startswith("weight_sweep") and "12" in tag)
    assert [event.value for event in board.Scalars(tag)] == pytest.approx([*last.values()])
    statistics = {row["tensor"]: row for row in rows(run / "statistics.csv")}
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]
    assert {*statistics} == {name for name in state if not name.endswith(("mean", "var", "tracked"))}
    for name, stored in statistics.items():
        assert int(stored["ones"]) == int((state[name] >= 0.5).sum())
    weights = {name: value for name, value in state.items() if value.dim() == 2}
    kept, total = sum(int(statistics[name]["ones"]) for name in weights), sum(w.numel() for w in weights.values())
    assert float(row["Kept"]) == pytest.approx(kept / total, rel=1e-5)
    assert all(weight.min() >= 0 and weight.max() <= 1 for weight in weights.values())


@pytest.mark.parametrize(
    ("config", "epochs", "least"), [("digits_conv2_binary", 5, 30), ("digits_vgg_binary", 6, 20)]
)  # 57 to 70 and 35 in our runs; 10 is chance
def test_convolutional_networks_learn(program, tmp_path, config, epochs, least):
    code, _, err = program("--config", CONFIGS / f"{config}.yml", "--epochs", epochs, "--seed", 1)
    assert (code, err) == (0, "")
    (row,) = rows(tmp_path / "runs/results.csv")
    assert float(row["Best Val Top 1"]) > least
    assert 0.95 < float(row["Pruned"]) < 0.999
    assert len(rows(tmp_path / row["Run Directory"] / "weight_sweep.csv")) == 41


@pytest.mark.parametrize("norm", ["batch_norm", "hard_invert", "soft_invert"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(program, config, tmp_path, norm):
    words = SMALL | {
        "norm": norm,
        "random_mag": 0.5,
        "epsilon": 0.7,
        "sweep_on": "0:2:1",
        "sweep_every": 3,
        "bias": True,
    }
    path = config("b.yml", **words, epochs=4)
    assert program("--config", path, "--log-dir", "whole")[0] == 0
    assert program("--config", path, "--epochs", 3)[0] == 0
    whole, run = (next((tmp_path / root / "b").iterdir()) for root in ("whole", "runs"))
    assert program("--resume", run, "--epochs", 4)[0] == 0
    states = [torch.load(of / "checkpoints/last.pt", weights_only=True) for of in (whole, run)]
    assert all(torch.equal(states[1]["model"][name], value) for name, value in states[0]["model"].items())
    for table in ("weight_sweep.csv", "statistics.csv"):
        assert [r for r in rows(run / table) if r["epoch"] == "4"] == [
            r for r in rows(whole / table) if r["epoch"] == "4"
        ]
    assert {row["epoch"] for row in rows(whole / "weight_sweep.csv")} == {"3", "4"}


def test_evaluate_reproduces_the_accuracy_of_the_run(program, config, tmp_path):
    path = config("b.yml", **SMALL, sweep_on="none")
    program("--config", path)
    (row,) = rows(tmp_path / "runs/results.csv")
    code, out, _ = program("--resume", tmp_path / row["Run Directory"], "--evaluate")
    assert code == 0
    assert re.search(r"acc@1 ([\d.]+)", out)[1] == row["Last Epoch Test Top 1"]
    assert not (tmp_path / row["Run Directory"] / "weight_sweep.csv").exists()


def test_histograms_of_activations_reach_tensorboard(program, config, tmp_path):
    path = config("b.yml", **SMALL, norm="soft_invert")
    assert program("--config", path, "--histograms", "--epochs", 1)[0] == 0
    (row,) = rows(tmp_path / "runs/results.csv")
    board = EventAccumulator(str(tmp_path / row["Run Directory"] / "logs")).Reload()
    tags = board.Tags()["histograms"]
    outputs = {f"linear.{i}.output/batch_0" for i in (1, 2, 8)}
    assert {"linear.0.weight", "linear.2.v", *outputs} <= {*tags}
    assert [event.step for event in board.Histograms("linear.1.output/batch_0")] == [1]


def test_a_network_without_binary_layers_is_refused_in_one_line_with_exit_code_2(program, config):
    path = config("b.yml", **SMALL, first_layer_dense=True, last_layer_dense=True)
    code, _, err = program("--config", path, "--arch", "MLP", "--hidden", "5", "--epochs", 1)
    assert code == 2 and err.count("\n") == 1 and "BinaryConv would constrain no layer" in err
