"""The binary activation: values, and gradients against numpy and the surrogate."""

import numpy as np
import pytest
import torch
from torch import nn

from models.activations import BinarySign, Sign, make_activation
from models.registry import ACTIVATIONS


def gradient(x, g=None):
    x = x.clone().requires_grad_()
    y = Sign()(x)
    y.backward(torch.ones_like(x) if g is None else g)
    return x.grad


def surrogate(x):
    """Return f(x) = 2x − x·|x| on [−1, 1], constant outside."""
    inside = x.clamp(-1, 1)
    return 2 * inside - inside * inside.abs()


def test_sign_is_minus_one_zero_or_one():
    x = torch.tensor([-3.0, -1e-30, -0.0, 0.0, 1e-30, 2.0])
    assert Sign()(x).tolist() == [-1, -1, 0, 0, 1, 1]


def test_sign_after_a_relu_is_zero_or_one():
    assert set(Sign()(torch.relu(torch.randn(100))).unique().tolist()) == {0, 1}


def test_the_gradient_equals_values_measured_on_biprop():
    x = torch.tensor([0.0, 0.25, -0.5, 1.0, -1.0, 1.5, -7.0])
    assert gradient(x).tolist() == [2, 1.5, 1, 0, 0, 0, 0]


def test_the_gradient_equals_the_numpy_formula():
    x, g = (torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    a = x.numpy()
    expected = g.numpy() * np.where(np.abs(a) <= 1, 2 * (1 - np.abs(a)), 0)
    np.testing.assert_allclose(gradient(x, g), expected, rtol=1e-6, atol=1e-7)


def test_the_straight_through_gradient_fails_gradcheck_and_that_of_its_surrogate_passes():
    x = torch.tensor([-1.7, -0.8, -0.3, 0.2, 0.9, 1.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(surrogate, x)
    assert not torch.autograd.gradcheck(BinarySign.apply, x, raise_exception=False)


def test_the_gradient_is_that_of_the_surrogate():
    x = torch.linspace(-2, 2, 81, dtype=torch.float64)[1::2].requires_grad_()  # without the kinks
    (expected,) = torch.autograd.grad(surrogate(x).sum(), x)
    torch.testing.assert_close(gradient(x.detach()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sign_keeps_dtype_shape_and_memory_format(dtype):
    x = torch.randn(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    y = Sign()(x)
    assert y.dtype == gradient(x).dtype == dtype and y.stride() == x.stride() and y.shape == x.shape


def test_sign_does_not_change_its_input():
    x = torch.randn(10)
    before = x.clone()
    gradient(x)
    assert torch.equal(x, before)


def test_every_activation_of_the_table_can_be_built():
    x = torch.tensor([-2.0, 0.5])
    assert make_activation("sign")(x).tolist() == [-1, 1]
    assert torch.equal(make_activation("tanh")(x), torch.tanh(x))
    assert make_activation("relu")(x.clone()).tolist() == [0, 0.5]
    made = [(make_activation(name), make_activation(name)) for name in ACTIVATIONS]
    assert all(isinstance(one, nn.Module) and one is not other for one, other in made)
