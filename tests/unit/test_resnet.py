"""ResNets equal the formulas of their papers and of BIPROP. Tests of read-outs, widths, head and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.activations import BinarySign
from models.constraints import weight_layers
from models.registry import RESNET_PLANS as PLANS

TINY = {"num_classes": 5, "width_mult": 0.125}


def built(arch, size=16, channels=2, seed=0, **options):
    torch.manual_seed(seed)
    return models.build(arch, in_shape=(channels, size, size), **(TINY | options))


def perturbed(model):
    """Return the model in float64 with random batch-norm weights and biases, so that rounding decides no activation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double()


class FunctionalResNet:
    """BIPROP's ResNets in training mode, written as functions of the parameters of `model`."""

    def __init__(self, model, act, file, wide):
        self.weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        self.act = {"relu": torch.relu, "sign": BinarySign.apply}[act]
        self.file, self.wide = file, wide

    def conv(self, name, x, stride=1):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2)

    def bn(self, name, x):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        weight, bias = (self.weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def shortcut(self, block, x, stride):
        name = f"{block}.{'shortcut' if self.file.startswith('cifar') else 'downsample'}"
        return self.bn(f"{name}.1", self.conv(f"{name}.0", x, stride)) if f"{name}.0.weight" in self.weights else x

    def basic(self, b, x, stride):
        y = self.act(self.bn(f"{b}.bn1", self.conv(f"{b}.conv1", x, stride)))
        y, shortcut = self.conv(f"{b}.conv2", y), self.shortcut(b, x, stride)
        match self.file:
            case "cifar" | "cifar_BinAct" | "imagenet" | "imagenet_BinAct":
                return self.act(self.bn(f"{b}.bn2", y) + shortcut)
            case "cifar_v2" | "cifar_BinAct_v2" | "imagenet_BinAct_v2":
                return self.act(self.bn(f"{b}.bn2", y + shortcut))
            case "imagenet_v2":
                return self.act(self.bn(f"{b}.bn2", self.bn(f"{b}.bn2", y) + shortcut))

    def bottleneck(self, b, x, stride):
        y = self.act(self.bn(f"{b}.bn1", self.conv(f"{b}.conv1", x)))
        y = self.act(self.bn(f"{b}.bn2", self.conv(f"{b}.conv2", y, stride)))
        y = self.bn(f"{b}.bn3", self.conv(f"{b}.conv3", y)) + self.shortcut(b, x, stride)
        return self.act(self.bn(f"{b}.bn4", y) if self.file.endswith("v2") else y)

    def stem(self, x):
        def pool(x):
            return F.max_pool2d(x, 3, 2, 1)

        def norm(x):
            return self.bn("bn1", x)

        if self.file.startswith("cifar"):
            return self.act(norm(self.conv("conv1", x)))
        x = self.conv("conv1", x, 2)
        if self.file.endswith("v2"):
            return self.act(norm(pool(x)))
        if self.file == "imagenet" and not self.wide:
            return pool(self.act(norm(x)))
        return self.act(pool(norm(x)))

    def __call__(self, x, blocks, block):
        x = self.stem(x)
        for stage, count in enumerate(blocks, 1):
            for i in range(count):
                x = getattr(self, block)(f"layer{stage}.{i}", x, 2 if stage > 1 and i == 0 else 1)
        return F.adaptive_avg_pool2d(x, 1).flatten(1) @ self.weights["fc.weight"].T


FORMULAS = {  # arch: (BIPROP's file, activation, blocks per stage, block)
    "cResNet18": ("cifar", "relu", (2, 2, 2, 2), "basic"),
    "cResNet18_BinAct": ("cifar_BinAct", "sign", (2, 2, 2, 2), "basic"),
    "cResNet18_v2": ("cifar_v2", "relu", (2, 2, 2, 2), "basic"),
    "cResNet18_BinAct_v2": ("cifar_BinAct_v2", "sign", (2, 2, 2, 2), "basic"),
    "cWideResNet18_2": ("cifar", "relu", (2, 2, 2, 2), "basic"),
    "cResNet20": ("cifar", "relu", (3, 3, 3), "basic"),
    "cResNet32_BinAct": ("cifar_BinAct", "sign", (5, 5, 5), "basic"),
    "cResNet50": ("cifar", "relu", (3, 4, 6, 3), "bottleneck"),
    "ResNet18": ("imagenet", "relu", (2, 2, 2, 2), "basic"),
    "WideResNet34_2": ("imagenet", "relu", (3, 4, 6, 3), "basic"),
    "cifarResNet18_BinAct": ("imagenet_BinAct", "sign", (2, 2, 2, 2), "basic"),
    "WideResNet18_3_BinAct": ("imagenet_BinAct", "sign", (2, 2, 2, 2), "basic"),
    "ResNet18_v2": ("imagenet_v2", "relu", (2, 2, 2, 2), "basic"),
    "WideResNet34_2_v2": ("imagenet_v2", "relu", (3, 4, 6, 3), "basic"),
    "WideResNet18_2_BinAct_v2": ("imagenet_BinAct_v2", "sign", (2, 2, 2, 2), "basic"),
    "ResNet50": ("imagenet", "relu", (3, 4, 6, 3), "bottleneck"),
    "WideResNet50_2_BinAct": ("imagenet_BinAct", "sign", (3, 4, 6, 3), "bottleneck"),
    "ResNet50_v2": ("imagenet_v2", "relu", (3, 4, 6, 3), "bottleneck"),
    "WideResNet50_2_BinAct_v2": ("imagenet_BinAct_v2", "sign", (3, 4, 6, 3), "bottleneck"),
}


@pytest.mark.parametrize("arch", FORMULAS)
def test_logits_and_gradients_follow_the_formulas(arch):
    file, act, blocks, block = FORMULAS[arch]
    size = 16 if file.startswith("cifar") else 64
    model = perturbed(built(arch, size=size))
    theirs = FunctionalResNet(model, act, file, "Wide" in arch and block == "basic")
    x = torch.randn(4, 2, size, size, dtype=torch.float64)
    ours, expected = model(x), theirs(x, blocks, block)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    ours.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.weights[name].grad, rtol=1e-5, atol=1e-7, msg=name)


