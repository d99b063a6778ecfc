"""Complete runs of GlobalSubnetConv, lottery, SampleSubnetConv and ss: densities, records, bit-exact resumption."""

import csv
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainers.schedules import density

STEPS = 23  # batches of 64 per epoch of the digits
SMALL = {"arch": "MLP", "hidden": [24], "norm": "batch_norm", "bias": True, "epochs": 5, "lr_policy": None}
KINDS = {
    "global": {**SMALL, "conv_type": "GlobalSubnetConv", "prune_rate": 0.1, "prune_rate_epoch": 3},
    "lottery": {**SMALL, "conv_type": "SubnetConv", "trainer": "lottery", "dense_epochs": 2, "weight_decay": 1e-3},
    "global lottery": {
        **{**SMALL, "conv_type": "GlobalSubnetConv", "trainer": "lottery", "prune_rate": 0.1},
        **{"dense_epochs": 1, "prune_rate_epoch": 3, "optimizer": "adam", "lr": 0.01},
    },
    "sample": {**SMALL, "conv_type": "SampleSubnetConv", "prune_rate": None, "freeze_weights": False, "epochs": 3},
    "ss": {**SMALL, "conv_type": "GlobalSubnetConv", "trainer": "ss", "score_l1": 1e-4, "prune_rate_epoch": 0},
}
NO_CLOCK = ("train/images_per_second", "train/elapsed_seconds")


@pytest.fixture
def trained(program, config, tmp_path):
    """Return a function that runs one of KINDS and returns (run directory, path of its config, standard output)."""

    def run(kind, *words, **changes):
        path = config(name="t.yml", **(KINDS[kind] | changes))
        code, out, err = program("--config", path, *words)
        assert (code, err) == (0, "")
        (directory,) = (p.parent for p in (tmp_path / "runs").rglob("status.json"))
        return directory, path, out

    return run


def rows(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in NO_CLOCK} for row in csv.DictReader(file)]


def checkpoint(run, name):
    return torch.load(run / f"checkpoints/{name}.pt", weights_only=True)


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def stop_after(monkeypatch, steps):
    """Ask the run to stop after `steps` batches."""
    done = []
    with_scores = "trainers.methods.prune_score.PruneScore.after_step"
    monkeypatch.setattr(with_scores, lambda self, model, step: done.append(step))
    monkeypatch.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: len(done) >= steps)


STOPS = [
    ("global", STEPS + 7),  # within the density schedule and within an epoch
    ("global", 2 * STEPS),  # between two epochs of the schedule
    ("global", 3 * STEPS + 5),  # in the epoch after the reset of the best epoch
    ("lottery", STEPS + 1),  # in the dense phase
    ("lottery", 2 * STEPS),  # between the dense phase and the score phase
    ("lottery", 2 * STEPS + 9),  # in the score phase, when only some parameters have a momentum buffer
    ("global lottery", STEPS + 3),
    ("sample", STEPS + 11),
    ("ss", STEPS + 2),
]


@pytest.mark.parametrize(("kind", "steps"), STOPS)
def test_a_run_stopped_anywhere_resumes_to_the_bit(program, trained, tmp_path, monkeypatch, kind, steps):
    expected, path, _ = trained(kind)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        assert program("--config", path)[0] == 75
    run = tmp_path / "again" / expected.relative_to(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["epoch"], status["step"]) == divmod(steps, STEPS)
    torch.manual_seed(99)  # differs from the generator state of a new process
    assert program("--resume", run)[0] == 0
    for name in ("last", "best"):
        assert same(checkpoint(run, name)["model"], checkpoint(expected, name)["model"]), name
        assert checkpoint(run, name)["state"]["best"] == checkpoint(expected, name)["state"]["best"]
    assert rows(run / "metrics.csv") == rows(expected / "metrics.csv")
    clock = ("Date Finished", "Images/s", "Seconds", "Run ID", "Run Directory", "Commit")
    results = [
        {k: v for k, v in row.items() if k not in clock}
        for folder in (tmp_path, tmp_path / "again")
        for row in rows(folder / "runs/results.csv")
    ]
    assert len(results) == 2 and results[0] == results[1]


