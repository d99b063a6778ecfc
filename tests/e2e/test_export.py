"""scripts/export.py stores a network in a few bits per weight, and integer arithmetic gives its predictions."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from args import from_flat
from models.constraints import bake
from scripts import export
from scripts.parts.export_packed import values
from trainers.build import build
from utils.config.yaml_loader import load_yaml
from utils.records import checkpoints

ROOT = Path(__file__).parents[2]
SHIFT = {"conv_type": "ShiftQ", "freeze_weights": None, "prune_rate": None, "arch": "MLP", "hidden": [20], "bias": True}
SHIFT |= {"epochs": 1, "init": "standard", "lr_policy": None}
DONE = r"100 test images of digits, accuracy [\d.]+ % on int64 additions and shifts alone\n"
DONE += r"predictions equal those in float64 on 100 images, all logits on 100; those in float32 on \d+\n"
DONE += (
    r"[\d.]+ ms per image on integers \(numpy, 1 thread\), [\d.]+ in float32 \(torch, \d+ threads\): \d+ times slower\n"
)


@pytest.fixture
def trained(program, config, tmp_path):
    """Return a function that trains a small shift network for an epoch and returns the run's directory."""

    def train(**changes):
        path = config(**SHIFT | changes)
        code, _, err = program("--config", path, "--log-dir", tmp_path / "logs")
        assert (code, err) == (0, "")
        return max((tmp_path / "logs").rglob("config.yaml"), key=lambda p: p.stat().st_mtime).parent

    return train


