"""Every reader refuses a checkpoint or config.yaml of another run and names the options that differ."""

import csv
import shutil

import pytest
import torch
import yaml

from scripts import export, prune

OTHERS = {
    "seed": (2, "seed: 2 in the checkpoint, 1 in config.yaml"),
    "prune_rate": (0.3, "prune_rate: 0.3 in the checkpoint, 0.5 in config.yaml"),
    "lr": (0.05, "lr: 0.05 in the checkpoint, 0.1 in config.yaml"),
    "conv_type": ("GlobalSubnetConv", "conv_type: 'GlobalSubnetConv' in the checkpoint, 'SubnetConv' in config.yaml"),
    "batch_size": (32, "batch_size: 32 in the checkpoint, 64 in config.yaml"),
    "optimizer": ("adam", "optimizer: 'adam' in the checkpoint, 'sgd' in config.yaml"),
    "arch": ("Conv2", "arch: 'Conv2' in the checkpoint, 'FC' in config.yaml"),
    "val_split": (0.2, "val_split: 0.2 in the checkpoint, 0.0 in config.yaml"),
}


@pytest.fixture
def run(program, config, tmp_path, monkeypatch):
    """A run that was stopped after its first epoch."""
    with monkeypatch.context() as patched:
        patched.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: self._trained[0] > 0)
        assert program("--config", config())[0] == 75
    return tmp_path / "runs/ticket/prune-rate=0.5/ticket"


def contents(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}


def swap(program, config, tmp_path, run, **changes):
    """Put the last checkpoint of another run into `run`."""
    program("--config", config("other.yml", **changes), "--log-dir", tmp_path / "other", "--results", "other.csv")
    (last,) = (tmp_path / "other").rglob("last.pt")
    shutil.copy(last, run / "checkpoints/last.pt")


@pytest.mark.parametrize("name", OTHERS)
def test_the_checkpoint_of_another_run_is_refused_by_name(program, config, tmp_path, run, name):
    value, message = OTHERS[name]
    swap(program, config, tmp_path, run, **{name: value})
    before = contents(run)
    auto = ("--config", config(), "--resume", "auto")
    for argv in (("--resume", run), auto, ("--resume", run, "--evaluate"), ("--resume", run / "checkpoints/last.pt")):
        code, _, err = program(*argv)
        assert code == 2 and err.count("\n") == 1 and message in err, (argv, err)
        assert str(run.relative_to(tmp_path) / "checkpoints/last.pt") in err and contents(run) == before
    assert not (tmp_path / "runs/results.csv").exists()


def test_prune_pretrained_and_export_refuse_the_checkpoint_of_another_run(program, config, tmp_path, run, capsys):
    swap(program, config, tmp_path, run, seed=2)
    assert prune.main([str(run), "--percent", "50"]) == 2
    assert "seed: 2 in the checkpoint, 1 in config.yaml" in capsys.readouterr().err
    code, _, err = program("--config", config(), "--name", "more", "--pretrained", run)
    assert code == 2 and "seed: 2 in the checkpoint, 1 in config.yaml" in err
    assert program("--config", config(), "--name", "more", "--pretrained", run / "checkpoints/best.pt")[0] == 0
    shift = {"conv_type": "ShiftQ", "freeze_weights": None, "prune_rate": None, "epochs": 1}
    assert program("--config", config("shift.yml", **shift))[0] == 0
    made = tmp_path / "runs/shift/shift"
    edit(made, seed=5)
    assert export.main(["shift", str(made), str(tmp_path / "out.pt")]) == 2
    assert "seed: 1 in the checkpoint, 5 in config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def edit(run, **changes):
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.2), ("seed", 7), ("seed", None), ("momentum", 0.5), ("pretrained", "x.pt"), ("epochs", 1)],
)
def test_an_edited_configuration_is_refused_by_name(program, run, name, value):
    edit(run, **{name: value})
    before = contents(run)
    for argv in (("--resume", run), ("--resume", run, "--evaluate")):
        code, _, err = program(*argv)
        assert code == 2 and err.count("\n") == 1 and f"{name}: " in err and " in config.yaml" in err
        assert contents(run) == before


def test_an_edited_configuration_of_a_finished_run_is_refused(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    edit(run, lr=0.2)
    code, out, err = program("--resume", run)
    assert code == 2 and "lr: 0.1 in the checkpoint, 0.2 in config.yaml" in err and "finished" not in out


def test_options_that_do_not_affect_the_result_may_differ(program, run):
    edit(run, workers=1, save_every=1, print_freq=3, histograms=True)
    assert program("--resume", run)[0] == 0


def test_an_extended_run_warns_of_other_learning_rates_only_where_they_differ(program, run):
    edit(run, epochs=3)
    assert program("--resume", run)[::2] == (0, "")  # the learning rate of the first epoch is the same for 2 and 3
    code, _, err = program("--resume", run, "--epochs", 4)
    differs = "a run that was started with 4 epochs has other learning rates in the epochs trained so far"
    assert (code, err) == (0, f"warning: epochs: 3 in the run, 4 now: {differs}\n")


def test_a_run_with_a_constant_learning_rate_is_extended_without_a_warning(program, config, tmp_path):
    assert program("--config", config(lr_policy="constant_lr"))[0] == 0
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert program("--resume", run, "--epochs", 3)[::2] == (0, "")


def test_each_option_that_differs_has_a_line(program, config, run):
    code, _, err = program("--resume", run, "--lr", 0.2, "--seed", 3)
    head, *lines = err.splitlines()
    start, end = f"resume: {run} has other options: ", "; start a new one without --resume"
    assert (code, head) == (2, "error: 2 problems:")
    assert {*lines} == {
        f"{start}{change}{end}" for change in ("lr: 0.1 in the run, 0.2 now", "seed: 1 in the run, 3 now")
    }
    edit(run, lr=0.3, momentum=0.5)
    code, _, err = program("--resume", run)
    assert code == 2 and err.startswith("error: 2 problems:\n") and err.count("is of another run than") == 2
    code, out, err = program("--config", config(), "--resume", "auto")
    assert code == 0 and out.count("--resume auto does not resume ") == 2


def test_a_checkpoint_without_valid_options_is_refused(program, run):
    path = run / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    for options in (None, [], "text", {"seed": "x"}, {1: 2}, content["options"] | {"sead": 1}):
        torch.save(content | {"options": options}, path)
        code, _, err = program("--resume", run)
        assert code == 2 and err.count("\n") == 1 and "last.pt is damaged: options: " in err


def test_the_results_row_of_a_resumed_run_has_its_options(program, run, tmp_path):
    assert program("--resume", run)[0] == 0
    with (tmp_path / "runs/results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["Seed"], row["Prune Rate"], row["Learning Rate"], row["Conv Type"]) == ("1", "0.5", "0.1", "SubnetConv")
