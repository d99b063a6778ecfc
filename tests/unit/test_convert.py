"""scripts/convert.py keeps the network in both directions and never loses a file."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from args import parse
from models.biprop_keys import from_biprop, to_biprop
from models.constraints import load_biprop_state_dict
from scripts import convert
from tests.originals import before_2022, logits, original, original_state, small_net, write
from trainers import load_trained
from trainers.checkpoint_sources import read_network
from utils.errors import UsageError
from utils.records import checkpoints

ROOT = Path(__file__).parents[2]
ARCHS = ["Conv2_BinAct", "Conv2", "FC"]
KEYS = [*("epoch", "state_dict", "best_acc1", "best_acc5", "best_train_acc1", "best_train_acc5"), "curr_acc1"]
KEYS += ["curr_acc5", "optimizer", "arch", "conv_type", "prune_rate"]


@pytest.fixture
def run(capsys):
    """Return a function that runs the script and returns its exit code, standard output and standard error."""

    def call(*argv):
        code = convert.main(["biprop", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def ours(model, **facts):
    """Return the entries of our checkpoint that are converted."""
    said = {"arch": "Conv2_BinAct", "conv_type": "SubnetConv", "prune_rate": 0.3, "lr": 0.1}
    state = {"best": {"acc@1": 61.5, "acc@5": 95.0, "epoch": 6}, "last": {"acc@1": 61.0}, "best_train": {}}
    return {"model": model.state_dict(), "epoch": 7, "step": 0, "options": said, "state": state, **facts}


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_network_with_a_value_that_is_not_finite_is_refused(run, tmp_path, is_ours):
    model = small_net()
    next(model.parameters()).data.view(-1)[3] = float("nan")
    path = write(ours(model) if is_ours else original(model), tmp_path / "net.pth")
    code, out, err = run(path, tmp_path / "out.pt")
    assert (code, out) == (2, "") and not (tmp_path / "out.pt").exists()
    assert err.startswith(f"error: {path} cannot be used: ") and err.endswith(" is not finite\n")


# the key map, without a model


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("conv_type", ["SubnetConv", "DenseConv"])
def test_keys_convert_both_ways_without_a_model(arch, conv_type):
    model = small_net(arch, conv_type)
    theirs, here = original_state(model, module=False), model.state_dict()
    assert equal(to_biprop(here), theirs) and equal(from_biprop(theirs), here)
    assert equal(to_biprop(theirs), theirs) and equal(from_biprop(here), here)
    assert equal(from_biprop(original_state(model, module=True)), here)


def test_a_1x1_weight_named_fc_is_linear_and_a_1x1_shortcut_is_not():
    theirs = {
        "fc.weight": torch.rand(10, 8, 1, 1),
        "fc.scores": torch.rand(10, 8, 1, 1),
        "fc.bias": torch.rand(10),
        "layer1.0.conv1.scores": torch.rand(8, 8, 1, 1),
        "layer2.0.shortcut.0.weight": torch.rand(8, 4, 1, 1),
        "layer2.0.shortcut.1.num_batches_tracked": torch.tensor(3),
    }
    shapes = {key: tuple(value.shape) for key, value in from_biprop(theirs).items()}
    assert shapes == {
        "fc.weight": (10, 8),
        "fc.constraint.scores": (10, 8),
        "fc.bias": (10,),
        "layer1.0.conv1.constraint.scores": (8, 8, 1, 1),
        "layer2.0.shortcut.0.weight": (8, 4, 1, 1),
        "layer2.0.shortcut.1.num_batches_tracked": (),
    }
    assert equal(to_biprop(from_biprop(theirs)), theirs)


# from BIPROP's format to ours


@pytest.mark.parametrize("module", [True, False], ids=["module", "bare keys"])
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_biprop_checkpoint_converts_to_ours_with_equal_logits(run, config, tmp_path, arch, legacy, module):
    source, target = small_net(arch), small_net(arch, seed=1)
    file = write(original(source, module, arch=arch), tmp_path / "model_best.pth", legacy=legacy, old_numpy=legacy)
    out = tmp_path / "ours.pt"
    code, told, err = run(file, out)
    assert (code, err) == (0, "")
    said = f"{out}: {len(source.state_dict())} tensors, arch {arch}, conv_type SubnetConv, prune_rate 0.3; "
    assert told == said + "for --pretrained here; it cannot be resumed: it has no optimizer state\n"
    content = torch.load(out, weights_only=True)
    assert equal(content["model"], source.state_dict())
    options = parse(["--config", config()]).replace(arch=arch, prune_rate=0.3)
    load_trained.check_declared(read_network(str(out)), options)
    load_trained.load_weights(read_network(str(out)), target, whole=True)
    assert not torch.equal(logits(small_net(arch, seed=1)), logits(source))
    assert torch.equal(logits(target), logits(source))


def test_options_and_accuracies_of_a_biprop_checkpoint_are_kept(run, tmp_path):
    run(write(original(small_net()), tmp_path / "net.pth"), tmp_path / "ours.pt")
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert content["options"] == {"arch": "Conv2_BinAct", "conv_type": "SubnetConv", "prune_rate": 0.3}
    assert content["epoch"] == 7
    assert content["state"] == {
        "best": {"acc@1": 61.5, "acc@5": 95.25},
        "best_train": {"acc@1": 60.0, "acc@5": 94.0},
        "last": {"acc@1": 61.0, "acc@5": 95.0},
    }


def test_resume_refuses_a_converted_checkpoint(run, tmp_path):
    run(write(original(small_net()), tmp_path / "net.pth"), tmp_path / "ours.pt")
    with pytest.raises(UsageError, match="lacks model, epoch or step"):
        checkpoints.load(tmp_path / "ours.pt")


def test_missing_entries_of_a_biprop_checkpoint_are_left_out(run, tmp_path):
    content = before_2022(original(small_net(), curr_acc1="Not evaluated", prune_rate=-1))
    for file, kept in ((content, ["arch"]), (content["state_dict"], [])):
        code, told, _ = run(write(file, tmp_path / "net.pth"), tmp_path / "ours.pt", "--force")
        assert code == 0 and ("arch and conv_type unknown" in told) == (not kept)
        made = torch.load(tmp_path / "ours.pt", weights_only=True)
        assert list(made["options"]) == kept and ("epoch" in made) == bool(kept)
        assert "acc@1" not in made["state"].get("last", {})


# from our format to BIPROP's


@pytest.mark.parametrize("arch", ARCHS)
def test_our_checkpoint_converts_to_biprops_old_format_and_back(run, tmp_path, arch):
    model, target = small_net(arch), small_net(arch, seed=1)
    out, back = tmp_path / "model_best.pth", tmp_path / "back.pt"
    code, told, _ = run(write(ours(model), tmp_path / "last.pt"), out)
    assert code == 0 and told.endswith("prune_rate 0.3; for --pretrained in BIPROP, with --multigpu\n")
    # the only format that torch < 1.6 reads
    assert out.read_bytes().startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
    content = torch.load(out, weights_only=True)
    assert equal(content["state_dict"], original_state(model))
    load_biprop_state_dict(target, content["state_dict"])
    assert torch.equal(logits(target), logits(model))
    assert run(out, back)[0] == 0
    assert equal(torch.load(back, weights_only=True)["model"], model.state_dict())


def test_the_converted_checkpoint_has_biprops_keys_and_our_values(run, tmp_path):
    run(write(ours(small_net()), tmp_path / "last.pt"), tmp_path / "theirs.pth")
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert sorted(content) == sorted(KEYS)
    assert content.items() >= {"epoch": 7, "arch": "Conv2_BinAct", "conv_type": "SubnetConv", "prune_rate": 0.3}.items()
    measured = [content[key] for key in convert.MEASURES]
    assert (measured, content["optimizer"]) == ([61.5, 95.0, 0.0, 0.0, 61.0, 0.0], {})


def test_options_missing_in_ours_are_missing_in_biprops_checkpoint(run, tmp_path):
    for options in ({}, {"arch": "FC", "conv_type": "DenseConv", "prune_rate": None}):
        run(write(ours(small_net(), options=options), tmp_path / "last.pt"), tmp_path / "theirs.pth", "--force")
        content = torch.load(tmp_path / "theirs.pth", weights_only=True)
        assert content.keys() & {"arch", "conv_type", "prune_rate"} == options.keys() - {"prune_rate"}


# files


def test_a_checkpoint_with_malformed_state_and_epoch_still_converts_its_network(run, tmp_path):
    torch.save(ours(small_net(), state=[1], epoch="seven"), tmp_path / "odd.pt")
    assert run(tmp_path / "odd.pt", tmp_path / "out.pth")[0] == 0
    content = checkpoints.read(tmp_path / "out.pth")
    assert (content["epoch"], content["best_acc1"], len(content["state_dict"])) == (
        0,
        0.0,
        len(small_net().state_dict()),
    )


def test_an_existing_file_is_kept_without_force(run, tmp_path):
    file, out = write(original(small_net()), tmp_path / "net.pth"), tmp_path / "ours.pt"
    out.write_text("mine")
    assert run(file, out) == (2, "", f"error: {out} already exists; --force replaces it\n")
    assert out.read_text() == "mine"
    assert run(file, out, "--force")[0] == 0 and "model" in checkpoints.read(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pth", "ours.pt"]


def test_a_failed_write_keeps_the_existing_file(run, tmp_path, monkeypatch):
    file, out = write(original(small_net()), tmp_path / "net.pth"), tmp_path / "ours.pt"
    out.write_text("mine")

    def full(content, target, **_):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert run(file, out, "--force") == (1, "", f"failed: cannot write {out}: No space left on device\n")
    assert out.read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["net.pth", "ours.pt"]


def test_bad_input_is_reported_in_one_line_and_writes_nothing(run, tmp_path):
    text = tmp_path / "text.pth"
    text.write_text("arch: Conv4")
    good = write(original(small_net()), tmp_path / "net.pth")
    out, gone = tmp_path / "out.pt", tmp_path / "gone"
    for file, target, told in (
        (text, out, f"{text} is not a checkpoint: torch.save did not write it"),
        (gone, out, f"{gone} does not exist"),
        (write([1], tmp_path / "list.pt"), out, "list.pt holds no network"),
        (good, tmp_path, f"{tmp_path} is a directory"),
        (good, gone / "out.pt", f"{gone} is not a directory"),
    ):
        code, said, err = run(file, target)
        assert (code, said, err.count("\n")) == (2, "", 1) and told in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["list.pt", "net.pth", "text.pth"]


def test_a_malicious_file_is_refused_without_execution(run, tmp_path):
    class Evil:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'executed')!r}, 'w')",)

    for legacy in (True, False):
        file = write(original(small_net()) | {"optimizer": Evil()}, tmp_path / "evil.pth", legacy=legacy)
        code, said, err = run(file, tmp_path / "out.pt")
        assert (code, said) == (2, "") and "evil.pth is refused: it asks for eval" in err
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


def test_the_script_runs_as_a_file_from_any_folder(tmp_path):
    write(original(small_net()), tmp_path / "net.pth")
    command = [sys.executable, ROOT / "scripts/convert.py", "biprop", "net.pth", "ours.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("ours.pt: 30 tensors")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr == "error: ours.pt already exists; --force replaces it\n"
