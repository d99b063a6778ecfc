"""Pruning of units in networks outside models/: removal equals zeroing, or the network is refused with the cause."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from models.pruning import channel_cut, channel_groups, criteria


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Net(nn.Module):
    """Network of named layers whose forward is a function of the network and the images."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def crelu(x):
    return torch.cat([x.relu(), (-x).relu()], 1)


def shuffle(x, groups):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def head(x):
    return x.mean((2, 3))


def excited(n, x):
    x = n.a(x)
    gate = n.up(F.silu(n.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
    return n.out(head(n.b(x * gate)))


def split_gates(n, x):
    values, gates = n.a(x).chunk(2, 1)
    return n.out(head(n.b(values * gates.sigmoid()).relu()))


def in_place(n, x):
    x = n.a(x)
    x += n.b(x).relu_()
    return n.out(head(x.mul_(2)))


def shuffled(n, x):
    x = shuffle(torch.cat([n.a(x), n.b(x)], 1).relu(), 2)
    return n.out(head(n.bn(n.c(x)).relu()))


def evens_and_odds(n, x):
    x = n.a(x).relu()
    return n.out(head(n.b(x[:, ::2] + x[:, 1::2])))


def with_features(n, x):
    x = n.a(x).relu()
    y = n.b(x).relu()
    return {"logits": n.out(head(n.c(y).relu())), "features": y}


def dense(n, x):
    x = torch.cat([x, n.a(x).relu()], 1)
    x = torch.cat([x, n.b(n.bn(x)).relu()], 1)
    return n.out(head(n.bn2(x)))


def shared(n, x):
    x = n.a(x).relu()
    return n.out(head(n.b(n.b(x).relu()).relu() + n.side(x)))


IMAGE = (3, 6, 5)
REMOVABLE = {
    "crelu mlp": lambda: Net(
        lambda n, x: n.c(crelu(n.b(crelu(n.a(x.flatten(1)))))),
        a=nn.Linear(90, 7),
        b=nn.Linear(14, 6),
        c=nn.Linear(12, 4),
    ),
    "crelu conv": lambda: Net(
        lambda n, x: n.out(n.bn(crelu(n.b(crelu(n.a(x))))).flatten(1)),
        a=conv(3, 5),
        b=conv(10, 6),
        bn=nn.BatchNorm2d(12),
        out=nn.Linear(12 * 30, 4),
    ),
    "concat": lambda: Net(
        lambda n, x: n.out(torch.cat([n.a(x).relu(), n.b(x).tanh(), x], 1).flatten(1)),
        a=conv(3, 5),
        b=conv(3, 4),
        out=nn.Linear(12 * 30, 4),
    ),
    "dense block": lambda: Net(
        dense, a=conv(3, 5), bn=nn.BatchNorm2d(8), b=conv(8, 4), bn2=nn.BatchNorm2d(12), out=nn.Linear(12, 4)
    ),
    "split gates": lambda: Net(split_gates, a=conv(3, 8), b=conv(4, 6), out=nn.Linear(6, 4)),
    "unbind": lambda: Net(
        lambda n, x: n.out(head(sum(n.a(x).relu().unflatten(1, (2, -1)).unbind(1)))), a=conv(3, 8), out=nn.Linear(4, 4)
    ),
    "evens and odds": lambda: Net(evens_and_odds, a=conv(3, 8), b=conv(4, 6), out=nn.Linear(6, 4)),
    "maxout": lambda: Net(
        lambda n, x: n.out(head(n.a(x).unflatten(1, (-1, 2)).amax(2))), a=conv(3, 12), out=nn.Linear(6, 4)
    ),
    "maxout of blocks": lambda: Net(
        lambda n, x: n.out(head(n.a(x).unflatten(1, (2, -1)).max(1)[0])), a=conv(3, 12), out=nn.Linear(6, 4)
    ),
    "grouped": lambda: Net(
        lambda n, x: n.out(head(n.c(n.b(n.a(x).relu()).relu()))),
        a=conv(3, 12),
        b=conv(12, 18, groups=3),
        c=conv(18, 6, 1),
        out=nn.Linear(6, 4),
    ),
    "grouped images": lambda: Net(
        lambda n, x: n.out(head(n.a(torch.cat([x, -x], 1)).relu())), a=conv(6, 12, groups=3), out=nn.Linear(12, 4)
    ),
    "depthwise": lambda: Net(
        lambda n, x: n.out(head(n.c(n.bn(n.b(n.a(x).relu())).relu()))),
        a=conv(3, 6),
        b=conv(6, 12, groups=6),
        bn=nn.BatchNorm2d(12),
        c=conv(12, 6, 1),
        out=nn.Linear(6, 4),
    ),
    "depthwise after a concat": lambda: Net(
        lambda n, x: n.out(head(n.c(torch.cat([n.a(x), n.b(x)], 1).relu()))),
        a=conv(3, 6),
        b=conv(3, 6),
        c=conv(12, 12, groups=12),
        out=nn.Linear(12, 4),
    ),
    "one output a group": lambda: Net(
        lambda n, x: n.out(head(n.b(n.a(x).relu()).relu())), a=conv(3, 12), b=conv(12, 6, groups=6), out=nn.Linear(6, 4)
    ),
    "used twice": lambda: Net(shared, a=conv(3, 6), b=conv(6, 6), side=conv(6, 6, 1), out=nn.Linear(6, 4)),
    "squeeze and excitation": lambda: Net(
        excited, a=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), b=conv(8, 6), out=nn.Linear(6, 4)
    ),
    "gate of the images": lambda: Net(
        lambda n, x: n.out(head(n.b(n.a(x) * x.mean(1, keepdim=True)))), a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4)
    ),
    "in place": lambda: Net(in_place, a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4)),
    "shuffle": lambda: Net(
        shuffled, a=conv(3, 6), b=conv(3, 6), c=conv(12, 8, groups=2), bn=nn.BatchNorm2d(8), out=nn.Linear(8, 4)
    ),
    "unused": lambda: Net(
        lambda n, x: n.out(head(n.a(x).relu())), a=conv(3, 6), out=nn.Linear(6, 4), more=nn.Linear(5, 5)
    ),
    "registered in another order": lambda: Net(
        lambda n, x: n.out(n.b(n.a(x.flatten(1)).relu()).relu()),
        out=nn.Linear(7, 4),
        b=nn.Linear(9, 7),
        a=nn.Linear(90, 9),
    ),
    "features": lambda: Net(with_features, a=conv(3, 6), b=conv(6, 7), c=conv(7, 6), out=nn.Linear(6, 4)),
    "softmax at the end": lambda: Net(
        lambda n, x: F.log_softmax(n.out(n.a(x.flatten(1)).relu()), 1), a=nn.Linear(90, 9), out=nn.Linear(9, 4)
    ),
    "tokens": lambda: Net(
        lambda n, x: n.out(n.b(F.gelu(n.a(x.flatten(2).mT))).mean(1)),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 6),
        out=nn.Linear(6, 4),
    ),
    "linear on images": lambda: Net(
        lambda n, x: n.out(head(n.b(F.gelu(n.a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2))),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 6),
        out=nn.Linear(6, 4),
    ),
    "upsampled": lambda: Net(
        lambda n, x: n.out(head(n.b(F.pad(F.interpolate(F.hardswish(n.a(x)), scale_factor=2), (1, 0, 2, 0))))),
        a=conv(3, 8),
        b=conv(8, 6),
        out=nn.Linear(6, 4),
    ),
    "leaky by hand": lambda: Net(
        lambda n, x: n.out(torch.where((y := n.a(x.flatten(1))) > 0, y, 0.1 * y).clamp(-2, 2)),
        a=nn.Linear(90, 9),
        out=nn.Linear(9, 4),
    ),
}


