"""Checkpoints of BIPROP and of this program are loaded or refused in one line. Their code never runs."""

import os
import pickle

import numpy as np
import pytest
import torch

import models
from args import parse
from models.constraints import constrain
from tests.originals import before_2022, logits, original, original_state, small_net, write
from trainers.checkpoint_sources import network_in, read_network
from trainers.load_trained import check_declared, load_weights
from utils.errors import UsageError
from utils.records import checkpoints


@pytest.fixture
def options(config):
    """Options of `small_net` that agree with those stored by `original`."""
    return parse(["--config", config()]).replace(arch="Conv2_BinAct", prune_rate=0.3)


def into(path, options, model, whole=True):
    stored = read_network(str(path))
    check_declared(stored, options)
    print(f"{path}: {load_weights(stored, model, whole=whole)}")  # as main.py does
    return model


def same(model, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def refusal(act, path):
    with pytest.raises(UsageError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message and message.count(str(path)) == 1, message
    return message


# accepted formats


@pytest.mark.parametrize("module", [True, False], ids=["module", "bare keys"])
@pytest.mark.parametrize("form", [{}, {"legacy": True}, {"legacy": True, "old_numpy": True}], ids=str)
@pytest.mark.parametrize("age", [dict, before_2022])
def test_every_format_of_biprop_loads_bit_exactly(tmp_path, options, capsys, module, form, age):
    source, target = small_net(), small_net(seed=1)
    assert not torch.equal(logits(source), logits(target))
    path = write(age(original(source, module)), tmp_path / "model_best.pth", **form)
    into(path, options, target)
    assert same(target, source) and torch.equal(logits(target), logits(source))
    warned = "" if age is dict else f"warning: {path} does not record its conv_type and prune_rate; it is loaded"
    assert capsys.readouterr().err.startswith(warned) and read_network(str(path)).is_native is False


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s, "options": None}], ids=["bare", "one", "us"]
)
def test_a_bare_state_dict_loads_with_a_warning(tmp_path, options, capsys, wrap):
    source = small_net()
    for state in (source.state_dict(), original_state(source)):
        assert same(into(write(wrap(state), tmp_path / "net.pt"), options, small_net(seed=1)), source)
    assert (
        "does not record its arch and conv_type and prune_rate; it is loaded with the options given here"
        in capsys.readouterr().err
    )


def test_our_own_checkpoint_declares_its_network(tmp_path, options, capsys):
    content = {"model": small_net().state_dict(), "epoch": 3, "step": 0, "options": options.flat()}
    stored = read_network(str(write(content, tmp_path / "last.pt")))
    declared = {"arch": "Conv2_BinAct", "conv_type": "SubnetConv", "prune_rate": 0.3, "readout": "pooled"}
    assert stored.declared == declared and stored.is_native
    check_declared(stored, options)
    assert load_weights(stored, small_net(seed=1), whole=True) == "30 of 30 tensors match"
    assert not capsys.readouterr().err


def test_a_run_directory_gives_its_newest_readable_checkpoint(tmp_path, options, capsys):
    (folder := tmp_path / "checkpoints").mkdir()
    for epoch, name in ((2, "best.pt"), (1, "epoch_1.pt")):
        write({"model": small_net(seed=epoch).state_dict(), "epoch": epoch, "step": 0}, folder / name)
    stored = read_network(str(tmp_path))
    assert stored.path == str(folder / "best.pt") and stored.is_native and not capsys.readouterr().err
    load_weights(stored, net := small_net(seed=1), whole=True)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in small_net(seed=2).state_dict().items())
    capsys.readouterr()
    (folder / "best.pt").write_bytes(b"PK")
    assert read_network(str(tmp_path)).path == str(folder / "epoch_1.pt")
    assert capsys.readouterr().err.endswith(f"{folder / 'epoch_1.pt'} is used instead\n")


# malicious files


class Attack:
    def __init__(self, call, *words):
        self.call, self.words = call, words

    def __reduce__(self):
        return self.call, self.words


ATTACKS = {"os.system": os.system, "eval": eval, "getattr": getattr}
NAMES = {"os.system": f"{os.system.__module__}.system", "eval": "eval", "getattr": "getattr"}
TOLD = {"protocol 0": "torch.save did not write it", "protocol 4": "is damaged or holds more than tensors"}
FORMS = ["zip", "legacy", "protocol 0", "protocol 2", "protocol 4"]


