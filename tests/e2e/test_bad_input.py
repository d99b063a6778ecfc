"""Bad input: exit code 2, a message that states problem, place and remedy, no traceback, no files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TABLE = [  # (changes to the config, command line, parts of the message)
    ({}, ("--prune-rat", 0.3), ["--prune-rat", "did you mean", "--prune-rate"]),
    ({"lr": "fast"}, (), ["lr", "'fast'", "a float > 0", "ticket.yml"]),
    ({"learning": 1}, ("--epochs", 2.5), ["2 problems", "learning", "epochs", "an int >= 1"]),
    ({}, ("--set", "CIFAR10", "--data", "nowhere"), ["CIFAR10", "nowhere", "data_batch_1.bin", "--download"]),
    ({}, ("--set", "MNIST", "--data", "nowhere"), ["MNIST", "nowhere", "train-images-idx3-ubyte", "--download"]),
    ({"arch": "Conv8"}, (), ["arch Conv8", "8x8 image is too small", "16x16"]),
    ({"arch": "Wide_VGG_Small", "width_mult": 0.001}, (), ["width_mult", "leaves no channel"]),
    ({}, ("--num-classes", 7), ["num_classes", "7", "digits has 10"]),
    ({"conv_type": "DenseConv", "prune_rate": None}, (), ["nothing would be trained", "freeze_weights"]),
    (
        {},
        ("--last-layer-dense", "--conv-type", "DenseConv", "--trainer", "prune_score"),
        ["trainer", "it needs conv_type SubnetConv"],
    ),
    ({"arch": "MLP", "hidden": []}, (), ["hidden", "list of ints"]),
    ({}, ("--val-split", 0.0001), ["val_split", "none for validation"]),
    ({}, ("--multigpu", 9, "--device", "auto"), ["multigpu: 9, but this machine has no GPU"]),
    ({}, ("--resume", "nowhere"), ["resume: nowhere does not exist", "pass a directory with config.yaml"]),
    ({}, ("--evaluate", "--pretrained", "nothing.pt"), ["nothing.pt does not exist"]),
    ({}, ("--pretrained", "ticket.yml"), ["ticket.yml is not a checkpoint"]),
    ({}, ("--evaluate", "--resume", "auto"), ["--resume auto continues training"]),
]


@pytest.mark.parametrize(
    ("changes", "words", "parts"), TABLE, ids=[" ".join(map(str, row[1])) or str(row[0]) for row in TABLE]
)
def test_bad_input_is_refused_and_leaves_no_files(program, config, tmp_path, changes, words, parts):
    path = config(**changes)
    code, out, err = program("--config", path, *words)
    assert code == 2, err
    assert err.startswith("error: ") and "Traceback" not in err + out
    assert all(part in err for part in parts), err
    assert err.count("\n") == 1 or "problems:" in err
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.yml"]


def test_bad_input_ends_main_with_exit_code_2_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')")
    command = [sys.executable, ROOT / "main.py", "--config", "none.yml", "--epochs", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 2 problems:") and "Traceback" not in done.stderr