def test_a_global_run_has_its_scheduled_densities_and_every_checkpoint_evaluates_as_logged(program, trained, tmp_path):
    run, _, out = trained("global", "--save-every", 1)
    total = 64 * 24 + 24 * 10
    board = EventAccumulator(str(run / "logs")).Reload()
    expected = [density(epoch, 0.1, 3) for epoch in range(5)]
    assert expected[0] == 0.5 and expected[3:] == [0.1, 0.1]
    assert [e.value for e in board.Scalars("train/kept")] == pytest.approx(expected, abs=1 / total)
    for row in rows(run / "metrics.csv"):
        code, stdout, err = program("--resume", run / f"checkpoints/epoch_{row['epoch']}.pt", "--evaluate")
        assert (code, err) == (0, "")
        assert f"acc@1 {float(row['test/acc@1']):.2f} %" in stdout and f"loss {float(row['test/loss']):.4f}" in stdout
        kept = total - int((1 - expected[int(row["epoch"]) - 1]) * total)
        assert f"{kept:,} of {total:,} weights kept" in stdout
    (row,) = rows(tmp_path / "runs/results.csv")
    assert (row["Kept"], row["Prune Rate"], row["Best Epoch"]) == (f"{178 / total:.6g}", "0.1", row["Best Epoch"])
    assert int(row["Best Epoch"]) > 3 and int(row["Params"]) - int(row["Kept Params"]) == total - 178
    assert f"178 of {total:,} weights kept" in out.splitlines()[-5]
    bests = [float(r["test/best_acc@1"]) for r in rows(run / "metrics.csv")]
    accuracies = [float(r["test/acc@1"]) for r in rows(run / "metrics.csv")]
    assert bests[3] == accuracies[3] and bests[4] == max(accuracies[3:])
    assert "89.98 % pruned; the density of GlobalSubnetConv falls from 50 % to this value in 3 epochs" in out
    assert ["kept 50.00%" in line for line in out.splitlines() if line.startswith("epoch 1/")] == [True]
    lines = out.splitlines()
    at = lines.index("the density has its final value from this epoch on: earlier epochs do not count as the best")
    assert lines[at + 1].startswith("epoch 4/5") and f"(best {accuracies[3]:.2f}% in epoch 4)" in lines[at + 1]


@pytest.mark.parametrize(("stop", "dense"), [(STEPS + 4, False), (STEPS, True)])
def test_a_checkpoint_from_within_an_epoch_is_evaluated_in_the_state_of_that_epoch(
    program, config, tmp_path, monkeypatch, stop, dense
):
    path = config(name="t.yml", **(KINDS["lottery"] | {"dense_epochs": 1}))
    with monkeypatch.context() as patched:
        stop_after(patched, stop)
        assert program("--config", path)[0] == 75
    code, out, _ = program("--resume", tmp_path / "runs/t/prune-rate=0.5/t", "--evaluate")
    assert code == 0 and ("(100.00 %), 0.00 % pruned" in out) == dense


def test_the_summary_names_the_layers_at_the_floor(trained):
    _, _, out = trained("ss", epochs=1, prune_rate=0.001, score_l1=0)
    assert "one weight     kept in linear.0, linear.3, the minimum per layer with GlobalSubnetConv" in out
    assert "2 of 1,776 weights kept" in out


def test_the_summary_mentions_no_floor_if_no_layer_is_at_the_floor(trained):
    assert "one weight" not in trained("ss", epochs=1)[2]


def test_a_lottery_trains_weights_then_scores_and_picks_its_best_epoch_in_the_score_phase(trained, tmp_path):
    run, _, _ = trained("lottery", "--save-every", 1)
    states = [checkpoint(run, name)["model"] for name in ("initial", *(f"epoch_{n}" for n in range(1, 6)))]
    for epoch in range(5):
        before, after = states[epoch : epoch + 2]
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        expected = "constraint.scores" if epoch >= 2 else "weight"
        assert {f"linear.{n}.{expected}" for n in (0, 3)} <= moved
        assert not {f"linear.{n}.{'weight' if epoch >= 2 else 'constraint.scores'}" for n in (0, 3)} & moved
    (row,) = rows(tmp_path / "runs/results.csv")
    assert int(row["Best Epoch"]) > 2 and (row["Kept"], row["Trainer"]) == ("0.5", "lottery")
    metrics = rows(run / "metrics.csv")
    assert float(metrics[2]["test/best_acc@1"]) == float(metrics[2]["test/acc@1"])


def test_a_lottery_without_freeze_weights_switches_from_weights_to_scores(trained):
    """Fused SGD rejects a group in which only some of the parameters with gradients have a momentum buffer."""
    run, _, _ = trained("lottery", freeze_weights=None, last_layer_dense=True, epochs=3)
    first, last = checkpoint(run, "initial")["model"], checkpoint(run, "last")["model"]
    assert all(not torch.equal(first[f"linear.3.{of}"], last[f"linear.3.{of}"]) for of in ("weight", "bias"))


def test_results_of_sample_subnet_conv_hold_the_expected_density(trained, tmp_path):
    run, _, _ = trained("sample", score_init_constant=2.0, epochs=1, lr=1e-9)
    (row,) = rows(tmp_path / "runs/results.csv")
    assert float(row["Kept"]) == pytest.approx(0.880797, abs=1e-3)  # sigmoid(2)
    assert run.relative_to(tmp_path).parts == ("runs", "t", "t")