def randomize_norms(model, seed=0):
    """Give each batch norm random parameters and statistics, as after training; return the model in float64."""
    torch.manual_seed(seed)
    for layer in model.double().eval().modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias)
    return model


def remove_half(model, images):
    """Return the outputs of the model, with half of its units zero and without these, and the smaller network."""
    groups = channel_groups.unit_groups(model, images[:2])
    kept = criteria.keep_masks(criteria.unit_scores(criteria.layer_weights(model), groups), 50)
    assert any(not mask.all() for mask in kept)
    zeros = copy.deepcopy(model)
    channel_cut.zero_units(zeros, groups, kept)
    smaller = channel_cut.compacted(model, groups, kept)
    with torch.no_grad():
        return *(torch.cat([x.flatten() for x in tree_leaves(net(images))]) for net in (model, zeros, smaller)), smaller


@pytest.mark.parametrize("name", REMOVABLE)
def test_removing_units_gives_the_same_outputs_as_zeroing_them(name):
    torch.manual_seed(1)
    model, images = randomize_norms(REMOVABLE[name]()), torch.randn(16, *IMAGE, dtype=torch.float64)
    before, zeros, after, smaller = remove_half(model, images)
    assert torch.allclose(zeros, after, rtol=0, atol=1e-9) and not torch.allclose(before, zeros, atol=1e-3)
    assert sum(p.numel() for p in smaller.parameters()) < 0.85 * sum(p.numel() for p in model.parameters())


