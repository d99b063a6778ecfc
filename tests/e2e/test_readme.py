"""The README and the other pages: their commands, code, tables and file names work as printed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import args
import models
from models.constraints import constrain, constrained_layers
from tests.originals import original, write
from trainers import build, load_trained
from trainers.checkpoint_sources import read_network
from utils.records import checkpoints

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python main\.py (.*)$", README, flags=re.M)
SCRIPTS = re.findall(r"^((?:python|bash) scripts/.*)$", README, flags=re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_main_accepts_every_command_of_the_readme(program, monkeypatch, command):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if "--help" in words:
        with pytest.raises(SystemExit) as done:
            program(*words)
        assert done.value.code == 0
    else:
        code, out, _ = program(*words, "--check")
        assert code == 0 and "weights kept" in out
    assert len(COMMANDS) >= 6


@pytest.fixture
def biprop_network(tmp_path):
    """A network stored as BIPROP's model_best.pth in `tmp_path`, as the README's commands name it."""
    model = constrain(
        models.build("cResNet18", num_classes=10, in_shape=(3, 32, 32), bn_type="NonAffineBatchNorm"),
        "SubnetConv",
        density=0.2,
    )
    write(original(model, arch="cResNet18", prune_rate=0.2), tmp_path / "model_best.pth", legacy=True)
    return model.eval()


QUICK = {
    "prune": "configs/prune/quick.yml",
    "export": "configs/shift/quick.yml",
}  # script -> config of the run that it reads
EXPECTED = {
    "prune": "written: ",
    "export.py shift": "times smaller",
    "export.py check": "in float64 on 300 images, all logits on 300",
}


def run_in(tmp_path, command):
    """Run a command of the README in `tmp_path`, with absolute paths to the project's files, and return its output."""
    words = [str(ROOT / w) if (ROOT / w).exists() else w for w in shlex.split(command)]
    words[0] = sys.executable if words[0] == "python" else shutil.which(words[0])
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [c for c in SCRIPTS if "sweep" in c or "mpt_cifar" in c])
def test_dry_runs_of_the_readmes_sweeps_print_every_cell(tmp_path, command):
    output = run_in(tmp_path, command if "--dry-run" in command else f"{command} --dry-run")
    assert len(output.splitlines()) == (9 if "quickstart" in command else 4 * 2 * 6 * 3)


@pytest.mark.parametrize("command", [c for c in SCRIPTS if "prune" in c.split()[1] or "export" in c])
def test_the_readmes_scripts_accept_its_runs(tmp_path, command):
    script = "prune" if "prune" in command.split()[1] else "export"
    run_in(tmp_path, f"python {ROOT}/main.py --config {QUICK[script]} --epochs 1")
    if "export.py check" in command:
        run_in(tmp_path, next(c for c in SCRIPTS if "export.py shift" in c))
    output = run_in(tmp_path, command)
    assert next(words for script, words in EXPECTED.items() if script in command) in output


def test_the_readmes_conversion_keeps_every_tensor(tmp_path, biprop_network):
    (command,) = (c for c in SCRIPTS if "convert" in c)
    run_in(tmp_path, command)
    state = checkpoints.read(tmp_path / "ours.pt")["model"]
    assert state.keys() == biprop_network.state_dict().keys()
    assert all(torch.equal(value, biprop_network.state_dict()[key]) for key, value in state.items())


def test_every_script_of_the_readme_is_tested_in_this_file():
    kinds = ("sweep", "mpt_cifar", "prune", "export", "convert")
    assert all(any(kind in command for kind in kinds) for command in SCRIPTS) and len(SCRIPTS) >= 7


def test_the_readmes_pretrained_command_loads_the_same_network(tmp_path, biprop_network, monkeypatch):
    """Build the network of the command with --pretrained, without CIFAR-10, and compare its logits to the bit."""
    (command,) = (words for words in COMMANDS if "--pretrained model_best.pth" in words)
    options = args.parse(shlex.split(command.replace("configs/", f"{ROOT}/configs/")))
    net, _ = build.build(options.replace(seed=1))
    monkeypatch.chdir(tmp_path)
    stored = read_network(str(options.run.pretrained))
    load_trained.check_declared(stored, options)
    load_trained.load_weights(stored, net, whole=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert options.run.evaluate and torch.equal(net.eval()(x), biprop_network(x))


def test_the_python_of_the_readme_runs():
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.S):
        exec(block, names)
    net, plain, x = names["net"].eval(), names["plain"].eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(x), plain(x), atol=1e-5)
    names["ternary"](x).logsumexp(1).sum().backward()
    for layer in constrained_layers(names["ternary"]).values():
        weight = layer.constraint(layer.weight)
        assert len(weight.round(decimals=6).unique()) == 3 and layer.weight.grad[weight == 0].any()


def test_the_tables_of_the_pages_equal_those_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme

    assert readme.main(["--check"]) == 0, "run python scripts/readme.py"
    sys.modules.pop("readme")


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_files_named_on_a_page_exist(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    code = re.findall(r"`((?:configs|data|docs|models|scripts|tests|trainers|utils)/[\w./-]*)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = {path for path in code if "NAME" not in path and not (ROOT / path).exists()}
    assert code or links
    assert missing | {link for link in links if not (ROOT / page).parent.joinpath(link).exists()} == set()
