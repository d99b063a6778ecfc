"""models/pruning: every architecture loses units and computes what it did with zeros."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from models.constraints import weight_layers
from models.pruning import channel_groups, compact, criteria
from tests.cases import LIGHT
from utils.errors import UsageError
from utils.files import write_atomic

NARROW20 = ("cResNet20", (3, 32, 32), {"width_mult": 0.25, "readout": "original40"})
TANH = [("CircuitMLP", (1, 4, 4), {"hidden": (9, 8), "bias": True})]  # its norms behind the activations
PRUNABLE = [row for row in LIGHT if row[2].get("hidden") != () and "invert" not in row[2].get("norm", "")]
NETS = [*PRUNABLE, *TANH, NARROW20]


def built(arch, in_shape, options):
    """As after training: no statistic, weight or bias of a norm is as it was made."""
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
    """(network with zeros, groups, masks)."""
    groups = channel_groups.unit_groups(model, images)
    kept = criteria.survivors(criteria.unit_scores(criteria.hidden_weights(model), groups), percent)
    zeros = copy.deepcopy(model)
    channel_groups.zero_units(zeros, groups, kept)
    return zeros, groups, kept


@pytest.mark.parametrize(("arch", "in_shape", "options"), NETS, ids=[f"{n[0]}-{i}" for i, n in enumerate(NETS)])
def test_the_smaller_network_has_the_logits_of_the_one_with_zeros(arch, in_shape, options):
    model, images = built(arch, in_shape, options), torch.randn(4, *in_shape)
    zeros, groups, kept = halved(model, images)
    smaller = compact.compacted(zeros, groups, kept)
    assert sum(p.numel() for p in smaller.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        one, other, before = (net.double()(images.double()) for net in (zeros, smaller, model))
    assert float((one - other).abs().max()) < 1e-9 and not torch.allclose(before, one)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["MLP", "Conv2", "VGG_Small", "cResNet20"]), st.data())
def test_any_units_can_go_as_long_as_one_of_each_group_stays(arch, draw):
    row = next(row for row in NETS if row[0] == arch)
    model, images = built(*row).double(), torch.randn(2, *row[1]).double()
    groups = channel_groups.unit_groups(model, images)
    lists = (st.lists(st.booleans(), min_size=g.width, max_size=g.width).filter(any) for g in groups)
    kept = [torch.tensor(draw.draw(mask)) for mask in lists]
    smaller = compact.compacted(model, groups, kept)
    channel_groups.zero_units(model, groups, kept)
    with torch.no_grad():
        assert torch.allclose(model(images), smaller(images), atol=1e-9)


def test_every_hidden_layer_is_written_once_and_the_output_never():
    for arch, in_shape, options in NETS:
        model = built(arch, in_shape, options)
        groups = channel_groups.unit_groups(model, torch.randn(2, *in_shape))
        wrote = [name for group in groups for name in group.writers]
        assert sorted(wrote) == sorted(list(weight_layers(model))[:-1])
        read = {name for group in groups for name in group.readers}
        assert read == set(list(weight_layers(model))[1:])


def listed(layers):
    return {name: of.tolist() for name, of in layers.items()}


def test_a_channel_before_a_flatten_is_a_block_of_inputs():
    model = built("Conv2", (1, 8, 6), {"width_mult": 0.125})
    first, second, *_ = channel_groups.unit_groups(model, torch.randn(2, 1, 8, 6))
    every = list(range(8))
    assert (first.width, second.width) == (8, 8) and not first.norms and not second.norms
    assert listed(first.writers) == {"convs.0": every} and listed(first.readers) == {"convs.2": every}
    assert listed(second.writers) == {"convs.2": every}
    assert listed(second.readers) == {"linear.0": [unit for unit in every for _ in range(4 * 3)]}


def test_added_channels_are_one_group_with_all_its_norms():
    model = built("cResNet20", (3, 8, 8), {"width_mult": 0.25})
    stem = channel_groups.unit_groups(model, torch.randn(2, 3, 8, 8))[0]
    assert list(stem.writers) == ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"]
    assert list(stem.norms) == ["bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2"]
    assert set(stem.readers) == {
        *(f"layer1.{i}.conv1" for i in range(3)),
        "layer2.0.conv1",
        "layer2.0.shortcut.0",
    }


def test_a_zero_unit_is_zero_behind_a_norm_without_weights_too():
    model = built("VGG_Small", (3, 8, 8), {"width_mult": 0.125, "bn_type": "NonAffineBatchNorm"})
    zeros, groups, kept = halved(model, torch.randn(2, 3, 8, 8))
    seen = []
    zeros.convs[4].register_forward_hook(lambda *a: seen.append(a[2]))
    zeros(torch.randn(2, 3, 8, 8))
    assert list(groups[1].norms) == ["convs.4"]
    assert not seen[0][:, ~kept[1]].any() and seen[0][:, kept[1]].any()


# where units cannot be pruned


@pytest.mark.parametrize(
    ("norm", "told"),
    [("hard_invert", "still gives something to linear.3"), ("soft_invert", "linear.2, a SoftInvert, may make")],
)
def test_a_norm_that_makes_something_of_zeros_is_refused(norm, told):
    model = built("CircuitMLP", (1, 4, 4), {"hidden": (9, 8), "norm": norm})
    with pytest.raises(ValueError, match=f"units cannot be pruned: .*{told}"):
        channel_groups.unit_groups(model, torch.rand(2, 1, 4, 4))


def test_a_network_without_hidden_layers_is_refused():
    with pytest.raises(ValueError, match="output layer alone"):
        channel_groups.unit_groups(built("MLP", (1, 4, 4), {"hidden": ()}), torch.rand(2, 1, 4, 4))


def test_looking_for_groups_changes_nothing():
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
    smaller = compact.compacted(model, *halved(model, torch.randn(2, 3, 8, 8))[1:])
    return smaller, compact.content(smaller, BUILD, {"percent": 50.0})


def write(content, path):
    write_atomic(path, lambda file: torch.save(content, file))
    return path


def test_the_file_gives_the_network_back_to_the_bit(stored, tmp_path):
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
def test_another_file_is_refused_in_one_line(stored, tmp_path, change):
    content = copy.deepcopy(stored[1])
    change(content)
    with pytest.raises(UsageError, match="holds no compact network") as refused:
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