@pytest.fixture
def run(capsys):
    """Return a function that runs the script and returns its exit code, standard output and standard error."""

    def call(*argv):
        capsys.readouterr()
        code = export.main([str(a) for a in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def network(directory):
    """Return the baked network of the run's last checkpoint."""
    model, _ = build(from_flat(load_yaml(directory / "config.yaml")))
    model.load_state_dict(checkpoints.load(directory / "checkpoints/last.pt")["model"])
    return bake(model.eval())


WAYS = {
    "Q": {},
    "PS": {"conv_type": "ShiftPS"},
    "few bits": {"conv_type": "ShiftPS", "weight_bits": 2, "activation_bits": [6, 3]},
    "crude": {"shift_update": "crude", "activation_bits": [8, 1]},
    "convolutions": {"arch": "Conv2", "hidden": None, "bias": None, "shift_init": "weights", "conv_type": "ShiftPS"},
    "mixed": {"first_layer_type": "ShiftPS", "rounding": "stochastic", "hidden": [20, 15]},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_export_stores_the_network_bit_exactly_and_runs_on_integers(trained, run, tmp_path, way):
    directory, out = trained(**WAYS[way]), tmp_path / "shift.pt"
    code, told, err = run("shift", directory, out)
    assert (code, err) == (0, "")
    content, plain = torch.load(out, weights_only=True), network(directory)
    for name, layer in content["layers"].items():
        bits = layer.get("bits", content["weight_bits"])
        weight = plain.get_submodule(name).weight
        assert torch.equal(values(layer, bits), weight.double())
        assert layer["codes"].dtype == torch.uint8 and len(layer["codes"]) == -(-bits * weight.numel() // 8)
    layers, size = content["layers"].values(), out.stat().st_size
    most = max(layer.get("bits", content["weight_bits"]) for layer in layers)
    assert re.search(rf"weights of {len(layers)} layers in {most} bits each( or fewer)?; {size:,} bytes in all, ", told)
    code, told, err = run("check", out, "--images", 100)
    assert (code, err) == (0, "") and re.fullmatch(DONE, told), told


def test_a_named_checkpoint_is_exported_and_an_existing_file_is_kept_without_force(trained, run, tmp_path):
    directory, out = trained(epochs=2), tmp_path / "shift.pt"
    out.write_text("mine")
    first = directory / "checkpoints/initial.pt"
    assert run("shift", first, out) == (2, "", f"error: {out} already exists; --force replaces it\n")
    assert out.read_text() == "mine"
    assert run("shift", first, out, "--force")[0] == 0
    stored = torch.load(out, weights_only=True)["layers"]["linear.2"]
    assert run("shift", directory, out, "--force")[0] == 0
    assert not torch.equal(torch.load(out, weights_only=True)["layers"]["linear.2"]["codes"], stored["codes"])
    assert sorted(p.name for p in tmp_path.iterdir() if "tmp" in p.name) == []


def test_a_network_with_unsupported_layers_is_exported_and_refused_by_the_check(trained, run, tmp_path):
    out = tmp_path / "shift.pt"
    for changes, told in (
        ({"norm": "batch_norm"}, "layer linear.1 is a BatchNorm1d, which cannot run on integers alone"),
        ({"activation": "tanh"}, "layer linear.1 is a Tanh, which cannot run on integers alone"),
        ({"shift_depth": 1}, "layer linear.0 has no shift weights; the check needs them in every layer"),
    ):
        directory = trained(**changes)
        assert run("shift", directory, out, "--force")[0] == 0
        content = torch.load(out, weights_only=True)
        plain = network(directory).state_dict()
        assert all(torch.equal(plain[key], value) for key, value in content["rest"].items())
        packed = {f"{name}.{of}" for name in content["layers"] for of in ("weight", "bias")}
        assert content["rest"].keys() | packed == plain.keys() and not content["rest"].keys() & packed
        assert run("check", out) == (2, "", f"error: {told}\n")


def test_a_diverged_network_is_not_exported(trained, run, tmp_path):
    directory = trained()
    path = directory / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["linear.0.weight"][0, 0] = float("nan")
    torch.save(content, path)
    code, _, err = run("shift", directory, tmp_path / "shift.pt")
    assert (code, err) == (2, f"error: {path} cannot be used: linear.0.weight is not finite\n")
    assert not (tmp_path / "shift.pt").exists()


def test_a_differing_prediction_causes_exit_code_1(trained, run, tmp_path, monkeypatch):
    from scripts.parts.export_check import IntegerLayer

    out, real = tmp_path / "shift.pt", IntegerLayer.forward
    run("shift", trained(), out)
    monkeypatch.setattr(IntegerLayer, "forward", lambda self, x: -real(self, x))
    code, told, err = run("check", out, "--images", 50)
    assert (code, err) == (1, "") and not re.search("float64 on 50,", told)


def test_a_checkpoint_outside_of_a_run_is_exported_like_the_one_in_the_run(trained, run, tmp_path):
    directory = trained()
    alone, out, same = (tmp_path / name for name in ("alone.pt", "out.pt", "same.pt"))
    shutil.copy(directory / "checkpoints/last.pt", alone)
    assert run("shift", alone, out)[0] == run("shift", directory, same)[0] == 0
    first, second = (torch.load(path, weights_only=True)["layers"]["linear.0"]["codes"] for path in (out, same))
    assert torch.equal(first, second)


def test_bad_input_is_reported_in_one_line(program, config, trained, run, tmp_path):
    dense = trained(conv_type="DenseConv")
    out, gone, text = tmp_path / "out.pt", tmp_path / "gone", tmp_path / "text.pt"
    text.write_text("a network")
    for words, told in (
        (("shift", dense, out), "no layer has shift weights: conv_type DenseConv; ShiftQ or ShiftPS has"),
        (("shift", gone, out), f"{gone} does not exist"),
        (("shift", tmp_path, out), f"{tmp_path} is not a run: it has no readable checkpoint"),
        (("shift", dense, tmp_path), f"{tmp_path} is a directory; a regular file is needed"),
        (("shift", dense, gone / "out.pt"), f"{gone} is not a directory"),
        (("shift", dense, "/proc/out.pt"), "/proc cannot be written to"),
        (("shift", text, out), f"{text} is not a checkpoint: torch.save did not write it"),
        (("check", gone), f"{gone} does not exist"),
        (("check", dense / "checkpoints/last.pt"), f"{dense}/checkpoints/last.pt was not written by `export.py shift`"),
    ):
        assert run(*words) == (2, "", f"error: {told}\n")
    empty = dense / "checkpoints"
    for path in empty.glob("*.pt"):
        path.unlink()
    code, said, err = run("shift", dense, out)
    assert (code, said, err.count("\n")) == (2, "", 1) and "has no readable checkpoint" in err
    assert not out.exists()


def test_a_damaged_file_and_too_many_images_are_reported_in_one_line(trained, run, tmp_path):
    out = tmp_path / "shift.pt"
    run("shift", trained(), out)
    for count, told in (
        (0, "--images: '0' given, an int >= 1"),
        (10**6, "images: 1000000 given, but the test set of"),
    ):
        code, said, err = run("check", out, "--images", count)
        assert (code, said, err.count("\n")) == (2, "", 1) and told in err
    content = torch.load(out, weights_only=True)
    for edit in (
        lambda c: c["layers"].pop("linear.0"),
        lambda c: c["layers"]["linear.0"].pop("codes"),
        lambda c: c["layers"]["linear.0"].update(shape=[3, 3]),
        lambda c: c.pop("options"),
        lambda c: c["options"].update(hidden=[7]),
        lambda c: c["options"].update(arch="Conv1"),
        lambda c: c.update(weight_bits=2**70),
        lambda c: c.update(weight_bits=4),
        lambda c: c.update(weight_bits="5"),
        lambda c: c.update(weight_bits=None),
        lambda c: c.update(weight_bits=5.5),
        lambda c: c.update(activation_bits=[2**70, 16]),
        lambda c: c.update(activation_bits=[16, 2**70]),
        lambda c: c.update(activation_bits=[16]),
        lambda c: c.update(activation_bits=7),
        lambda c: c.update(layers=[]),
        lambda c: c.update(layers=dict.fromkeys(c["layers"])),
        lambda c: c.update(rest=None),
        lambda c: c["layers"]["linear.0"].update(shape=[2**62, 2**62]),
        lambda c: c["layers"]["linear.0"].update(shape=[2**70]),
        lambda c: c["layers"]["linear.0"].update(codes=c["layers"]["linear.0"]["codes"][:3]),
        lambda c: c["layers"]["linear.0"].update(codes=c["layers"]["linear.0"]["codes"].float()),
        lambda c: c["layers"]["linear.0"].update(zeros=torch.tensor([2**40])),
        lambda c: c["layers"]["linear.0"].update(zeros=torch.tensor([0.5])),
        lambda c: c["layers"]["linear.0"].update(zero_code=None),
        lambda c: c["layers"]["linear.0"].update(bias=torch.tensor([1.5])),
        lambda c: c["layers"]["linear.0"].update(bias="text"),
    ):
        broken = {key: value.copy() if isinstance(value, dict) else value for key, value in content.items()}
        broken["layers"] = {name: dict(layer) for name, layer in content["layers"].items()}
        edit(broken)
        torch.save(broken, tmp_path / "broken.pt")
        code, said, err = run("check", tmp_path / "broken.pt")
        assert (code, said, err.count("\n")) == (2, "", 1) and "broken.pt is damaged: " in err, err


def test_the_script_runs_as_a_file_from_any_folder(trained, tmp_path):
    directory = trained()
    script = [sys.executable, ROOT / "scripts/export.py"]
    for words in (["shift", directory, "a.pt"], ["check", "a.pt", "--images", "20"]):
        done = subprocess.run([*script, *words], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_resumed_shift_run_equals_an_uninterrupted_one(program, config, tmp_path):
    """The checkpoint holds the generators of stochastic rounding."""
    path = config(**SHIFT | {"conv_type": "ShiftPS", "rounding": "stochastic", "epochs": 2, "optimizer": "radam"})
    assert program("--config", path, "--log-dir", "whole")[0] == 0
    assert program("--config", path, "--epochs", 1, "--log-dir", "parts")[0] == 0
    (parts,) = (tmp_path / "parts").rglob("config.yaml")
    assert program("--resume", parts.parent, "--epochs", 2)[0] == 0
    (whole,) = (tmp_path / "whole").rglob("config.yaml")
    first, second = (checkpoints.load(p.parent / "checkpoints/last.pt")["model"] for p in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (whole.parent / "shifts.csv").read_text() == (parts.parent / "shifts.csv").read_text()


@pytest.mark.parametrize(("kind", "precision"), [("ShiftQ", "fp32"), (None, "bf16")])
def test_shift_networks_train_in_fp32_even_if_the_hardware_has_bf16(
    program, config, tmp_path, monkeypatch, kind, precision
):
    """Fixed-point inputs have more bits than bfloat16."""
    monkeypatch.setattr("utils.distributed.runtime.has_bf16", lambda device: True)
    path = config("exact.yml", epochs=1, precision="auto", freeze_weights=None, prune_rate=None, conv_type=kind)
    assert program("--config", path)[0] == 0
    (stored,) = (tmp_path / "runs").rglob("config.yaml")
    assert f"precision: {precision}\n" in stored.read_text()
