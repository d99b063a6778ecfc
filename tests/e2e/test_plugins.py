"""Plug-ins in whole runs: the examples, resumption, sweeps, several processes, pruning and export."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMMANDS = {  # example -> (options, words of the first line of the output)
    "ternary_constraint": (["--conv-type", "Ternary", "--threshold", "0.5"], "weights kept"),
    "own_network": (["--arch", "MyNet", "--width", "8"], "MyNet on digits"),
    "shapes_set": (["--set", "shapes"], "FC on shapes"),
    "confidence_penalty": (
        ["--trainer", "confidence_penalty", "--entropy-weight", "0.2"],
        "trainer confidence_penalty",
    ),
}
DENSE = {"conv_type": None, "freeze_weights": None, "prune_rate": None, "epochs": 1}
MINE = """
from torch import nn
import featherweight as fw

@fw.register_constraint("Halved")
class Halved(fw.Constraint):
    def forward(self, weight):
        return weight / 2

@fw.register_arch("MyNet")
def my_net(*, num_classes, in_shape, width=6):
    channels, height, side = in_shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * height * side, num_classes),
    )
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_ideas.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def own(config, mine):
    """A config of a run whose network and constraint are those of the plug-in."""
    return config("own.yml", **DENSE | {"arch": "MyNet", "conv_type": "Halved", "plugins": [str(mine)], "epochs": 2})


def python(*words, cwd):
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True)


def test_every_example_is_short_and_is_run_by_a_test():
    examples = {path.stem: path.read_text().count("\n") for path in EXAMPLES.glob("*.py")}
    assert examples.keys() >= COMMANDS.keys() and all(lines <= 40 for lines in examples.values()), examples


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("example", COMMANDS)
def test_an_example_trains(example, config, program):
    options, first = COMMANDS[example]
    code, out, error = program("--config", config(**DENSE), "--plugin", EXAMPLES / f"{example}.py", *options)
    assert (code, error) == (0, "") and first in out.splitlines()[0] and "test accuracy" in out


@pytest.mark.usefixtures("registries")
def test_a_run_stores_its_plug_ins_and_counts_kept_weights(own, program, tmp_path):
    assert program("--config", own, "--width", "5")[0] == 0
    stored = yaml.safe_load((tmp_path / "runs/own/own/config.yaml").read_text())
    assert stored["width"] == 5 and stored["plugins"][0].startswith(f"{tmp_path}/my_ideas.py#sha256:")
    with (tmp_path / "runs/results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["Kept"]) == 1.0


def test_a_run_is_resumed_only_with_its_plug_in_which_must_be_named(own, mine, tmp_path):
    def main(*words):
        return python(ROOT / "main.py", *words, cwd=tmp_path)

    run = ["--resume", "runs/own/own"]
    assert main("--config", own).returncode == 0
    unnamed = main(*run, "--epochs", 3)
    assert unnamed.returncode == 2 and f"unless you name it: --plugin {mine}" in unnamed.stderr
    resumed = main(*run, "--epochs", 3, "--plugin", mine)
    assert resumed.returncode == 0 and "epoch 3/3" in resumed.stdout, resumed.stderr
    mine.write_text(MINE.replace("weight / 2", "weight / 3"))
    refused = main(*run, "--epochs", 4, "--plugin", mine)
    assert refused.returncode == 2 and f"resume: runs/own/own has other options: plugins: ('{mine}#" in refused.stderr
    tested = main(*run, "--evaluate", "--plugin", mine)
    assert tested.returncode == 0 and f"last.pt was trained with another version of {mine}" in tested.stderr


@pytest.mark.slow
def test_a_trained_network_of_a_plug_in_is_pruned_exported_and_opened_by_name_only(own, mine, tmp_path):
    assert python(ROOT / "main.py", "--config", own, "--conv-type", "ShiftQ", cwd=tmp_path).returncode == 0
    run = "runs/own/own"
    for words in (["prune.py", run, "--percent", "50"], ["export.py", "shift", run, "out.npz"]):
        refused = python(ROOT / "scripts" / words[0], *words[1:], cwd=tmp_path)
        assert refused.returncode == 2 and f"unless you name it: --plugin {mine}" in refused.stderr
        done = python(ROOT / "scripts" / words[0], *words[1:], "--plugin", mine, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import featherweight as fw\n"
    code += f"try: fw.load({run!r})\nexcept fw.UsageError as error: print('refused:', error)\n"
    code += f"print(type(fw.load({run!r}, plugins=[{str(mine)!r}]).plain()[0]).__name__)"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.splitlines()[0].startswith("refused: plugins: the run needs") and "Conv2d" in done.stdout


@pytest.mark.slow
def test_a_sweep_varies_an_option_of_a_plug_in(own, tmp_path):
    words = ["--config", own, "--width", 4, 6, "--epochs", 1]
    done = python(ROOT / "scripts/sweep.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = python(ROOT / "scripts/sweep.py", *words, "--table", cwd=tmp_path)
    assert [line.split("|")[2].strip() for line in again.stdout.splitlines()[2:4]] == ["4", "6"], again.stdout


@pytest.mark.slow
def test_two_processes_train_the_network_of_a_plug_in_as_one_does(own, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    done = python(*torchrun, ROOT / "parallel_main.py", "--config", own, cwd=tmp_path)
    assert done.returncode == 0 and "MyNet on digits" in done.stdout, done.stderr[-2000:]