def attack_file(path, marker, call="os.system", form="zip"):
    words = {
        "os.system": (f"touch {marker}",),
        "eval": (f"open({str(marker)!r}, 'w').close()",),
        "getattr": (Attack(eval, f"open({str(marker)!r}, 'w')"), "name"),
    }
    evil = Attack(ATTACKS[call], *words[call])
    if form.startswith("protocol"):
        path.write_bytes(pickle.dumps(evil, protocol=int(form[-1])))
    else:
        write(original(small_net()) | {"optimizer": evil}, path, legacy=form == "legacy")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", ATTACKS)
def test_a_malicious_file_is_refused_without_running_its_code(program, config, tmp_path, call, form):
    marker = tmp_path / "executed"
    path = attack_file(tmp_path / "evil.pth", marker, call, form)
    for extra in ([], ["--evaluate"]):
        code, out, err = program("--config", config(), "--pretrained", path, *extra)
        assert (code, out, err.count("\n")) == (2, "", 1) and str(path) in err
        assert not marker.exists()
    asks = f"is refused: it asks for {NAMES[call]}; a file may hold only tensors and plain values"
    assert TOLD.get(form, asks) in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("form", FORMS)
def test_the_malicious_files_do_run_when_loaded_unsafely(tmp_path, form):
    path = attack_file(tmp_path / "evil.pth", tmp_path / "executed", "os.system", form)
    if form.startswith("protocol"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()


def test_allowed_globals_are_registered_only_while_a_file_is_read(tmp_path):
    path = write(original(small_net()), tmp_path / "net.pth")
    before = set(torch.serialization.get_safe_globals())
    checkpoints.read(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(UsageError, match=r"it asks for numpy\._core\.multiarray\.scalar; a file may hold only"):
        checkpoints.load(path)


# files that are not checkpoints


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 134078869\n"
BROKEN = {  # (damage to the bytes of a valid file, legacy format or not) -> message
    "cut zip": (False, lambda data: data[: len(data) // 2], "cannot be read: damaged or cut short"),
    "flipped bit": (False, flipped, "cannot be read: damaged at"),
    "cut legacy tensor": (True, lambda data: data[:-5], "cannot be read: "),
    "cut legacy pickle": (True, lambda data: data[:300], "cannot be read: "),
    "empty": (False, lambda data: b"", "is not a checkpoint: it is empty"),
    "text": (False, lambda data: b"arch: Conv4\n", "is not a checkpoint: torch.save did not write it"),
    "pointer": (False, lambda data: POINTER, "is a Git LFS pointer: fetch the file with git lfs pull"),
    "plain pickle": (False, lambda data: pickle.dumps({"a": 1}, protocol=2), "cannot be read: Invalid magic number"),
    "newer pickle": (False, lambda data: pickle.dumps([1], protocol=4), "is refused: it is damaged or holds more"),
    "stray pickle": (False, lambda data: b"\x80\x02\x85R.", "cannot be read: "),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path, fault, recwarn):
    legacy, damage, wanted = BROKEN[fault]
    path = write(original(small_net()), tmp_path / "net.pth", legacy=legacy)
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} {wanted}" in refusal(lambda: read_network(str(path)), path)
    assert not recwarn.list


def test_a_zip_without_a_checkpoint_is_refused(tmp_path, recwarn):
    program, arrays = tmp_path / "program.pt", tmp_path / "arrays.npz"
    torch.jit.script(torch.nn.Linear(2, 2)).save(program)
    recwarn.clear()
    np.savez(arrays, a=np.ones(2))
    for path in (program, arrays):
        message = refusal(lambda path=path: read_network(str(path)), path)
        assert message == f"{path} is not a checkpoint: torch.save did not write it"
    assert not recwarn.list


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    message = refusal(lambda: read_network(str(tmp_path)), tmp_path)
    assert message == f"{tmp_path} is not a run: it has no readable checkpoint"
    gone = tmp_path / "gone.pth"
    assert refusal(lambda: read_network(str(gone)), gone) == f"{gone} does not exist"


@pytest.mark.parametrize(
    "content",
    [
        *([1], {}, {"state_dict": {}}, {"state_dict": [1]}, {"model": {"a": 1}}, {"a": torch.ones(1), "b": 2}),
        *({1: torch.ones(1)}, {"a": torch.eye(2).to_sparse()}, {"a": torch.ones(2, 2, device="meta")}),
    ],
    ids=str,
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    path = write(content, tmp_path / "net.pt")
    assert "holds no network: it must be a state dict, or have one" in refusal(lambda: read_network(str(path)), path)


# missing, unused and mismatched tensors


def test_a_head_of_another_size_is_left_out_for_training_and_refused_for_testing(tmp_path, options, capsys):
    source, target = small_net(num_classes=9), small_net(seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    path = write(original(source), tmp_path / "net.pth")
    shapes = "has shape [9, 32, 1, 1], not [3, 32, 1, 1]"
    found = f"28 of 30 tensors match; of another shape: linear.6.weight {shapes}, linear.6.scores {shapes}"
    message = refusal(lambda: into(path, options, target), path)
    assert message == f"{path} does not hold exactly this network: {found}"
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    into(path, options, target, whole=False)
    assert capsys.readouterr().out == f"{path}: {found}\n"
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("linear.6") else source.state_dict()[key]), key


def test_loading_a_complete_network_reports_all_tensors(tmp_path, options, capsys):
    path = write(original(small_net()), tmp_path / "net.pth")
    into(path, options, small_net(seed=1), whole=False)
    assert capsys.readouterr().out == f"{path}: 30 of 30 tensors match\n"


def test_missing_and_unused_tensors_are_reported(tmp_path, options, capsys):
    dense, subnet = small_net(conv_type="DenseConv"), small_net()
    path = write(original_state(dense), tmp_path / "dense.pt")
    into(path, options, subnet, whole=False)
    named = "convs.0.scores, convs.3.scores, linear.0.scores, linear.3.scores and 1 more"
    assert capsys.readouterr().out == f"{path}: 25 of 30 tensors match; not in the file: {named}\n"
    assert named in refusal(lambda: into(path, options, subnet), path)
    path = write(original_state(subnet), tmp_path / "subnet.pt")
    assert f"25 of 25 tensors match; only in the file: {named}" in refusal(lambda: into(path, options, dense), path)


def test_a_file_without_num_batches_tracked_is_complete(tmp_path, options):
    source = small_net()
    state = {k: v for k, v in original_state(source).items() if not k.endswith("num_batches_tracked")}
    assert len(state) == 26
    target = into(write(state, tmp_path / "net.pt"), options, small_net(seed=1))
    assert torch.equal(logits(target), logits(source))


def test_num_batches_tracked_is_loaded(tmp_path, options):
    source = small_net()
    source.train()(torch.randn(8, 1, 4, 4))
    target = into(write(original(source), tmp_path / "net.pth"), options, small_net(seed=1))
    assert int(target.convs[1].num_batches_tracked) == 2


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_with_no_matching_tensor_but_a_counter_is_refused(tmp_path, options, whole):
    counter = {"convs.1.num_batches_tracked": torch.tensor(5)}
    for state in ({"features.0.weight": torch.ones(3)}, {"other": torch.ones(2)} | counter):
        path = write(state, tmp_path / "net.pt")
        message = refusal(lambda path=path: into(path, options, small_net(), whole=whole), path)
        assert all(part in message for part in ("does not fit this network at all: ", "and 2", "only in the file: "))


# checkpoints of another network


@pytest.mark.parametrize(
    ("theirs", "ours", "wanted"),
    [
        (
            {"conv_type": "DenseConv"},
            {},
            ["conv_type: 'DenseConv' in ", ", 'SubnetConv' here", "--conv-type DenseConv"],
        ),
        ({}, {"arch": "Conv2"}, ["arch: 'Conv2_BinAct' in ", "'Conv2' here; pass --arch Conv2_BinAct to"]),
        (
            {"prune_rate": 0.300001},
            {},
            ["prune_rate: 0.300001 in", "0.3 here; pass --prune-rate"],
        ),
        ({"conv_type": "GlobalSubnetConv"}, {}, ["'GlobalSubnetConv' in", "pass --conv-type GlobalSubnetConv to use"]),
        ({}, {"conv_type": "GlobalSubnetConv"}, ["conv_type: 'SubnetConv' in", "'GlobalSubnetConv' here"]),
        ({"conv_type": "SampleSubnetConv"}, {"conv_type": "FixedSubnetConv"}, ["'FixedSubnetConv' here"]),
        ({"conv_type": "GlobalSubnetConv"}, {"conv_type": "FixedSubnetConv"}, ["'FixedSubnetConv' here"]),
        ({}, {"conv_type": "FixedSubnetConv", "prune_rate": 0.7}, ["pass --prune-rate 0.3 to"]),
        (
            {},
            {"conv_type": "DenseConv", "prune_rate": None},
            ["null here", "pass --conv-type SubnetConv --prune-rate 0.3 to use"],
        ),
    ],
)
@pytest.mark.parametrize("ours_file", [True, False])
def test_another_network_is_refused_with_the_flags_to_pass(tmp_path, options, theirs, ours, wanted, ours_file):
    content = original(small_net(), **theirs)
    if ours_file:
        facts = {name: content[name] for name in ("arch", "conv_type", "prune_rate")}
        content = {"model": small_net().state_dict(), "options": facts}
    path = write(content, tmp_path / "net.pth")
    for whole in (True, False):
        with pytest.raises(UsageError) as caught:
            into(path, options.replace(**ours), small_net(), whole=whole)
        message = str(caught.value)
        assert all(part in message for part in [*wanted, str(path), "to use the file's network"]), message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"prune_rate": 0.3 * (1 + 1e-9)}, {}),
        ({"conv_type": "SubnetConv"}, {"conv_type": "FixedSubnetConv"}),
        ({"conv_type": "SampleSubnetConv", "prune_rate": 0.44}, {"conv_type": "SampleSubnetConv", "prune_rate": None}),
        *(
            ({"conv_type": "DenseConv", "prune_rate": k}, {"conv_type": "DenseConv", "prune_rate": None})
            for k in (-1, 0)
        ),
        ({"conv_type": "DenseConv", "prune_rate": None}, {"conv_type": "DenseConv", "prune_rate": None}),
        ({"conv_type": "DenseConv", "prune_rate": 0.3}, {"conv_type": "DenseConv", "prune_rate": None}),
    ],
)
def test_the_same_network_loads_without_a_warning(tmp_path, options, capsys, theirs, ours):
    path = write(original(small_net(), **theirs), tmp_path / "net.pth")
    into(path, options.replace(**ours), small_net(seed=1))
    output = capsys.readouterr()
    assert (output.out, output.err) == (f"{path}: 30 of 30 tensors match\n", "")


