"""Batches of zero and one image through every constraint and connection strength, forward and backward."""

import pytest
import torch
from torch import nn

from models.constraints import CONV_TYPES, constrain, constrained_layers
from models.constraints.hebbian_stats import coactivation, correlation
from models.constraints.sparse import SparseWeight
from trainers.methods.connection_strengths import ConnectionStrengths
from utils.distributed.runtime import ALONE

SETTINGS = [(kind, {}) for kind in CONV_TYPES if kind != "DenseConv"]
SETTINGS += [("BinaryConv", {"initial_ones": 0.5})]  # above the share of ones up to which products are sparse
SETTINGS += [("ShiftQ", {"shift_update": "crude"}), ("ShiftQ", {"rounding": "stochastic"})]
SETTINGS += [("ShiftPS", {"shift_init": "weights"}), ("ShiftPS", {"rounding": "stochastic"})]
NETWORKS = {  # name -> (make layers, shape of one image)
    "convolutions": (lambda: [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)], (3, 5, 6)),
    "groups": (lambda: [nn.Conv2d(4, 4, 3, padding="same", groups=4), nn.Conv2d(4, 2, 3, 2, groups=2)], (4, 5, 6)),
    "linear": (lambda: [nn.Linear(12, 40, bias=False), nn.Tanh(), nn.Linear(40, 5)], (12,)),
    "linear over positions": (lambda: [nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 5)], (7, 12)),
    "both": (lambda: [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10)], (1, 5, 6)),
}
EVERY_NETWORK = pytest.mark.parametrize("layers", NETWORKS)
EVERY_COUNT = pytest.mark.parametrize("count", [0, 1])


def constrained(layers, kind, **settings):
    torch.manual_seed(0)
    make, shape = NETWORKS[layers]
    return constrain(nn.Sequential(*make()), kind, density=0.3, **settings), shape


@pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=str)
@EVERY_NETWORK
@EVERY_COUNT
@pytest.mark.parametrize("training", [True, False])
def test_every_constraint_supports_tiny_batches_forward_and_backward(kind, settings, layers, count, training):
    model, shape = constrained(layers, kind, **settings)
    model.train(training)
    several = torch.randn(3, *shape)
    each = model(several).shape[1:]
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        x = several[:count].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = model(x)
            assert out.shape == (count, *each) and out.isfinite().all()
        out.float().sum().backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, value in {"input": x, **trained}.items():
            assert value.grad is not None and value.grad.isfinite().all(), name
            assert count or not value.grad.any(), name
        assert not count or any(p.grad.any() for p in trained.values())


@pytest.mark.parametrize("strength", [coactivation, correlation])
@EVERY_NETWORK
@EVERY_COUNT
def test_strengths_of_zero_images_and_correlations_of_one_image_are_zero(strength, layers, count):
    model, shape = constrained(layers, "SparseConv")
    strengths = ConnectionStrengths(constrained_layers(model), correlated=strength is correlation)
    strengths.attach(ALONE)
    model(torch.randn(count, *shape))
    assert strengths.sums.keys() == constrained_layers(model).keys()
    for name, value in strengths.sums.items():
        assert value.shape == model.get_submodule(name).weight.shape and value.isfinite().all()
        assert (count and strength is coactivation) or not value.any()


@EVERY_NETWORK
@EVERY_COUNT
def test_a_watched_layer_has_a_dense_gradient_even_for_zero_images(layers, count):
    model, shape = constrained(layers, "SparseConv")
    masks = [layer.constraint for layer in constrained_layers(model).values()]
    for mask in masks:
        mask.records_gradient = True
    model(torch.randn(count, *shape)).square().sum().backward()
    assert all(isinstance(mask, SparseWeight) and mask.dense_gradient.shape == mask.mask.shape for mask in masks)
    assert any(mask.dense_gradient.any() for mask in masks) == bool(count)
