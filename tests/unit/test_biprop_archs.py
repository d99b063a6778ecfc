"""Keys, shapes and counts of the architectures equal those of BIPROP, recorded in `tests/golden/biprop_archs.csv`.

A digest is the sha256 of the sorted lines `<key> <shape>` of the state dict of a SubnetConv network. Six rows have no
digest: BIPROP cannot build or run these networks.
"""

import csv
import hashlib
from functools import cache
from pathlib import Path

import pytest
import torch

import models
from models.constraints import biprop_state_dict, constrain, layer_counts, parameter_counts
from utils.torch_compat import AnyBatchNorm

with (Path(__file__).parents[1] / "golden" / "biprop_archs.csv").open(newline="") as table:
    ROWS = {row["arch"]: row for row in csv.DictReader(table)}
KINDS = {"NonAffineBatchNorm": "nonaffine", "AffineBatchNorm": "affine", "LearnedBatchNorm": "affine"}
RAN = [arch for arch, row in ROWS.items() if row["sha256_affine"]]
REPAIRED = {  # arch -> shape of our logits for a batch of two
    "WideResNet18_3_BinAct": "2x1000",
    "cifarWideResNet18_2_BinAct": "2x10",
    "cifarWideResNet18_3_BinAct": "2x10",
    "ResNet50_v2": "2x1000",
    "WideResNet50_2_v2": "2x1000",
    "ResNet50_BinAct_v2": "2x1000",
}
EVERY = pytest.mark.parametrize("arch", RAN)
EITHER = pytest.mark.parametrize("bn_type", KINDS)


def sizes(word):
    return tuple(int(size) for size in word.split("x"))


def built(arch, **options):
    """Return a network and two images of BIPROP's sizes on the meta device."""
    row = ROWS[arch]
    classes = sizes(row["last3"].split()[-1] if row["last3"] else REPAIRED[arch].split("x")[1])[0]
    with torch.device("meta"):
        model = models.build(arch, num_classes=classes, in_shape=sizes(row["input"]), **options)
        return model, torch.empty(2, *sizes(row["input"]))


@cache
def subnet(arch, bn_type="NonAffineBatchNorm", width_mult=1.0):
    model, x = built(arch, bn_type=bn_type, width_mult=width_mult)
    with torch.device("meta"):
        return constrain(model, "SubnetConv", density=0.3), x


def shapes(arch, bn_type="AffineBatchNorm"):
    return {key: list(value.shape) for key, value in biprop_state_dict(subnet(arch, bn_type)[0]).items()}


def test_every_architecture_of_biprop_is_compared():
    assert ROWS.keys() == models.ARCHS.keys() - {"MLP", "CircuitMLP", "LeNet5", "LeNet5_Caffe", "MNISTNet"}
    assert len(ROWS) == 74
    assert REPAIRED.keys() == ROWS.keys() - set(RAN)