def test_biprops_small_resnets_need_the_readout_original40(tmp_path, options):
    model = constrain(models.build("cResNet20", num_classes=3, in_shape=(3, 32, 32)), "SubnetConv", density=0.3)
    path = write(original(model, arch="cResNet20"), tmp_path / "net.pth")
    with pytest.raises(UsageError, match=r"readout: 'original40' in .*, 'pooled' here; pass --readout"):
        into(path, options.replace(arch="cResNet20"), model)
    into(path, options.replace(arch="cResNet20", readout="original40"), model)


# complete runs


def test_a_biprop_checkpoint_can_be_tested_and_trained(program, config, tmp_path):
    program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    _, expected, _ = program("--resume", run / "checkpoints/last.pt", "--evaluate")
    ours = torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]
    state = {f"module.{key.replace('.constraint', '')}": value[:, :, None, None] for key, value in ours.items()}
    content = {"epoch": 2, "state_dict": state, "arch": "FC", "conv_type": "SubnetConv", "prune_rate": 0.5}
    theirs = write(content, tmp_path / "model_best.pth", legacy=True)
    code, out, err = program("--config", config(), "--evaluate", "--pretrained", theirs)
    assert (code, err) == (0, "") and f"{theirs} (epoch 2): FC, " in out
    assert out.splitlines()[-1] == expected.splitlines()[-1]
    code, out, _ = program("--config", config(), "--pretrained", theirs, "--name", "more")
    assert code == 0 and f"{theirs}: 6 of 6 tensors match" in out
    initial = torch.load(run.parent / "more/checkpoints/initial.pt", weights_only=True)["model"]
    assert all(torch.equal(initial[key], value) for key, value in ours.items())


