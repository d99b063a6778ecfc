"""A complete run, from the YAML file to the results row, and every file that it writes."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.records.results import COLUMNS

ROOT = Path(__file__).parents[2]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_clock(path):
    return [
        {k: v for k, v in row.items() if k not in ("train/images_per_second", "train/elapsed_seconds")}
        for row in rows(path)
    ]


def test_a_run_writes_its_files_and_one_results_row(program, config, tmp_path):
    code, out, err = program("--config", config(), "--save-every", 1)
    assert (code, err) == (0, "")
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert {p.name for p in (run / "checkpoints").iterdir()} == {
        "initial.pt",
        "best.pt",
        "last.pt",
        "epoch_1.pt",
        "epoch_2.pt",
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["lr"] == 0.1
    facts = json.loads((run / "environment.json").read_text())
    assert facts["seed"] == 1 and facts["torch"] == torch.__version__ and facts["precision"] == "fp32"
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["epoch"]) == ("done", 2)
    (row,) = rows(tmp_path / "runs/results.csv")
    assert list(row) == COLUMNS
    assert (row["Status"], row["Kept"], row["Trainer"], row["Prune Rate"]) == ("done", "0.5", "prune_score", "0.5")
    assert float(row["Best Val Top 1"]) >= float(row["Current Val Top 1"]) > 50
    assert "kept 50.00%" not in out and "weights kept (50.00 %), 50.00 % pruned" in out
    assert "picked on the test set" in out and f"tensorboard --logdir {run.relative_to(tmp_path)}" in out


def test_metrics_csv_and_tensorboard_have_equal_values(program, config, tmp_path):
    program("--config", config(), "--histograms")
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    metrics = rows(run / "metrics.csv")
    board = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0}).Reload()
    tags = ("train/loss", "train/acc@1", "train/acc@5", "test/loss", "test/acc@1", "test/acc@5", "train/lr")
    for tag in (*tags, "train/kept"):
        points = {e.step: e.value for e in board.Scalars(tag)}
        assert points == pytest.approx({int(r["epoch"]): float(r[tag]) for r in metrics}, rel=1e-6)
    assert board.Scalars("train/kept")[0].value == 0.5
    assert board.Scalars("weights/density_linear.0")[-1].value == 0.5
    assert {"linear.0.weight", "linear.0.scores"} <= set(board.Tags()["histograms"])
    best = max(float(r["test/acc@1"]) for r in metrics)
    assert board.Scalars("test/best_acc@1")[-1].value == pytest.approx(best)
    assert "_hparams_/session_start_info" in board.summary_metadata
    assert {tag.split("/")[0] for tag in board.Tags()["scalars"]} == {"train", "test", "weights"}


def test_the_same_seed_gives_the_same_losses_to_the_bit(program, config, tmp_path):
    for _ in range(2):
        program("--config", config())
    base = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert without_clock(base / "metrics.csv") == without_clock(base / "0/metrics.csv")
    first, second = (torch.load(p / "checkpoints/last.pt", weights_only=True)["model"] for p in (base, base / "0"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    program("--config", config(), "--seed", 2)
    assert without_clock(base / "1/metrics.csv") != without_clock(base / "metrics.csv")


def test_the_stored_config_repeats_the_run_under_the_same_name(program, config, tmp_path):
    program("--config", config(seed=None))
    base = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    code, *_ = program("--config", base / "config.yaml")
    assert code == 0
    assert without_clock(base / "metrics.csv") == without_clock(base / "0/metrics.csv")


def test_dense_runs_have_no_prune_rate_level(program, config, tmp_path):
    code, out, _ = program("--config", config(conv_type=None, prune_rate=None, freeze_weights=None), "--name", "plain")
    assert code == 0 and "(100.00 %), 0.00 % pruned" in out
    assert (tmp_path / "runs/ticket/plain/checkpoints/last.pt").exists()


def test_a_dry_run_completes_without_a_results_row(program, config, tmp_path):
    code, out, _ = program("--config", config(epochs=90), "--dry-run", 2)
    assert code == 0 and "epoch 1/1" in out
    assert not (tmp_path / "runs/results.csv").exists()
    # a dry run does not use the name of the run
    (row,) = rows(tmp_path / "runs/ticket/prune-rate=0.5/ticket,dry-run/metrics.csv")
    assert 0 <= float(row["test/acc@1"]) <= 100


def test_help_into_a_closed_pipe_and_a_missing_library_print_no_traceback(tmp_path):
    shell = f"{sys.executable} {ROOT}/main.py --help | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("usage: python main.py --config FILE [options]\n", "")
    (tmp_path / "yaml.py").write_text("raise ModuleNotFoundError(name='yaml')")
    without = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / "main.py"], capture_output=True, text=True, env=without)
    assert (done.returncode, done.stderr) == (1, "failed: yaml is not installed; pip install -r requirements.txt\n")


def test_check_prints_layers_and_configuration_and_writes_nothing(program, config, tmp_path):
    code, out, _ = program("--config", config(), "--check", "--data", "/nowhere")
    assert code == 0
    assert "linear.2  100x300       SubnetWeight  15,000   30,000" in out
    assert yaml.safe_load(out.split("\n\n", 1)[1])["arch"] == "FC"
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.yml"]


def test_val_split_picks_the_best_epoch_and_tests_once(program, config, tmp_path):
    code, out, _ = program("--config", config(), "--val-split", 0.2)
    assert code == 0 and "picked on the validation share" in out
    (row,) = rows(tmp_path / "runs/results.csv")
    metrics = rows(tmp_path / "runs/ticket/prune-rate=0.5/ticket/metrics.csv")
    assert row["Best Picked On"] == "validation"
    assert float(row["Best Val Top 1"]) == pytest.approx(max(float(r["val/acc@1"]) for r in metrics), abs=0.005)
    assert not any(tag.startswith("test/") for tag in metrics[0])
    assert 50 < float(row["Best Epoch Test Top 1"]) <= 100


def test_start_epoch_skips_the_first_epochs_of_the_schedule(program, config, tmp_path):
    program("--config", config(epochs=4), "--start-epoch", 3)
    (row,) = rows(tmp_path / "runs/ticket/prune-rate=0.5/ticket/metrics.csv")
    assert (row["epoch"], float(row["train/lr"])) == ("4", pytest.approx(0.1 * 0.5 * (1 + 2**-0.5 * -1)))


def test_a_diverging_run_fails_in_one_line_and_keeps_the_last_good_checkpoint(program, config, tmp_path):
    dense = config(conv_type=None, prune_rate=None, freeze_weights=None, lr=1e6)
    code, _, err = program("--config", dense, "--print-freq", 1)
    assert code == 1
    assert err.startswith("failed: diverged: the loss is") and err.count("\n") == 1
    run = tmp_path / "runs/ticket/ticket"
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed" and "diverged" in status["reason"]
    model = torch.load(run / "checkpoints/initial.pt", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in model.values())
    assert not (tmp_path / "runs/results.csv").exists()


def test_nan_scores_stop_the_run(program, config, tmp_path, monkeypatch):
    after = "trainers.methods.prune_score.PruneScore.after_epoch"
    monkeypatch.setattr(after, lambda self, model, epoch: model.linear[0].constraint.scores.data.fill_(float("nan")))
    code, _, err = program("--config", config())
    assert code == 1 and err.startswith("failed: diverged: a trained parameter is not finite after epoch 1/2")
    assert not (tmp_path / "runs/ticket/prune-rate=0.5/ticket/checkpoints/last.pt").exists()


def test_a_closed_output_pipe_does_not_stop_the_run(config, tmp_path):
    command = f"{sys.executable} {ROOT}/main.py --config {config()} | head -n 1"
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "runs/ticket/prune-rate=0.5/ticket/status.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("content", "message"),
    [("Name,Acc\na,1\n", "other columns"), (None, "is a directory")],
)
def test_a_results_file_that_cannot_store_the_row_is_refused_before_training(
    program, config, tmp_path, content, message
):
    results = tmp_path / "mine.csv"
    if content is None:
        results.mkdir()
    else:
        results.write_text(content)
    code, _, err = program("--config", config(), "--results", results)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_evaluate_prints_the_accuracy_of_the_stored_network(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    best = max(float(r["test/acc@1"]) for r in rows(run / "metrics.csv"))
    before = sorted(p for p in tmp_path.rglob("*"))
    for argv in (
        ("--resume", run / "checkpoints/best.pt", "--evaluate"),
        ("--config", config(), "--evaluate", "--pretrained", run / "checkpoints/best.pt"),
    ):
        code, out, _ = program(*argv)
        assert code == 0 and f"acc@1 {best:.2f} %" in out
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_run_can_be_tested_with_another_precision_and_batch_size(program, config, tmp_path):
    program("--config", config(), "--precision", "fp32")
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    outputs = {}
    for more in ((), ("--batch-size", 500), ("--test-batch-size", 7), ("--precision", "bf16")):
        code, outputs[more], err = program("--resume", run, "--evaluate", *more)
        assert code == 0, err
    exact, whole, few, coarse = (float(re.search(r"test loss ([\d.]+)", out)[1]) for out in outputs.values())
    assert whole == pytest.approx(exact, abs=2e-4) and few == pytest.approx(exact, abs=2e-4)
    assert coarse != exact and coarse == pytest.approx(exact, rel=0.05)
    code, _, err = program("--resume", run, "--evaluate", "--set", "MNIST")
    assert code == 2 and "has other options: set: 'digits' in the run, 'MNIST' now" in err


def test_pretrained_starts_from_the_stored_network_and_refuses_another(program, config, tmp_path):
    program("--config", config())
    best = tmp_path / "runs/ticket/prune-rate=0.5/ticket/checkpoints/best.pt"
    code, *_ = program("--config", config(), "--pretrained", best, "--name", "more")
    initial = torch.load(tmp_path / "runs/ticket/prune-rate=0.5/more/checkpoints/initial.pt", weights_only=True)
    stored = torch.load(best, weights_only=True)
    assert code == 0
    assert all(torch.equal(initial["model"][key], value) for key, value in stored["model"].items())
    code, _, err = program("--config", config(), "--prune-rate", 0.3, "--pretrained", best)
    assert code == 2 and "0.3 here; pass --prune-rate 0.5" in err


def test_batch_norm_options_without_batch_norm_cause_a_warning(program, config):
    words = ("--bn-eps", 0.1, "--bn-momentum", 0.5, "--check")
    _, _, err = program("--config", config(), *words)
    told = "on the command line has no effect without batch norm, which arch FC does not have"
    assert sorted(err.splitlines()) == [f"warning: bn_eps: '0.1' {told}", f"warning: bn_momentum: '0.5' {told}"]
    assert not program("--config", config(arch="VGG_Small"), *words)[2]
