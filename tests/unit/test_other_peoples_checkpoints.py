"""Checkpoints of other programs: location of the network, key prefixes, and advice if options differ."""

import shlex

import pytest
import torch

import models
from args import parse
from models.constraints import constrain
from models.registry import ARCHS
from tests.originals import original, original_state, small_net, write
from tests.unit.test_pretrained import into, same
from trainers import load_trained
from trainers.checkpoint_sources import WRAPPERS, network_in, read_network
from utils.errors import UsageError


@pytest.fixture
def options(config):
    """Options of `small_net` that agree with those stored by `original`."""
    return parse(["--config", config()]).replace(arch="Conv2_BinAct", prune_rate=0.3)


def state(prefix=""):
    return {f"{prefix}{key}": value for key, value in original_state(small_net(), module=False).items()}


# --- numbers


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating_point_are_refused(tmp_path, options, kind):
    path = write({name: value.to(kind) for name, value in state().items()}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="floating-point numbers are needed"):
        into(path, options, small_net())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_network_with_non_finite_numbers_is_refused_before_anything_is_loaded(tmp_path, options, number):
    values, target = state(), small_net(seed=1)
    [*values.values()][-1].view(-1)[-1] = number
    with pytest.raises(UsageError, match="is not finite"):
        into(write(values, tmp_path / "net.pt"), options, target)
    assert same(target, small_net(seed=1))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_every_floating_point_dtype_is_converted(tmp_path, options, kind):
    values = {name: value.to(kind) for name, value in state().items()}
    target = small_net(seed=1)
    into(write(values, tmp_path / "net.pt"), options, target)
    pairs = zip(small_net().parameters(), target.parameters(), strict=True)
    assert all(torch.equal(theirs.to(kind).float(), ours) for theirs, ours in pairs)


# --- key prefixes and keys that hold the network


PREFIXES = ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.net."]
PREFIXES += ["model._orig_mod.", "module.module.", "net.model.module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("holder", ["", "state_dict"])
def test_wrapper_prefixes_of_keys_are_removed(tmp_path, options, prefix, holder):
    content = {holder: state(prefix), "epoch": 3} if holder else state(prefix)
    path, target = write(content, tmp_path / "net.pt"), small_net(seed=1)
    assert same(into(path, options, target), small_net())


def test_a_separately_compiled_submodule_is_loaded(tmp_path, options):
    compiled = {key.replace("convs.", "convs._orig_mod."): value for key, value in state().items()}
    assert any("._orig_mod." in key for key in compiled)
    assert same(into(write(compiled, tmp_path / "net.pt"), options, small_net(seed=1)), small_net())


@pytest.mark.parametrize(
    "holder",
    [
        *("model", "state_dict", "model_state_dict", "net", "network", "weights", "ema", "state_dict_ema"),
        *("params", "params_ema", "model_state", "network_state_dict", "state"),
    ],
)
@pytest.mark.parametrize("deeper", ["", "state_dict", "model"])
def test_a_network_is_found_under_its_usual_keys(tmp_path, options, capsys, holder, deeper):
    held = {deeper: state("module."), "epoch": 5} if deeper else state("module.")
    content = {"epoch": 7, "optimizer": {"state": {}, "lr": 0.1}, "config": {"a": 1}, holder: held}
    assert same(into(write(content, tmp_path / "net.pt"), options, small_net(seed=1)), small_net())
    assert "networks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second"), [("model", "ema"), ("state_dict", "state_dict_ema"), ("net", "model_ema")]
)
def test_a_network_is_preferred_to_its_moving_average_with_a_warning(tmp_path, options, capsys, first, second):
    other = {key: torch.zeros_like(value) for key, value in state().items()}
    path = write({second: other, first: state()}, tmp_path / "net.pt")
    assert same(into(path, options, small_net(seed=1)), small_net())
    assert f"warning: {path} holds 2 networks: {first} is used, not {second}\n" in capsys.readouterr().err


def test_a_usual_key_without_a_network_is_skipped(tmp_path, options):
    content = {"model": {"name": "Conv2", "width": 1}, "net": {}, "state_dict": state()}
    assert same(into(write(content, tmp_path / "net.pt"), options, small_net(seed=1)), small_net())


