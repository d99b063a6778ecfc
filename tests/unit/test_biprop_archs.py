"""Our networks have the keys, shapes and counts that were measured on BIPROP's own (`tests/golden/biprop_archs.csv`).

The digest is the sha256 of the lines `<key> <shape>` of a SubnetConv network's state dict, sorted.
"""

import csv
import hashlib
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import models
from models.constraints import biprop_state_dict, constrain, layer_counts, parameter_counts

with (Path(__file__).parents[1] / "golden" / "biprop_archs.csv").open(newline="") as table:
    ROWS = {row["arch"]: row for row in csv.DictReader(table)}
KINDS = {"NonAffineBatchNorm": "nonaffine", "AffineBatchNorm": "affine", "LearnedBatchNorm": "affine"}
EVERY = pytest.mark.parametrize("arch", ROWS)
EITHER = pytest.mark.parametrize("bn_type", KINDS)


@cache
def subnet(arch, bn_type="NonAffineBatchNorm", width_mult=1.0):
    """Shapes only: on the meta device nothing is allocated."""
    shape = tuple(int(size) for size in ROWS[arch]["input"].split("x"))
    with torch.device("meta"):
        model = models.build(arch, num_classes=10, in_shape=shape, bn_type=bn_type, width_mult=width_mult)
        return constrain(model, "SubnetConv", density=0.3), torch.empty(2, *shape)


def test_every_architecture_of_the_originals_is_compared():
    assert ROWS.keys() == models.ARCHS.keys() - {"MLP"}


@EVERY
@EITHER
def test_digest_of_keys_and_shapes(arch, bn_type):
    model, _ = subnet(arch, bn_type)
    lines = sorted(f"{key} {list(value.shape)}" for key, value in biprop_state_dict(model).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == ROWS[arch][f"sha256_{KINDS[bn_type]}"], lines


@EVERY
@EITHER
def test_counts(arch, bn_type):
    model, _ = subnet(arch, bn_type)
    row, layers = ROWS[arch], layer_counts(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert len(layers) == int(row["layers"])
    assert sum(layer.total for layer in layers) == int(row["prunable"])
    assert len(norms) == int(row["bn_layers"])
    assert sum(norm.num_features for norm in norms) == int(row["bn_channels"])
    parameters, kept = parameter_counts(model)
    assert parameters == int(row[f"parameters_{KINDS[bn_type]}"])
    assert parameters - kept == sum(layer.total - layer.kept for layer in layers)


@EVERY
def test_output_shape(arch):
    x = subnet(arch)[1]
    with torch.device("meta"):
        assert models.build(arch, num_classes=10, in_shape=tuple(x.shape[1:]))(x).shape == (2, 10)


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
def test_prunable_weights_at_other_widths(arch, counts):
    for width_mult, count in zip((0.5, 1, 1.25, 1.5, 2, 10), counts, strict=True):
        model, _ = subnet(arch, width_mult=width_mult)
        assert sum(layer.total for layer in layer_counts(model)) == count, width_mult


def test_the_published_vgg_of_width_1_25_is_the_wide_one_at_10():
    assert [c.shape[0] for c in layer_counts(subnet("Wide_VGG_Small", width_mult=10)[0])] == [
        160,
        160,
        320,
        320,
        640,
        640,
        10,
    ]


def test_the_order_of_layers_is_the_originals():
    """A digest of sorted keys does not see activations: BIPROP's section 5.3 in our letters."""
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
    assert expected.keys() == ROWS.keys()
    for arch, word in expected.items():
        with torch.device("meta"):
            parts = models.build(arch, num_classes=10, in_shape=subnet(arch)[1].shape[1:]).children()
            assert " ".join("".join(letters[type(m).__name__] for m in part) for part in parts) == word, arch