def test_units_before_an_adaptive_pool_of_channels_last_images_can_be_removed():
    torch.manual_seed(1)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = {"a": conv(IMAGE[0], 8), "b": conv(8, 8), "pool": pool, "out": nn.Linear(8, 4)}
    model = Net(lambda n, x: n.out(n.pool(n.b(n.a(x).relu()).relu())), **layers)
    model = model.to(torch.float64, memory_format=torch.channels_last).eval()
    images = torch.randn(16, *IMAGE, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    before, zeros, after, _ = remove_half(model, images)
    assert torch.allclose(zeros, after, rtol=0, atol=1e-9) and not torch.allclose(before, zeros, atol=1e-3)


def test_a_layer_that_writes_two_groups_keeps_units_of_both():
    model, images = (
        randomize_norms(REMOVABLE["depthwise after a concat"]()),
        torch.randn(2, *IMAGE, dtype=torch.float64),
    )
    groups = channel_groups.unit_groups(model, images)
    assert [(group.width, list(group.writers)) for group in groups] == [(6, ["a", "c"]), (6, ["b", "c"])]
    kept = [torch.arange(6) == i for i in (2, 5)]
    smaller = channel_cut.compacted(model, groups, kept)
    channel_cut.zero_units(model, groups, kept)
    assert (smaller.c.groups, smaller.c.in_channels, smaller.c.out_channels) == (2, 2, 2)
    with torch.no_grad():
        assert torch.allclose(model(images), smaller(images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(25))
def test_units_that_are_inactive_on_the_images_are_traced(seed):
    torch.manual_seed(seed)
    model = REMOVABLE["crelu mlp"]().double()
    with torch.no_grad():
        model.a.bias.sub_(torch.randint(0, 2, (7,)) * 99)  # about half of the units are 0 after the first ReLU
    _, zeros, after, _ = remove_half(model, torch.randn(16, *IMAGE, dtype=torch.float64))
    assert torch.allclose(zeros, after, rtol=0, atol=1e-9)


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("by", torch.zeros(6, 1, 1))

    def forward(self, x):
        return x - self.by


def two_convs(middle):
    return Net(lambda n, x: n.out(head(n.b(middle(n, n.a(x))).relu())), a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4))


def into_buffer(n, x):
    x = n.a(x)
    out = torch.zeros(len(x), 6, 6, 5)
    out[:, :3] = x[:, 3:]
    return n.out(head(n.b(out)))


def with_images(middle):
    """Return a network whose function `middle` also gets the images, and adds 0 to the units for ordinary images."""
    return Net(lambda n, x: n.out(head(n.b(middle(n.a(x), x)))), a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4))


def masked(n, x):
    y = n.a(x.flatten(1))
    mask = torch.ones(y.shape, dtype=torch.bool)
    mask[:, 0] = False
    return n.out(n.b(y[mask].view(len(x), -1)))


def hooked(**hooks):
    """Return a network with hooks: {method that registers the hook: (layer, hook)}."""
    model = two_convs(lambda _, x: x)
    for method, (layer, hook) in hooks.items():
        getattr(model.get_submodule(layer), method)(hook)
    return model


def twice():
    model = Net(lambda n, x: n.out(head(n.c(n.b(n.a(x))))), a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4))
    model.c = model.b
    return model