def test_a_random_mask_trains_and_keeps_its_density(trained, tmp_path):
    changes = {"conv_type": "RGConv", "prune_rate": 0.3, "freeze_weights": None, "prune_rate_epoch": None}
    run, _, _ = trained("global", epochs=2, **changes)
    (row,) = rows(tmp_path / "runs/results.csv")
    assert row["Trainer"] == "default" and float(row["Kept"]) == pytest.approx(0.300113, abs=1e-3)
    first, last = checkpoint(run, "initial")["model"], checkpoint(run, "last")["model"]
    fixed = [key for key in first if ".constraint." in key]
    assert len(fixed) == 2 and all(torch.equal(first[key], last[key]) for key in fixed)


def test_fixed_subnet_conv_trains_weights_under_the_mask_of_a_ticket(program, config, tmp_path):
    assert program("--config", config())[0] == 0
    ticket = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    fixed = config(name="fixed.yml", conv_type="FixedSubnetConv", freeze_weights=None, lr=0.01, epochs=3)
    code, out, err = program("--config", fixed, "--pretrained", ticket / "checkpoints/best.pt")
    assert (code, err) == (0, "") and "tensors match" in out
    taken = checkpoint(ticket, "best")["model"]
    run = tmp_path / "runs/fixed/prune-rate=0.5/fixed"
    first, last = checkpoint(run, "initial")["model"], checkpoint(run, "last")["model"]
    for key, value in last.items():
        assert torch.equal(first[key], taken[key]), key
        assert torch.equal(value, taken[key]) == key.endswith("scores"), key
    row = rows(tmp_path / "runs/results.csv")[-1]
    assert (row["Trainer"], row["Conv Type"], row["Kept"]) == ("default", "FixedSubnetConv", "0.5")
    assert float(row["Best Epoch Test Top 1"]) > 85


def test_histograms_have_the_names_of_their_parameters(trained, monkeypatch):
    recorded, parameters = {}, {}
    true = "trainers.methods.prune_score.PruneScore.after_epoch"
    monkeypatch.setattr(true, lambda self, model, epoch: parameters.update(dict(model.named_parameters())))
    monkeypatch.setattr(
        "utils.records.tensorboard.TensorBoard.histograms",
        lambda self, epoch, named: recorded.update(named),
    )
    trained("global", "--histograms", epochs=1, prune_rate_epoch=0, learn_batchnorm=True)
    layers = ("linear.0", "linear.3")
    values = {f"{layer}.{of}" for layer in layers for of in ("weight", "bias", "scores")}
    values |= {"linear.1.weight", "linear.1.bias"}
    gradients = {f"{name}.grad" for name in ("linear.0.scores", "linear.3.scores", "linear.1.weight", "linear.1.bias")}
    assert recorded.keys() == values | gradients
    for layer in layers:
        assert torch.equal(recorded[f"{layer}.weight"], parameters[f"{layer}.weight"])
        assert torch.equal(recorded[f"{layer}.scores"], parameters[f"{layer}.constraint.scores"])
        assert torch.equal(recorded[f"{layer}.scores.grad"], parameters[f"{layer}.constraint.scores"].grad)
    assert torch.equal(recorded["linear.1.weight.grad"], parameters["linear.1.weight"].grad)


def test_anomaly_detection_lasts_for_one_run_only(program, config, monkeypatch):
    modes = []
    hook = "trainers.methods.prune_score.PruneScore.before_step"
    monkeypatch.setattr(hook, lambda self, model, step: modes.append(torch.is_anomaly_enabled()))
    for words, expected in (("--detect-anomaly", True), ("--trainer=anomaly", True), ("--no-detect-anomaly", False)):
        modes.clear()
        assert program("--config", config(epochs=1), words, "--dry-run", 2)[0] == 0
        assert modes == [expected] * 2 and not torch.is_anomaly_enabled()


@pytest.mark.parametrize("kind", ["global", "lottery"])
def test_a_dry_run_with_a_density_schedule_ends_after_one_epoch_and_can_be_evaluated(kind, trained, program):
    run, path, _ = trained(kind, "--dry-run", "1")
    assert program("--resume", run, "--evaluate")[0] == 0
    assert program("--config", path, "--dry-run", "1", "--epochs", "1")[0] == 0


@pytest.mark.parametrize("kind", ["global", "lottery"])
def test_resume_and_pretrained_evaluate_a_checkpoint_at_its_scheduled_density(kind, trained, program):
    run, path, _ = trained(kind, "--save-every", "1", "--seed", "1")
    early = run / "checkpoints/epoch_1.pt"
    (*_, resumed), (*_, pretrained) = (
        program("--config", path, "--seed", "1", "--evaluate", option, early)[1].splitlines()
        for option in ("--resume", "--pretrained")
    )
    assert pretrained == resumed and f"{float(rows(run / 'metrics.csv')[0]['test/loss']):.4f}" in resumed