def test_a_file_without_a_network_is_refused_with_its_keys(tmp_path, options):
    path = write({"generator\n": state(), "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"holds no network: .*`state_dict`.*; its entries are generator\\n, epoch$"):
        into(path, options, small_net(seed=1))


def test_two_networks_under_different_wrappers_are_refused(tmp_path):
    path = write(state("model.") | state("net."), tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"holds several networks: it has \S+ twice"):
        read_network(str(path))


def test_self_referencing_content_is_refused(options):
    content = {"epoch": 1}
    content["model"] = content
    with pytest.raises(UsageError, match="holds no network"):
        network_in(content, "net.pt")


@pytest.mark.parametrize("arch", ARCHS)
def test_no_architecture_has_a_layer_named_like_a_wrapper(arch):
    with torch.device("meta"):
        net = models.build(arch, num_classes=10, in_shape=(3, 32, 32) if "MNIST" not in arch else (1, 28, 28))
    assert not [name for name, _ in net.named_parameters() if name.startswith(WRAPPERS)]


# --- options stored in a file


FORGED = "ResNet18\x1b[2J\rerror: all is lost\nerror: forged"


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"arch": "resnet18"}, "not supported: arch resnet18 (did you mean 'ResNet18'?)"),
        ({"arch": "vit_b_16"}, "not supported: arch vit_b_16"),
        ({"arch": "$(reboot)"}, "not supported: arch $(reboot)"),
        ({"arch": FORGED}, "not supported: arch ResNet18\\x1b[2J\\rerror: all is lost\\nerror: forged"),
        ({"arch": "x" * 10**6}, "not supported: arch xxx"),
        ({"arch": "gpj\u202e"}, "not supported: arch gpj\\u202e"),
        ({"conv_type": "subnetconv2"}, "not supported: conv_type subnetconv2 (did you mean 'SubnetConv'?)"),
        ({"prune_rate": 7.5}, "not supported: prune_rate 7.5"),
        ({"prune_rate": float("nan")}, "not supported: prune_rate nan"),
        ({"prune_rate": 10**400}, "not supported: prune_rate 1000"),
        ({"arch": "resnet18", "prune_rate": 0.4}, "not supported: arch resnet18"),
    ],
    ids=lambda value: ascii(value)[:30] if isinstance(value, str) else "",
)
def test_an_unknown_option_value_of_a_file_is_reported_without_advice(program, config, tmp_path, declared, message):
    path = write(original(small_net(), **declared), tmp_path / "net.pth")
    code, _, err = program("--config", config(arch="Conv2_BinAct", prune_rate=0.3), "--pretrained", path)
    assert code == 2 and message in err and "give" not in err and err.startswith("error: ")
    assert err.count("\n") == 1 and len(err) < 900 and "\x1b" not in err and "\r" not in err


@pytest.mark.parametrize(
    ("declared", "ours"),
    [
        ({"arch": "FC"}, {}),
        ({"arch": "ResNet18_BinAct", "prune_rate": 0.25}, {}),
        ({"conv_type": "DenseConv"}, {}),
        ({"conv_type": "GlobalSubnetConv", "prune_rate": 0.1}, {"prune_rate_epoch": 1}),
        ({"prune_rate": 1}, {}),
        ({"prune_rate": 0.1 + 0.2}, {"prune_rate": 0.5}),
        ({}, {"arch": "Conv4"}),
    ],
)
def test_the_advised_flags_load_the_network(config, tmp_path, declared, ours):
    base = {"arch": "Conv2_BinAct", "prune_rate": 0.3, "freeze_weights": None} | ours
    path = write(original(small_net(), **declared), tmp_path / "net.pth")
    words = ["--config", config(**base), "--pretrained", str(path)]
    with pytest.raises(UsageError, match=r"pass .* to use the file's network") as caught:
        load_trained.check_declared(read_network(str(path)), parse(words))
    advice = str(caught.value).partition("; pass ")[2].partition(" to use the file's network")
    assert not advice[2], caught.value
    load_trained.check_declared(read_network(str(path)), parse([*words, *shlex.split(advice[0])]))


def test_options_that_contradict_the_network_of_the_file_are_reported(config, tmp_path):
    path = write(original(small_net(), conv_type="GlobalSubnetConv"), tmp_path / "net.pth")
    options = parse(["--config", config(arch="Conv2_BinAct", prune_rate=0.3), "--pretrained", str(path)])
    with pytest.raises(
        UsageError, match=r"--conv-type GlobalSubnetConv to use .*; with that, also wrong: prune_rate_epoch"
    ):
        load_trained.check_declared(read_network(str(path)), options)


def test_names_of_tensors_are_shown_escaped(tmp_path, options, capsys):
    path = write(state() | {"\x1b[31m\nerror: forged": torch.ones(1), "y" * 10**5: torch.ones(1)}, tmp_path / "net.pt")
    into(path, options, small_net(seed=1), whole=False)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "only in the file: \\x1b[31m\\nerror: forged, yyy" in out and len(out) < 500


def test_an_epoch_that_is_not_a_number_is_shown_escaped(program, config, tmp_path):
    net = constrain(models.build("FC", num_classes=10, in_shape=(1, 8, 8)), "SubnetConv", density=0.5)
    content = original(net, arch="FC", prune_rate=0.5) | {"epoch": "1\x1b[2J\nerror: forged"}
    path = write(content, tmp_path / "net.pth")
    code, out, err = program("--config", config(), "--evaluate", "--pretrained", path)
    assert (code, err) == (0, "") and "(epoch 1\\x1b[2J\\nerror: forged)" in out
