"""Every config that is shipped trains, and what the README shows is true."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import args
import data
from data.batches import DeviceBatches
from trainers.experiment import assemble, build
from trainers.loop import State, evaluate, train_one_epoch
from utils.runtime import Runtime

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yml"))
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python main\.py (.*)$", README, flags=re.M)


class Quiet:
    def stop_asked(self):
        return False


def fake_set(name):
    """Six random training and two test images of the set's shape."""
    spec = data.SPECS[name]
    channels, height, width = spec.in_shape
    made = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, height, width, channels), generator=made, dtype=torch.uint8).numpy()
    labels = torch.randint(0, spec.num_classes, (8,), generator=made).numpy()
    return data.ImageSet(spec, data.Split(images[:6], labels[:6]), data.Split(images[6:], labels[6:]))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_takes_a_step(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = config.read_text()
    rate = ["--prune-rate", "0.5"] if re.search(r"^prune_rate: -1$", text, flags=re.M) else []
    options = args.parse(["--config", str(config), "--seed", "1", "--dry-run", "1", *rate]).replace(batch_size=6)
    assert options.warnings == ()
    runtime = Runtime(torch.device("cpu"), torch.float32)
    model, method = build(options)
    parts = assemble(options, runtime, model, method, fake_set(options.data.set))
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert train_one_epoch(parts, State(), "a step", Quiet())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved and moved <= trainable
    assert isinstance(parts.train, DeviceBatches)
    assert evaluate(model, parts.held_out, method, runtime).loss > 0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_begins_with_paper_published_command_and_measured(config):
    head = [line for line in (ROOT / config).read_text().splitlines() if line.startswith("#")]
    assert [line.split(":")[0] for line in head] == ["# Paper", "# Published", "# Command", "# Measured"]
    assert f"--config {config}" in head[2]


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


def test_the_python_of_the_readme_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names: dict[str, object] = {}
    exec(block, names)
    net, plain, x = names["net"].eval(), names["plain"].eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(x), plain(x), atol=1e-5)


def test_the_tables_of_the_readme_are_those_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme

    assert readme.main(["--check"]) == 0, "python scripts/readme.py writes them"
    sys.modules.pop("readme")
