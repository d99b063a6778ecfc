"""Training on the real sets, skipped unless FEATHERWEIGHT_DATA names their folder."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

import data
from utils.distributed import runtime

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("FEATHERWEIGHT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="FEATHERWEIGHT_DATA names no folder with the real data sets")


def train(cwd, *argv):
    """Train in a new process with all cores. Return the row of the results table."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, ROOT / "main.py", "--seed", "1", *map(str, argv)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    with (Path(cwd) / "runs/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def test_the_quickstart_learns_the_digits(tmp_path):
    row = train(tmp_path, "--config", ROOT / "configs/quickstart.yml")
    assert float(row["Last Epoch Test Top 1"]) >= 96


@needs_data
@pytest.mark.parametrize(
    ("config", "options", "least"),
    [
        ("mnist/fc_kn_unsigned.yml", ("--epochs", 2), 93),
        ("mnist/fc_dense.yml", ("--epochs", 2), 96),
        ("fashionmnist/fashionmnist_mlp_kn_unsigned.yml", ("--epochs", 1), 78),
    ],
)
def test_networks_learn_mnist_and_fashion_mnist(tmp_path, config, options, least):
    row = train(tmp_path, "--config", ROOT / "configs" / config, "--data", DATA, *options)
    assert float(row["Last Epoch Test Top 1"]) >= least


@needs_data
@pytest.mark.parametrize(
    ("config", "options", "least"),
    [  # 10 is chance
        ("binary/mnist_binary_batch_norm.yml", ("--hidden", "1000,1000,1000", "--epochs", 4), 45),  # 66
        ("sparse/lenet5_density_rigl.yml", ("--density", 0.1, "--low-data", 0.2, "--epochs", 3), 18),
        ("shift/mnist_fc_q.yml", ("--epochs", 1), 80),
        ("shift/mnist_fc_ps.yml", ("--epochs", 1), 80),
    ],
)
def test_binary_sparse_and_shift_networks_learn(tmp_path, config, options, least):
    row = train(tmp_path, "--config", ROOT / "configs" / config, "--data", DATA, *options)
    assert float(row["Last Epoch Test Top 1"]) >= least


def script(name, *words, cwd):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_data
def test_an_exported_shift_network_predicts_mnist_with_integer_arithmetic(tmp_path):
    """The predictions on 1,000 test images are those of the float network."""
    config = ROOT / "configs/shift/mnist_lenet_ps.yml"
    row = train(tmp_path, "--config", config, "--data", DATA, "--epochs", 1, "--low-data", 0.2)
    script("export.py", "shift", row["Run Directory"], "packed.pt", cwd=tmp_path)
    output = script("export.py", "check", "packed.pt", "--data", DATA, "--images", 1000, cwd=tmp_path)
    assert "predictions equal those in float64 on 1000 images, all logits on 1000" in output


@needs_data
def test_a_fashion_mnist_network_keeps_its_accuracy_without_half_its_weights(tmp_path):
    config = ROOT / "configs/prune/fashionmnist_mlp_pruning.yml"
    row = train(tmp_path, "--config", config, "--data", DATA, "--epochs", 2)
    script("prune.py", row["Run Directory"], "--percent", 0, 50, 99, "--repeat", 3, cwd=tmp_path)
    with (tmp_path / row["Run Directory"] / "pruning" / "pruning.csv").open(newline="") as file:
        left = {(r["method"], float(r["percent"])): r for r in csv.DictReader(file)}
    whole = float(left["unpruned", 0]["accuracy"])
    assert whole == pytest.approx(float(row["Last Epoch Test Top 1"]), abs=0.05)
    for method in ("weight", "unit"):
        assert float(left[method, 0]["accuracy"]) == whole > float(left[method, 99]["accuracy"]) + 30
    assert float(left["weight", 50]["accuracy"]) > whole - 3
    assert int(left["unit", 50]["parameters"]) < 0.34 * int(left["unpruned", 0]["parameters"])


@needs_data
def test_a_network_learns_a_folder_of_images(tmp_path):
    """The folder has 1,000 CIFAR-10 images of two easily separable classes as PNG and JPEG."""
    images = data.load("CIFAR10", DATA)
    for part, split, count in (("train", images.train, 500), ("val", images.test, 200)):
        for label, name in ((0, "airplane"), (6, "frog")):
            (tmp_path / "folder" / part / name).mkdir(parents=True)
            for i, pixels in enumerate(split.images[split.labels == label][:count]):
                ending = "png" if i % 2 else "jpg"
                PIL.Image.fromarray(pixels).save(tmp_path / "folder" / part / name / f"{i}.{ending}")
    options = {"set": "ImageFolder", "data": tmp_path / "folder", "image_size": 32, "workers": 2, "batch_size": 50}
    words = [f"--{name}={value}" for name, value in options.items()]
    config = ROOT / "configs/smallscale/conv2/conv2_BinAct_kn_unsigned.yml"
    row = train(tmp_path, "--config", config, "--prune-rate", 0.5, "--epochs", 4, *words)
    assert float(row["Last Epoch Test Top 1"]) > 75  # 50 is chance


@needs_data
def test_global_selection_learns_cifar10_at_density_0_1(tmp_path):
    config = ROOT / "configs/smallscale/conv2/conv2_kn_unsigned.yml"
    words = ["--conv-type", "GlobalSubnetConv", "--prune-rate", 0.1, "--epochs", 3, "--prune-rate-epoch", 2]
    row = train(tmp_path, "--config", config, "--data", DATA, "--low-data", 0.1, *words)
    assert float(row["Last Epoch Test Top 1"]) > 25  # 36 in our run; 10 is chance
    assert float(row["Kept"]) == pytest.approx(0.1, abs=1e-6)


@needs_data
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_ticket_learns_cifar10_in_80_batches(tmp_path, precision):
    if precision == "bf16" and runtime.choose("cpu", "auto", None, deterministic=False).precision_name != precision:
        pytest.skip("this processor has no bf16: emulated, 80 steps take longer than the test may")
    config = ROOT / "configs/smallscale/conv2/conv2_kn_unsigned.yml"
    command = ["--config", config, "--prune-rate", 0.5, "--data", DATA, "--dry-run", 80, "--precision", precision]
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "--seed", "1", *map(str, command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    accuracy = float(re.findall(r"test loss [\d.]+ acc@1 ([\d.]+)%", done.stdout)[0])
    assert accuracy > 30  # 36 to 40 in our runs of 80 batches; 10 is chance
