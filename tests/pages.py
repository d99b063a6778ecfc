"""The pages as tests read them: their commands, their code, and a folder in which a reader would type them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
STARTS = ("python ", "bash ", "make", "torchrun ", "mpirun ", "sbatch ", "tensorboard ", ".ci/")

# Commands that cannot run as printed: pattern -> (what is run instead, reason). {} stands for the command's options.
EXCEPTIONS = {
    r"^make|^\.ci/run": ("make --dry-run {make}", ".ci/run runs the targets of the Makefile, and this test too"),
    r"--download": ("{} --check", "tests do not use the network"),
    r"^sbatch .*train\.sbatch": ("bash -n {script} && python main.py {program} --check", "no cluster; see -m slurm"),
    r"^sbatch .*sweep\.sbatch --config": (
        "bash -n {script} && python scripts/sweep.py {program} --dry-run",
        "as above",
    ),
    r"^sbatch .*sweep\.sbatch --list": ("bash -n {script}", "as above"),
    r"^mpirun": ("python main.py {program} --check", "MPI is not installed"),
    r"--multigpu": ("{} --check", "it needs two GPUs"),
    r"^tensorboard": ("{} --inspect", "it is a server that does not end"),
    r"--tracker mlflow": (
        "{} 2>&1 | grep -E 'not installed|^network'",
        "a package of others; test_trackers.py runs it",
    ),
    r"--pretrained model_best\.pth": ("true", "10,000 images; test_the_pretrained_command_loads_the_same_network"),
    r"sweep\.py .*fashionmnist": ("{} --dry-run", "45 runs; scripts/records has their results"),
}
UNTRAINED = ("--check", "--dry-run", "--evaluate", "--help", "--epochs", "--table", "--resume runs/")


def blocks(page):
    """Return the fenced blocks of a page in order, as (language, text)."""
    return BLOCK.findall((ROOT / page).read_text())


def commands(page):
    """Return the commands of the page's bash blocks in order, without comments."""
    return [command for kind, text in blocks(page) if kind == "bash" for command in lines(text)]


def lines(text):
    """Return the commands of a bash block, without comments. A line that ends with a backslash goes on in the next."""
    found = (re.sub(r"\s+#.*", "", line).strip() for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines())
    return [command for command in found if command]


def inline_commands(page):
    """Return the commands that stand within a sentence or a table, in backticks."""
    prose = BLOCK.sub("", (ROOT / page).read_text())
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return [span for span in spans if span.startswith(STARTS) and re.match(r"(python|bash) \S+\.(py|sh)", span)]


def as_run(command):
    """Return what a test runs for a command: the command itself, a short version, or what EXCEPTIONS name."""
    for pattern, (instead, _) in EXCEPTIONS.items():
        if re.search(pattern, command):
            program = command.partition("sbatch --")[2].partition(".sbatch ")[2] or command.partition(".py ")[2]
            script = next((word for word in command.split() if word.endswith(".sbatch")), "")
            target = command.partition("make ")[2] or "test"
            return instead.format(command, program=program.replace("%a", "1"), script=script, make=target)
    if not re.search(r"main\.py|sweep\.py", command) or any(option in command for option in UNTRAINED):
        return command
    short = " --dry-run 1" if re.search(r"smallscale|lenet5|conv4_density", command) else " --epochs 2"
    return command + short + (" --prune-rate-epoch 1" if "GlobalSubnetConv" in command else "")


def write_images(folder):
    """Write small sets in the formats of MNIST and CIFAR-10, and a folder of pictures with three classes."""
    from tests.folders import write_set
    from tests.unit.test_data_sources import CIFAR_NAMES, write_mnist

    for name in ("MNIST", "FashionMNIST"):
        write_mnist(folder / "datasets" / name / "raw", train=300, test=100)
    cifar = folder / "datasets/cifar-10-batches-bin"
    cifar.mkdir()
    images = np.zeros((10_000, 3073), np.uint8)
    images[:, 0] = np.arange(10_000) % 10
    for name in CIFAR_NAMES:
        images.tofile(cifar / f"{name}.bin")
    write_set(folder / "pictures", classes=("cat", "dog", "owl"))
    (folder / "pictures/val/cat/000.png").rename(folder / "pictures/val/cat/one.png")


def prepare(folder):
    """Make `folder` look like the project's folder to a reader, with data sets and without runs."""
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "datasets", "site", ".git"):
            (folder / entry.name).symlink_to(entry)
    write_images(folder)


def run(folder, command):
    """Run a command in `folder` as in a reader's shell, and return its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    return done.stdout