def test_every_formula_of_the_plans_is_compared():
    def formula(plan):
        return plan.stem, plan.bottleneck, plan.norm, plan.act, len(plan.widths)

    assert {formula(plan) for plan in PLANS.values()} == {formula(PLANS[arch]) for arch in FORMULAS}


def test_each_plan_matches_its_name():
    """The names show activations, the order of norms and the stem, which keys and shapes of parameters do not."""
    norm_twice = {"ResNet18_v2", "ResNet34_v2", "WideResNet18_v2", "WideResNet34_2_v2"}
    assert len(PLANS) == 51
    for arch, plan in PLANS.items():
        assert plan.act == ("sign" if "BinAct" in arch else "relu"), arch
        assert plan.norm == ("v2_twice" if arch in norm_twice else "v2" if arch.endswith("v2") else "v1"), arch
        assert plan.stem == ("cifar" if arch.startswith(("cR", "cW")) else "imagenet"), arch
        assert plan.bottleneck == ("ResNet50" in arch or "ResNet101" in arch), arch


def test_running_statistics_of_a_norm_used_twice_see_both_uses():
    block = built("ResNet18_v2", size=32).train().layer2[1]
    x = torch.randn(4, 16, 4, 4)
    once = block.conv2(block.act(block.bn1(block.conv1(x))))
    twice = (once - once.mean((0, 2, 3), keepdim=True)) / (once.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt() + x
    block(x)
    expected = 0.9 * 0.1 * once.mean((0, 2, 3)) + 0.1 * twice.mean((0, 2, 3))
    torch.testing.assert_close(block.bn2.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert block.bn2.num_batches_tracked == 2


def test_original40_logits_are_ordered_by_class_then_position():
    ours, theirs = (built("cResNet20", size=32, readout=readout).eval() for readout in ("pooled", "original40"))
    theirs.load_state_dict(ours.state_dict())
    features = []
    theirs.layer3.register_forward_hook(lambda module, inputs, output: features.append(output))
    x = torch.randn(3, 2, 32, 32)
    logits = theirs(x)
    assert logits.shape == (3, 4 * 5)
    for label in range(5):
        for position, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            quarter = features[0][:, :, top : top + 4, left : left + 4].mean((2, 3))
            expected = quarter @ theirs.fc.weight[label]
            torch.testing.assert_close(logits[:, 4 * label + position], expected, rtol=1e-4, atol=1e-6)
    # The head is linear, so the pooled logits are the mean over the positions.
    torch.testing.assert_close(ours(x), logits.view(3, 5, 4).mean(2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "width_mult", "widths", "middle"),
    [
        ("cResNet18", 0.3, (19, 38, 76, 153), None),
        ("WideResNet34_3_BinAct", 0.1, (6, 25, 51, 102), None),
        ("WideResNet18_3_BinAct", 0.1, (6, 22, 44, 89), None),
        ("cResNet20", 0.13, (2, 4, 8), None),
        ("cResNet50", 0.1, (24, 48, 100, 204), (6, 12, 25, 51)),
        ("WideResNet50_2", 0.1, (24, 48, 100, 204), (12, 24, 50, 102)),
    ],
)
def test_width_mult_truncates_every_width(arch, width_mult, widths, middle):
    model = built(arch, size=32, width_mult=width_mult)
    stages = [model.get_submodule(stage) for stage in model.stages]
    assert tuple(stage[-1].bn1.num_features for stage in stages) == (middle or widths)
    last = "conv3" if middle else "conv2"
    assert tuple(getattr(stage[-1], last).out_channels for stage in stages) == widths
    assert model.fc.in_features == widths[-1]
    assert model.conv1.out_channels == int(PLANS[arch].widths[0] * width_mult)


@pytest.mark.parametrize("arch", ["cResNet18", "ResNet50_v2", "cResNet20_BinAct"])
def test_only_the_head_has_a_bias_and_only_with_head_bias(arch):
    for head_bias in (False, True):
        model = built(arch, size=32, head_bias=head_bias)
        biased = [name for name, layer in weight_layers(model).items() if layer.bias is not None]
        assert biased == (["fc"] if head_bias else [])
    nn.init.zeros_(model.fc.weight)
    assert torch.equal(model.eval()(torch.randn(2, 2, 32, 32)), model.fc.bias.expand(2, 5))


@pytest.mark.parametrize(("arch", "size"), [("cResNet18", 64), ("cResNet20", 48), ("cResNet50", 20), ("ResNet18", 100)])
def test_other_image_sizes_give_one_logit_per_class(arch, size):
    assert built(arch, size=size).eval()(torch.randn(2, 2, size, size)).shape == (2, 5)


@pytest.mark.parametrize("arch", ["cResNet18", "ResNet50_BinAct_v2", "cResNet20"])
def test_a_batch_of_one_trains_down_to_a_single_pixel(arch):
    size = 2 ** PLANS[arch].halvings
    logits = built(arch, size=size).train()(torch.randn(1, 2, size, size))
    assert logits.shape == (1, 5)
    logits.square().sum().backward()


@pytest.mark.parametrize("arch", ["cResNet18", "cResNet20_BinAct", "ResNet18_v2", "ResNet50"])
def test_activations_keep_the_channels_last_format(arch):
    model = built(arch, size=32, channels=3).to(memory_format=torch.channels_last)
    outputs = []
    for name, module in model.named_modules():
        if "layer" in name:
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last))
    assert len(outputs) > 20
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("cResNet20", {"readout": "40"}, "readout: '40' is unknown; one of pooled, original40"),
        ("cResNet18", {"readout": "original40"}, "readout: original40 is only for cResNet20, 32, 44, 56 and 110"),
        (
            "ResNet50",
            {"readout": "original40", "size": 32},
            "readout: original40 is only for cResNet20, 32, 44, 56 and 110",
        ),
        ("cResNet20", {"readout": "original40", "size": 64}, "readout: original40 needs 32x32 images, not 64x64"),
        ("Conv4", {"readout": "original40"}, "readout: not an option of this arch, but of cResNet18 and 50 others"),
        ("FC", {"head_bias": True}, "head_bias: not an option of this arch, but of cResNet18 and 50 others"),
        ("cResNet18", {"hidden": (3,)}, "hidden: not an option of this arch, but of FC and 2 others"),
        ("cResNet18", {"depth": 3}, "depth: not an option of this arch, but of none"),
        ("cResNet18", {"bn_type": "None"}, "bn_type: 'None' is unknown"),
        ("cResNet18", {"size": 7}, "a 7x7 image is too small for 3 halvings: at least 8x8 is needed"),
        ("cResNet20", {"size": 3}, "a 3x3 image is too small for 2 halvings: at least 4x4 is needed"),
        ("ResNet18_BinAct", {"size": 31}, "a 31x31 image is too small for 5 halvings: at least 32x32 is needed"),
        ("ResNet18", {"width_mult": 0.01, "size": 32}, "width_mult: 0.01 leaves no channel of 64"),
        ("cResNet20", {"width_mult": 0.05}, "width_mult: 0.05 leaves no channel of 16; at least 0.0625 is needed"),
    ],
)
def test_an_option_that_does_not_fit_the_arch_is_refused_in_one_line(arch, options, message):
    with pytest.raises(ValueError, match=f"^arch {arch}: ") as error:
        built(arch, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