def test_a_refused_pretrained_file_needs_no_data_and_leaves_no_files(program, config, tmp_path):
    path = write({"other": torch.ones(1)}, tmp_path / "net.pt")
    code, _, err = program("--config", config(), "--pretrained", path, "--set", "MNIST", "--data", "nowhere")
    assert code == 2 and "does not fit this network at all" in err and not (tmp_path / "runs").exists()


def test_an_incomplete_network_is_not_tested(program, config, tmp_path):
    path = write({"linear.0.weight": torch.ones(300, 64, 1, 1)}, tmp_path / "net.pt")
    code, out, err = program("--config", config(), "--evaluate", "--pretrained", path)
    assert (code, out) == (2, "") and "1 of 6 tensors match; not in the file: linear.0.scores, " in err


def test_training_does_not_modify_the_loaded_content(tmp_path, options):
    stored = network_in(original(small_net()), "net.pth")
    before = {key: value.clone() for key, value in stored.state.items()}
    model = small_net(seed=1)
    load_weights(stored, model, whole=True)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    assert all(torch.equal(value, before[key]) for key, value in stored.state.items())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_cannot_be_copied_are_refused(tmp_path, options):
    state = original_state(small_net())
    state["module.convs.0.weight"] = torch.quantize_per_tensor(torch.ones(8, 1, 3, 3), 0.1, 0, torch.qint8)
    path = write(state, tmp_path / "net.pt")
    assert "does not fit: While copying the parameter" in refusal(lambda: into(path, options, small_net()), path)