ZERO_UNITS = "b reads nonzero values of units of a whose weights are all zero"
REFUSED = {  # (network, part of the message)
    "sigmoid": (two_convs(lambda _, x: x.sigmoid()), ZERO_UNITS),
    "one minus": (two_convs(lambda _, x: 1 - x), ZERO_UNITS),
    "softplus": (two_convs(lambda _, x: F.softplus(x)), ZERO_UNITS),
    "power": (two_convs(lambda _, x: x**0), ZERO_UNITS),
    "clamped": (two_convs(lambda _, x: x.clamp(min=0.1)), ZERO_UNITS),
    "padded": (two_convs(lambda _, x: F.pad(x, (1, 1, 1, 1), value=1.0)), ZERO_UNITS),
    "softmax": (two_convs(lambda _, x: x.softmax(1)), "_softmax in the network may mix or move units of a, before b"),
    "layer norm": (two_convs(lambda _, x: F.layer_norm(x, x.shape[1:])), "native_layer_norm in the network may mix"),
    "channel mean": (two_convs(lambda _, x: x - x.mean(1, keepdim=True)), "mean in the network mixes the units of a"),
    "norm": (two_convs(lambda _, x: F.normalize(x)), "linalg_vector_norm in the network may mix"),
    "attention": (two_convs(lambda _, x: (x @ x.mT) @ x), "bmm in the network may mix or move units of a, before b"),
    "local response": (two_convs(lambda _, x: F.local_response_norm(x, 3)), "in the network .* units of a, before b"),
    "rolled": (two_convs(lambda _, x: x.roll(1, 1)), "roll in the network may mix or move units of a, before b"),
    "channel shuffle": (two_convs(lambda _, x: F.channel_shuffle(x, 2)), "channel_shuffle in the network may mix or"),
    "by a mask": (
        Net(masked, a=nn.Linear(90, 7), b=nn.Linear(6, 6), out=nn.Linear(6, 4)),
        "index in the network picks some of the units of a, before b",
    ),
    "activated by the images": (
        with_images(lambda y, x: y + (x.mean((1, 2, 3), keepdim=True) - 9).relu()),
        "add in the network combines the images with units of a, before b",
    ),
    "filled where the images are bright": (
        with_images(lambda y, x: y.masked_fill(x.mean((1, 2, 3), keepdim=True) > 9, 1.0)),
        "masked_fill in the network combines the images with units of a, before b",
    ),
    "decision by the images": (
        with_images(lambda y, x: y.sigmoid() if x.mean() > 9 else y),
        "is_nonzero in the network makes a Python value of the images",
    ),
    "two names": (twice(), "b and c are one layer with two names"),
    "picked": (two_convs(lambda _, x: x[:, [1, 0, 2, 3, 5, 4]]), "index in the network picks some of the units of a"),
    "random": (two_convs(lambda _, x: F.dropout(x, training=True)), "native_dropout in the network may mix"),
    "constant": (two_convs(lambda _, x: x * torch.ones(6, 1, 1)), "mul in the network combines a tensor of fixed"),
    "channel pad": (
        two_convs(lambda _, x: F.pad(x[:, :3], (0, 0, 0, 0, 0, 3))),
        "constant_pad_nd in the network pools or pads the units",
    ),
    "written number": (
        two_convs(lambda _, x: x.reshape(-1, 6, 6, 5)),
        "after units are removed, the network fails before b: ",
    ),
    "written slice": (two_convs(lambda _, x: torch.cat([x[:, 3:], x[:, :3]], 1)), "b computes other values after"),
    "written width": (two_convs(lambda _, x: x / x.shape[1]), "b computes other values after units are removed"),
    "unequal split": (
        two_convs(lambda _, x: torch.cat(x.split([2, 4], 1), 1)),
        "takes an unequal part of the units",
    ),
    "uneven split": (two_convs(lambda _, x: torch.cat(x.split(4, 1), 1)), "takes an unequal part of the units"),
    "batch mixing": (two_convs(lambda _, x: x.cumsum(0)), "cumsum in the network may mix or move units of a, before b"),
    "decision": (
        two_convs(lambda _, x: x if x.sum() > 0 else -x),
        "in the network makes a Python value of units of a",
    ),
    "one for all": (two_convs(lambda n, x: x * n.b(x)[:, :1]), "units of . can be removed only together"),
    "taken apart again": (
        Net(lambda n, x: n.out(head(torch.cat([x, n.a(x)], 1)[:, 3:])), a=conv(3, 6), out=nn.Linear(6, 4)),
        "slice in the network takes an unequal part of the units of a, before out",
    ),
    "read by nothing": (
        Net(lambda n, x: (n.a(x) * x, n.out(head(n.a(x))))[1], a=conv(3, 3), out=nn.Linear(3, 4)),
        "mul in the network combines a tensor of fixed width with units of a",
    ),
    "images among units": (
        Net(lambda n, x: n.out(head(sum(torch.cat([n.a(x), x], 1).chunk(2, 1)))), a=conv(3, 5), out=nn.Linear(4, 4)),
        "split in the network combines the images with units of a, before out",
    ),
    "images beside units": (
        Net(lambda n, x: n.out(head(torch.cat([n.a(x), x], 2))), a=conv(3, 3), out=nn.Linear(3, 4)),
        "units of a, before out",
    ),
    "images": (
        Net(lambda n, x: n.out(head(n.b(n.a(x) + x))), a=conv(3, 3), b=conv(3, 6), out=nn.Linear(6, 4)),
        "add in the network combines the images with units of a, before b",
    ),
    "depthwise images": (
        Net(lambda n, x: n.out(head(n.a(x))), a=conv(3, 6, groups=3), out=nn.Linear(6, 4)),
        "a, a grouped convolution, has separate filters for channels of the images",
    ),
    "functional": (
        Net(lambda n, x: n.out(head(F.conv2d(n.a(x), n.b.weight))), a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4)),
        "convolution in the network may mix or move units of a, before out",
    ),
    "in place": (
        Net(into_buffer, a=conv(3, 6), b=conv(6, 6), out=nn.Linear(6, 4)),
        "copy_ in the network overwrites another tensor with",
    ),
    "a parameter": (
        nn.Sequential(conv(3, 6), nn.PReLU(), conv(6, 6)),
        "1, a PReLU, has the parameter or buffer weight; only",
    ),
    "a buffer": (nn.Sequential(conv(3, 6), Shift(), conv(6, 6)), "1, a Shift, has the parameter or buffer by; only"),
    "weight norm": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 6)), conv(6, 6)),
        "has the parameter or buffer original0; only",
    ),
    "old weight norm": (
        nn.Sequential(nn.utils.spectral_norm(conv(3, 6)), conv(6, 6)),
        "0, a Conv2d, has the parameter or buffer weight_orig; only",
    ),
    "hook of the network": (hooked(register_forward_hook=("a", lambda _m, _in, out: out + 1)), ZERO_UNITS),
    "pre-hook of the network": (
        hooked(register_forward_pre_hook=("b", lambda _m, inputs: (inputs[0] + 1,))),
        ZERO_UNITS,
    ),
    "called without its hooks": (
        Net(lambda n, x: n.out(n.b.forward(n.a(x)).flatten(1)), a=conv(3, 6), b=conv(6, 6), out=nn.Linear(180, 4)),
        "convolution in the network may mix or move units of a, before out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unprunable_network_is_refused_with_the_cause(name):
    model, cause = REFUSED[name]
    with pytest.raises(ValueError, match=f"^units cannot be pruned: .*{cause}") as refused:
        channel_groups.unit_groups(randomize_norms(model), torch.randn(2, *IMAGE, dtype=torch.float64))
    assert "\n" not in str(refused.value)


def test_a_network_that_casts_to_float32_is_refused():
    model = Net(lambda n, x: n.out(n.a(x.float().flatten(1)).relu()), a=nn.Linear(90, 9), out=nn.Linear(9, 4))
    with pytest.raises(
        ValueError, match=r"^units cannot be pruned: the network fails in float64: mat1 and mat2"
    ) as refused:
        channel_groups.unit_groups(model, torch.randn(2, *IMAGE))
    assert "\n" not in str(refused.value)


def test_a_network_that_returns_all_of_its_units_is_refused():
    model = Net(lambda n, x: [n.a(x), n.b(n.a(x))], a=conv(3, 6), b=conv(6, 6))
    with pytest.raises(ValueError, match="nothing to prune"):
        channel_groups.unit_groups(model, torch.randn(2, *IMAGE))