@EVERY
@EITHER
def test_keys_and_shapes_have_the_digest_of_biprop(arch, bn_type):
    lines = sorted(f"{key} {shape}" for key, shape in shapes(arch, bn_type).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == ROWS[arch][f"sha256_{KINDS[bn_type]}"], lines


@EVERY
@EITHER
def test_layers_and_parameters_have_the_counts_of_biprop(arch, bn_type):
    model, _ = subnet(arch, bn_type)
    row, layers = ROWS[arch], layer_counts(model)
    norms = [m for m in model.modules() if isinstance(m, AnyBatchNorm)]
    assert len(layers) == int(row["layers"])
    assert sum(layer.total for layer in layers) == int(row["prunable"])
    assert len(norms) == int(row["bn_layers"])
    assert sum(norm.num_features for norm in norms) == int(row["bn_channels"])
    parameters, kept = parameter_counts(model)
    assert parameters == int(row[f"parameters_{KINDS[bn_type]}"])
    assert parameters - kept == sum(layer.total - layer.kept for layer in layers)


@EVERY
def test_the_first_and_last_layers_are_registered_in_the_order_of_biprop(arch):
    weights = [shape for key, shape in shapes(arch).items() if key.endswith(".weight") and len(shape) == 4]
    assert weights[:3] == [[*sizes(word)] for word in ROWS[arch]["first3"].split()]
    assert weights[-3:] == [[*sizes(word)] for word in ROWS[arch]["last3"].split()]


@pytest.mark.parametrize("arch", ROWS)
def test_logits_have_the_shape_of_biprop(arch):
    output = sizes(ROWS[arch]["output"] or REPAIRED[arch])
    if output == (2, 40):  # BIPROP's read-out of the small ResNets
        model, x = built(arch, readout="original40")
        assert model(x).shape == output
        output = (2, 10)
    model, x = built(arch)
    assert model(x).shape == output


def test_repaired_archs_differ_from_their_siblings_only_in_the_repair():
    bn4 = {"bn4.weight", "bn4.bias", "bn4.running_mean", "bn4.running_var", "bn4.num_batches_tracked"}
    for arch, sibling in {
        "ResNet50_v2": "ResNet50",
        "WideResNet50_2_v2": "WideResNet50_2",
        "ResNet50_BinAct_v2": "ResNet50",
    }.items():
        ours, theirs = shapes(arch), shapes(sibling)
        blocks = {key.removesuffix("bn3.weight") for key in theirs if key.endswith("bn3.weight")}
        assert len(blocks) == 16
        assert ours.keys() - theirs.keys() == {block + key for block in blocks for key in bn4}
        assert all(ours[f"{block}bn4.weight"] == theirs[f"{block}bn3.weight"] for block in blocks)
        assert all(ours[key] == shape for key, shape in theirs.items())

    two, three = shapes("cifarWideResNet18_2_BinAct"), shapes("cifarWideResNet18_3_BinAct")
    assert two == shapes("WideResNet18_2_BinAct") | {key: [10, 768, 1, 1] for key in ("fc.weight", "fc.scores")}
    cifar = {key.replace("shortcut", "downsample"): shape for key, shape in shapes("cWideResNet18_3_BinAct").items()}
    assert three == cifar | {key: [64, 3, 7, 7] for key in ("conv1.weight", "conv1.scores")}


def test_a_wide_resnet_of_factor_two_and_a_half_truncates_its_widths():
    ours = shapes("WideResNet18_3_BinAct")
    assert ours.keys() == shapes("WideResNet18_2_BinAct").keys()
    assert [ours[f"layer{i}.1.conv2.weight"] for i in (1, 2, 3, 4)] == [
        [width, width, 3, 3] for width in (64, 224, 448, 896)
    ]
    assert ours["fc.weight"] == [1000, 896, 1, 1]


@pytest.mark.parametrize(
    "arch, counts",
    {
        "Conv4Wide": (607328, 2425024, 3787760, 5453088, 9691520, 242116480),
        "Conv6Wide": (566368, 2261184, 3531760, 5084448, 9036160, 225732480),
        "Conv8Wide": (1320032, 5275840, 8242160, 11867424, 21094784, 527198080),
        "Wide_VGG_Small": (23192, 82096, 124940, 176712, 307040, 7249120),
        "Wide_VGG_Small_132": (23192, 82096, 124940, 176712, 307040, 7249120),
    }.items(),
)
def test_architectures_have_the_listed_weight_counts_at_other_widths(arch, counts):
    for width_mult, count in zip((0.5, 1, 1.25, 1.5, 2, 10), counts, strict=True):
        model, _ = subnet(arch, width_mult=width_mult)
        assert sum(layer.total for layer in layer_counts(model)) == count, width_mult


def test_wide_vgg_small_with_width_mult_10_has_the_published_widths():
    assert [c.shape[0] for c in layer_counts(subnet("Wide_VGG_Small", width_mult=10)[0])] == [
        160,
        160,
        320,
        320,
        640,
        640,
        10,
    ]


def test_layers_and_activations_have_the_order_of_biprop():
    """The digests do not cover activations and pools."""
    letters = {
        "Conv2d": "C",
        "Linear": "C",
        "BatchNorm2d": "B",
        "BatchNorm1d": "B",
        "ReLU": "R",
        "Sign": "S",
        "MaxPool2d": "P",
    }
    expected = {
        "FC": "CRCRC",
        "Conv2": "CRCRP CRCRC",
        "Conv4": "CRCRPCRCRP CRCRC",
        "Conv6": "CRCRPCRCRPCRCRP CRCRC",
        "Conv8": "CRCRPCRCRPCRCRPCRCRP CRCRC",
        "Conv2_BinAct": "CBSCPBS CBSCBSC",
        "Conv4_BinAct": "CBSCPBSCBSCPBS CBSCBSC",
        "Conv6_BinAct": "CBSCPBSCBSCPBSCBSCPBS CBSCBSC",
        "Conv8_BinAct": "CBSCPBSCBSCPBSCBSCPBSCBSCPBS CBSCBSC",
        "Conv8Wide_BinAct_ReLU": "CSCPBRSCSCPBRSCSCPBRSCSCPBR CSCBRC",
        "Conv8Wide_BinAct_ReLU_Final_Act": "CBSCPBSCBSCPBSCBSCPBSCBSCPBS CBSCBRC",
        "VGG_Small": "CRCPBCCPBCCPBR C",
        "VGG_Small_BinAct": "CSCPBSCSCPBSCSCPBR C",
        "VGG_Small_noReLU_BinAct": "CSCPBSCSCPBSCSCPBR C",
        "VGG_Small_bn_BinAct": "CBSCPBSCBSCPBSCBSCPBR C",
        "Wide_VGG_Small": "CBSCPBSCBSCPBSCBSCPBR C",
        "Wide_VGG_Small_132": "CBRCPBRCBRCPBRCBRCPBR C",
    }
    for size in (4, 6, 8):
        expected[f"Conv{size}Wide"] = expected[f"Conv{size}"]
        expected[f"Conv{size}Wide_BinAct"] = expected[f"Conv{size}_BinAct"]
    assert expected.keys() == {arch for arch in ROWS if "ResNet" not in arch}
    for arch, word in expected.items():
        parts = built(arch)[0].children()
        assert " ".join("".join(letters[type(m).__name__] for m in part) for part in parts) == word, arch
