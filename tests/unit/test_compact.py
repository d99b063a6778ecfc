"""Removing units of any architecture equals zeroing them, and the compact network is saved and loaded."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from models.constraints import weight_layers
from models.pruning import channel_cut, channel_groups, compact, criteria
from tests.cases import LIGHT
from utils.errors import UsageError
from utils.files import write_atomic

NARROW20 = ("cResNet20", (3, 32, 32), {"width_mult": 0.25, "readout": "original40"})
TANH = [("CircuitMLP", (1, 4, 4), {"hidden": (9, 8), "bias": True})]  # its batch norms follow the activations
PRUNABLE = [row for row in LIGHT if row[2].get("hidden") != () and "invert" not in row[2].get("norm", "")]
NETS = [*PRUNABLE, *TANH, NARROW20]


def built(arch, in_shape, options):
    """Return a network with random parameters and statistics in its batch norms, as after training."""
    torch.manual_seed(5)
    model = models.build(arch, num_classes=7, in_shape=in_shape, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.normal_(layer.weight, 1, 0.3)
                nn.init.normal_(layer.bias)
    return model


def halved(model, images, percent=50):
    """Return (network with `percent` of its units zero, groups, masks of the units kept)."""
    groups = channel_groups.unit_groups(model, images)
    kept = criteria.keep_masks(criteria.unit_scores(criteria.layer_weights(model), groups), percent)
    zeros = copy.deepcopy(model)
    channel_cut.zero_units(zeros, groups, kept)
    return zeros, groups, kept


@pytest.mark.parametrize(("arch", "in_shape", "options"), NETS, ids=[f"{n[0]}-{i}" for i, n in enumerate(NETS)])
def test_the_compact_network_has_the_logits_of_the_zeroed_network(arch, in_shape, options):
    model, images = built(arch, in_shape, options), torch.randn(4, *in_shape)
    zeros, groups, kept = halved(model, images)
    smaller = channel_cut.compacted(zeros, groups, kept)
    assert sum(p.numel() for p in smaller.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        one, other, before = (net.double()(images.double()) for net in (zeros, smaller, model))
    assert float((one - other).abs().max()) < 1e-9 and not torch.allclose(before, one)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["MLP", "Conv2", "VGG_Small", "cResNet20"]), st.data())
def test_any_units_can_be_removed_if_one_of_each_group_stays(arch, draw):
    row = next(row for row in NETS if row[0] == arch)
    model, images = built(*row).double(), torch.randn(2, *row[1]).double()
    groups = channel_groups.unit_groups(model, images)
    lists = (st.lists(st.booleans(), min_size=g.width, max_size=g.width).filter(any) for g in groups)
    kept = [torch.tensor(draw.draw(mask)) for mask in lists]
    smaller = channel_cut.compacted(model, groups, kept)
    channel_cut.zero_units(model, groups, kept)
    with torch.no_grad():
        assert torch.allclose(model(images), smaller(images), atol=1e-9)


def test_every_hidden_layer_writes_one_group_and_the_output_layer_none():
    for arch, in_shape, options in NETS:
        model = built(arch, in_shape, options)
        groups = channel_groups.unit_groups(model, torch.randn(2, *in_shape))
        wrote = [name for group in groups for name in group.writers]
        assert sorted(wrote) == sorted(list(weight_layers(model))[:-1])
        read = {name for group in groups for name in group.readers}
        assert read == set(list(weight_layers(model))[1:])


def as_lists(layers):
    return {name: units.tolist() for name, units in layers.items()}


def test_a_channel_before_a_flatten_is_a_block_of_inputs_of_the_next_layer():
    model = built("Conv2", (1, 8, 6), {"width_mult": 0.125})
    first, second, *_ = channel_groups.unit_groups(model, torch.randn(2, 1, 8, 6))
    every = list(range(8))
    assert (first.width, second.width) == (8, 8) and not first.norms and not second.norms
    assert as_lists(first.writers) == {"convs.0": every} and as_lists(first.readers) == {"convs.2": every}
    assert as_lists(second.writers) == {"convs.2": every}
    assert as_lists(second.readers) == {"linear.0": [unit for unit in every for _ in range(4 * 3)]}


def test_channels_joined_by_an_addition_form_one_group_with_their_norms():
    model = built("cResNet20", (3, 8, 8), {"width_mult": 0.25})
    stem = channel_groups.unit_groups(model, torch.randn(2, 3, 8, 8))[0]
    assert list(stem.writers) == ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"]
    assert list(stem.norms) == ["bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2"]
    assert set(stem.readers) == {
        *(f"layer1.{i}.conv1" for i in range(3)),
        "layer2.0.conv1",
        "layer2.0.shortcut.0",
    }


def test_a_zero_unit_stays_zero_after_a_batch_norm_without_weights():
    model = built("VGG_Small", (3, 8, 8), {"width_mult": 0.125, "bn_type": "NonAffineBatchNorm"})
    zeros, groups, kept = halved(model, torch.randn(2, 3, 8, 8))
    outputs = []
    zeros.convs[4].register_forward_hook(lambda _layer, _inputs, out: outputs.append(out))
    zeros(torch.randn(2, 3, 8, 8))
    assert list(groups[1].norms) == ["convs.4"]
    assert not outputs[0][:, ~kept[1]].any() and outputs[0][:, kept[1]].any()


# networks without units to prune


@pytest.mark.parametrize(
    ("norm", "cause"),
    [
        ("hard_invert", "linear.3 reads nonzero values of units of linear.0"),
        ("soft_invert", "linear.2, a SoftInvert, has the parameter or buffer v"),
    ],
)
def test_a_norm_that_maps_zeros_to_other_values_is_refused(norm, cause):
    model = built("CircuitMLP", (1, 4, 4), {"hidden": (9, 8), "norm": norm})
    with pytest.raises(ValueError, match=f"units cannot be pruned: .*{cause}"):
        channel_groups.unit_groups(model, torch.rand(2, 1, 4, 4))


def test_a_network_without_hidden_layers_is_refused():
    with pytest.raises(ValueError, match="only an output layer"):
        channel_groups.unit_groups(built("MLP", (1, 4, 4), {"hidden": ()}), torch.rand(2, 1, 4, 4))


def test_finding_the_groups_leaves_the_network_unchanged():
    model = built("cResNet20", (3, 8, 8), {"width_mult": 0.25}).requires_grad_(False).train()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        channel_groups.unit_groups(model, torch.randn(2, 3, 8, 8))
    assert model.training and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# the file


BUILD = {"name": "VGG_Small", "num_classes": 7, "in_shape": (3, 8, 8), "width_mult": 0.125}


@pytest.fixture
def stored():
    model = built("VGG_Small", (3, 8, 8), {"width_mult": 0.125})
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps, layer.momentum = 0.02, None
    smaller = channel_cut.compacted(model, *halved(model, torch.randn(2, 3, 8, 8))[1:])
    return smaller, compact.pack_network(smaller, BUILD, {"percent": 50.0})


def write(content, path):
    write_atomic(path, lambda file: torch.save(content, file))
    return path


def test_a_saved_compact_network_loads_bit_for_bit(stored, tmp_path):
    smaller, content = stored
    file, images = write(content, tmp_path / "small.pt"), torch.randn(5, 3, 8, 8)
    assert torch.load(file, weights_only=True)["percent"] == 50.0
    back = compact.load_compact(file)
    assert not back.training and all(p.requires_grad for p in back.parameters())
    with torch.no_grad():
        assert torch.equal(back(images), smaller(images))
    sizes = [(m.in_channels, m.out_channels) for m in back.modules() if isinstance(m, nn.Conv2d)]
    assert sizes == [tuple(m.weight.shape[1::-1]) for m in back.modules() if isinstance(m, nn.Conv2d)]
    assert sizes[:2] == [(3, 8), (8, 8)]
    assert {(m.eps, m.momentum) for m in back.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.02, None)}
    assert [m.num_features for m in back.modules() if isinstance(m, nn.BatchNorm2d)] == [8, 16, 32]
    assert (back.linear[0].in_features, back.linear[0].out_features) == (32, 7)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(kind="another"),
        lambda c: c.pop("build"),
        lambda c: c["build"].update(name="VGG_Smal"),
        lambda c: c["build"].update(colour=1),
        lambda c: c["state"].pop("linear.0.weight"),
        lambda c: c["state"].update({"linear.9.weight": torch.rand(2, 2)}),
        lambda c: c["state"].update({"convs.0.weight": torch.rand(2)}),
        lambda c: c.update(state=7),
        lambda c: c["norms"].update(nowhere={"eps": 1.0}),
    ],
)
def test_a_file_that_is_not_a_compact_network_is_refused_in_one_line(stored, tmp_path, change):
    content = copy.deepcopy(stored[1])
    change(content)
    with pytest.raises(UsageError, match="is not a compact network") as refused:
        compact.load_compact(write(content, tmp_path / "other.pt"))
    assert "\n" not in str(refused.value)


def test_a_missing_or_malicious_file_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'executed')!r}, 'w')",)

    with pytest.raises(UsageError, match="does not exist"):
        compact.load_compact(tmp_path / "nothing.pt")
    with pytest.raises(UsageError, match="asks for eval"):
        compact.load_compact(write({"kind": compact.KIND, "state": Evil()}, tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()
