"""What the README shows is true."""

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
def test_the_commands_of_the_readme_are_accepted(program, monkeypatch, command):
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
def theirs(tmp_path):
    """model_best.pth of the original, for the network of README's command."""
    model = constrain(
        models.build("cResNet18", num_classes=10, in_shape=(3, 32, 32), bn_type="NonAffineBatchNorm"),
        "SubnetConv",
        density=0.2,
    )
    write(original(model, arch="cResNet18", prune_rate=0.2), tmp_path / "model_best.pth", legacy=True)
    return model.eval()


QUICK = {"prune": "configs/prune/quick.yml", "export": "configs/shift/quick.yml"}  # script -> the run that it takes
SAID = {"prune": "written: ", "export.py shift": "times smaller", "export.py check": "as in float64 on 300, all logits"}


def in_the_folder(tmp_path, command):
    """Runs a command of the README in `tmp_path`, where paths of the project are given whole; what it printed."""
    words = [str(ROOT / w) if (ROOT / w).exists() else w for w in shlex.split(command)]
    words[0] = sys.executable if words[0] == "python" else shutil.which(words[0])
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [c for c in SCRIPTS if "sweep" in c or "mpt_cifar" in c])
def test_the_sweeps_of_the_readme_say_what_they_would_do(tmp_path, command):
    said = in_the_folder(tmp_path, command if "--dry-run" in command else f"{command} --dry-run")
    assert len(said.splitlines()) == (9 if "quickstart" in command else 4 * 2 * 6 * 3)


@pytest.mark.parametrize("command", [c for c in SCRIPTS if "prune" in c.split()[1] or "export" in c])
def test_the_scripts_of_the_readme_take_its_runs(tmp_path, command):
    script = "prune" if "prune" in command.split()[1] else "export"
    in_the_folder(tmp_path, f"python {ROOT}/main.py --config {QUICK[script]} --epochs 1")
    if "export.py check" in command:
        in_the_folder(tmp_path, next(c for c in SCRIPTS if "export.py shift" in c))
    said = in_the_folder(tmp_path, command)
    assert next(words for of, words in SAID.items() if of in command) in said


def test_the_conversion_of_the_readme_gives_the_same_tensors(tmp_path, theirs):
    (command,) = (c for c in SCRIPTS if "convert" in c)
    in_the_folder(tmp_path, command)
    state = checkpoints.read(tmp_path / "ours.pt")["model"]
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in state.items())


def test_every_script_of_the_readme_is_run():
    kinds = ("sweep", "mpt_cifar", "prune", "export", "convert")
    assert all(any(kind in command for kind in kinds) for command in SCRIPTS) and len(SCRIPTS) >= 7


def test_the_originals_file_of_the_readme_is_tested(tmp_path, theirs, monkeypatch):
    """The command with --pretrained, up to where it reads CIFAR-10: the network of the file, to the bit."""
    (command,) = (words for words in COMMANDS if "--pretrained model_best.pth" in words)
    options = args.parse(shlex.split(command.replace("configs/", f"{ROOT}/configs/")))
    net, _ = build.build(options.replace(seed=1))
    monkeypatch.chdir(tmp_path)
    stored = read_network(str(options.run.pretrained))
    load_trained.check_declared(stored, options)
    load_trained.load_weights(stored, net, whole=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert options.run.evaluate and torch.equal(net.eval()(x), theirs(x))


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


def test_the_tables_of_the_readme_are_those_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme

    assert readme.main(["--check"]) == 0, "python scripts/readme.py writes them"
    sys.modules.pop("readme")
