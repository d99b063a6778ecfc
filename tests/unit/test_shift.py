"""DeepShift: arithmetic against numpy, gradients against those of their surrogates, and state."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from models.constraints.gradients import ThroughRounding, ThroughShiftAndSign
from models.constraints.shift import FixedPoint, ShiftPSWeight, ShiftQWeight, power_of_two, rounded

NAN = float("nan")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def q(weight=None, **options):
    return ShiftQWeight(torch.zeros(1) if weight is None else weight, **options)


def ps(shift, sign, **options):
    """Return a constraint with these parameters."""
    made = ShiftPSWeight(torch.zeros_like(shift), **options)
    made.shift.data, made.sign.data = shift.clone(), sign.clone()
    return made


# rounding


def test_rounding_is_half_to_even():
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert rounded(halves).tolist() == [-2, -2, 0, 0, 2, 2]
    shifts, ones = torch.tensor([[-0.5, -1.5, -2.5, -3.5]]), torch.ones(1, 4)
    assert ps(shifts, ones)().tolist() == [[1.0, 0.25, 0.25, 2.0**-4]]
    assert ps(torch.zeros(1, 4), torch.tensor([[0.5, 0.51, -0.5, -1.5]]))().tolist() == [[0, 1, 0, -1]]
    assert power_of_two(torch.tensor([0.70, 0.71, -0.35, -0.36]), -15).tolist() == [0.5, 1.0, -0.25, -0.5]


@pytest.mark.parametrize("value", [-3.75, -0.5, 0.25, 2.0])
def test_stochastic_rounding_is_unbiased(value):
    torch.manual_seed(0)
    n, fraction = 40_000, value - math.floor(value)
    found = rounded(torch.full((n,), value), stochastic=True)
    deviation = math.sqrt(fraction * (1 - fraction) / n)
    assert abs(float(found.mean()) - value) <= 5 * deviation
    assert len(found.unique()) == (2 if fraction else 1)


def test_stochastic_rounding_never_rounds_an_integer_up(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 1 - 2**-24))  # the largest value that is drawn
    assert rounded(torch.tensor([-14.0, -13.5]), stochastic=True).tolist() == [-14.0, -14.0]


def test_stochastic_rounding_happens_in_training_only_and_uses_the_generator_of_torch():
    weight = nn.Parameter(random(40, 9) / 10)
    for made in (q(rounding="stochastic"), ps(weight.detach() * 90, weight.detach() * 20, rounding="stochastic")):
        torch.manual_seed(1)
        first, second = made(weight), made(weight)
        torch.manual_seed(1)
        assert torch.equal(made(weight), first) and not torch.equal(first, second)
        plain = q() if isinstance(made, ShiftQWeight) else ps(made.shift.data, made.sign.data)
        assert torch.equal(made.eval()(weight), plain.eval()(weight))


@pytest.mark.parametrize("bits", [1, 9, 0, -3])
@pytest.mark.parametrize("kind", [ShiftQWeight, ShiftPSWeight])
def test_impossible_bits_are_refused(kind, bits):
    with pytest.raises(ValueError, match=f"weight_bits: {bits} given; sign and shift take 2 to 8 bits together"):
        kind(torch.zeros(2, 2), weight_bits=bits)


# gradients


def test_gradients_of_ps_are_those_of_the_formula():
    shift, sign, g = random(6, 5) * 3 - 4, random(6, 5, seed=1), random(6, 5, seed=2)
    made = ps(shift, sign)
    made().backward(g)
    p = np.round(np.clip(shift.numpy(), -14, 0))
    s = np.sign(np.round(sign.numpy()))
    np.testing.assert_allclose(made.shift.grad, g.numpy() * s * 2.0**p * np.log(2), rtol=1e-6)
    assert torch.equal(made.sign.grad, g)
    assert {*s.ravel()} == {-1, 0, 1}


def test_gradients_of_ps_are_those_of_the_surrogate_and_fail_gradcheck():
    p, signs, g = (random(4, 3, seed=i, dtype=torch.float64) for i in range(3))
    shift, sign = (torch.round(p * 2) - 5).requires_grad_(), (signs * 2).requires_grad_()
    s = torch.sign(torch.round(sign.detach()))
    found = torch.autograd.grad(ThroughShiftAndSign.apply(shift, sign, torch.exp2(shift) * s), (shift, sign), g)
    surrogate = lambda shift, sign: s * torch.exp2(shift) + sign  # noqa: E731
    expected = torch.autograd.grad(surrogate(shift, sign), (shift, sign), g)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(surrogate, (shift, sign))
    real = lambda a, b: ThroughShiftAndSign.apply(a, b, torch.exp2(a.round()) * torch.sign(b.round()))  # noqa: E731
    assert not torch.autograd.gradcheck(real, (shift, sign), raise_exception=False)


@pytest.mark.parametrize("update", ["ste", "crude"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_q_pass_straight_through_also_where_values_are_clamped(update, training):
    weight, g = nn.Parameter(torch.tensor([[-3.0, 0.3, 0.0, 1e-9, 1.0]])), random(1, 5)
    q(shift_update=update).train(training)(weight).backward(g)
    assert torch.equal(weight.grad, g)


def test_rounding_fails_gradcheck_and_its_surrogate_passes():
    x = random(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: x * 1, x)
    assert not torch.autograd.gradcheck(lambda x: ThroughRounding.apply(x, x.round()), x, raise_exception=False)
    fixed = FixedPoint(2, 3).quantise(x * 100)
    assert torch.equal(torch.autograd.grad(fixed.sum(), x)[0], torch.full_like(x, 100))
    assert FixedPoint(2, 3).quantise(x.detach()).requires_grad is False


# ShiftQ


def test_the_weight_of_q_is_clamped_in_place_in_training_only():
    values = [[-3.0, 0.3, 0.0, -1e-9]]
    weight = nn.Parameter(torch.tensor(values))
    assert q().eval()(weight).tolist() == [[-1.0, 0.25, 0.0, -(2.0**-15)]]
    assert torch.equal(weight.data, torch.tensor(values))
    q()(weight)
    assert torch.equal(weight.data, torch.tensor([[-1.0, 0.3, 0.0, -(2.0**-15)]]))


@pytest.mark.parametrize("training", [True, False])
def test_the_crude_update_overwrites_weights_and_biases_before_the_optimizer_step(training):
    weight, bias = nn.Parameter(torch.tensor([[0.3, -0.8, 0.0]])), nn.Parameter(torch.tensor([0.7, -1e-9]))
    made = q(shift_update="crude").train(training)
    assert made(weight) is weight and made.effective_bias(bias) is bias
    assert weight.tolist() == [[0.25, -1.0, 0.0]] and bias.tolist() == [0.5, -(2.0**-30)]
    weight.data += 0.05  # lost: 0.3 is rounded to 0.25 again
    made.train(training)
    assert made(weight).tolist() == [[0.25, -1.0, pytest.approx(2.0**-4)]]


@pytest.mark.parametrize("bits", [2, 5])
def test_the_crude_update_clamps_nothing(bits):
    weight = nn.Parameter(torch.tensor([[3.0, -3.0, 2.0**-20, -100.0, 0.0]]))
    made = q(shift_update="crude", weight_bits=bits)
    assert made(weight).tolist() == [[4.0, -4.0, 2.0**-20, -128.0, 0.0]]
    assert made.effective_bias(nn.Parameter(torch.tensor([3.0]))).tolist() == [4.0]


@pytest.mark.parametrize(
    "kind, layer, inputs, bias",
    [
        (ShiftQWeight, "linear", True, False),
        (ShiftQWeight, "conv", True, True),
        (ShiftPSWeight, "linear", False, False),
        (ShiftPSWeight, "conv", True, True),
    ],
)
def test_the_default_rounds_the_inputs_and_biases_that_the_code_of_the_paper_rounds(kind, layer, inputs, bias):
    weight, value = torch.zeros(2, 3) if layer == "linear" else torch.zeros(2, 3, 1, 1), torch.tensor([0.1, -0.1])
    rounded_value = FixedPoint(16, 16).quantise(value)
    made, given = kind(weight), kind(weight, activation_bits=(16, 16))
    assert (made.input_quantiser() is not None, torch.equal(made.effective_bias(value), rounded_value)) == (
        inputs,
        bias,
    )
    assert given.input_quantiser() == FixedPoint(16, 16) and torch.equal(given.effective_bias(value), rounded_value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fixed_point_does_not_overflow_in_any_dtype(dtype):
    x = torch.tensor([1.0, -1.0, 1.5, -300.0, 0.25, 2.0**-14, -0.0, math.inf, -math.inf, NAN], dtype=dtype)
    x.requires_grad_()
    found = FixedPoint(16, 16).quantise(x)
    limits = torch.tensor([32767.0, -32768.0]).to(dtype).tolist()
    assert found.dtype == dtype and found[:7].tolist() == x[:7].tolist()
    assert found[7:9].tolist() == limits and found[9].isnan()
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.ones_like(x))
    assert FixedPoint(4, 2).quantise(torch.tensor([6.9, 8.0, -9.0], dtype=dtype)).tolist() == [6.75, 7.0, -8.0]


@pytest.mark.parametrize("bits", [(1, 8), (1, 0), (0, 16), (26, 0), (32, 0), (40, 40), (2, 31), (16, -1)])
@pytest.mark.parametrize("kind", [ShiftQWeight, ShiftPSWeight])
def test_degenerate_and_inexact_fixed_points_are_refused(kind, bits):
    told = f"activation_bits: {bits[0]},{bits[1]} given; it must be two ints: bits before the binary point, sign incl"
    with pytest.raises(ValueError, match=re.escape(told)):
        kind(torch.zeros(2, 2), activation_bits=bits)


@pytest.mark.parametrize("bits", [(2, 0), (2, 30), (25, 0), (25, 7), (16, 16)])
def test_every_accepted_fixed_point_has_positive_numbers_and_exact_limits(bits):
    ends = FixedPoint(*bits).quantise(torch.tensor([1e30, -1e30])).tolist()
    assert ends == [2 ** (bits[0] - 1) - 1, -(2 ** (bits[0] - 1))] and ends[0] >= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_are_rounded_as_in_float32(dtype):
    weight = (random(4000) / 3).to(dtype)
    expected = power_of_two(weight.float(), -15)
    assert torch.equal(power_of_two(weight, -15).float(), expected)
    start = ShiftPSWeight(weight[:, None], weight_bits=5, shift_init="weights")
    assert start.shift.dtype == dtype
    assert torch.equal(start.eval()().float(), power_of_two(weight.float()[:, None], -14))


def test_a_bias_is_fixed_point_unless_crude():
    bias, g = nn.Parameter(torch.tensor([0.7, -0.7, 9.0])), torch.tensor([1.0, 2.0, 3.0])
    for made in (q(activation_bits=(3, 2)), ps(torch.zeros(1, 1), torch.ones(1, 1), activation_bits=(3, 2))):
        bias.grad = None
        effective = made.effective_bias(bias)
        effective.backward(g)
        assert effective.tolist() == [0.5, -0.75, 3.0] and torch.equal(bias.grad, g)


def test_the_hook_rounds_the_input_of_a_layer():
    layer = nn.Linear(3, 2)
    layer.register_forward_pre_hook(q(activation_bits=(3, 1)).input_quantiser())
    x = torch.tensor([[0.7, -0.7, 9.0]])
    assert torch.equal(layer(x), nn.functional.linear(torch.tensor([[0.5, -1.0, 3.0]]), layer.weight, layer.bias))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_nan_stays_nan():
    weight = nn.Parameter(torch.tensor([[NAN, 1.0]]))
    for update in ("ste", "crude"):
        assert q(shift_update=update)(weight).isnan().tolist() == [[True, False]]
    assert q().fixed_point.quantise(torch.tensor(NAN)).isnan()


# ShiftPS


@pytest.mark.parametrize("bits, lowest", [(2, 0), (3, -2), (5, -14), (8, -126)])
def test_initial_values_of_ps_are_those_of_the_published_code(bits, lowest):
    generator = torch.Generator().manual_seed(3)
    linear = ShiftPSWeight(torch.zeros(90, 80), weight_bits=bits, generator=generator)
    conv = ShiftPSWeight(torch.zeros(40, 20, 3, 3), weight_bits=bits, generator=generator)
    for made, low, high in ((linear, lowest, 0), (conv, -10, -1)):
        assert low <= made.shift.min() <= low * 0.98 and high + low * 0.02 <= made.shift.max() <= high
        assert abs(made.shift.mean() - (low + high) / 2) < 0.02 * (high - low) + 1e-9
        assert -1 <= made.sign.min() < -0.98 and 0.98 < made.sign.max() <= 1 and abs(made.sign.mean()) < 0.03
    again = ShiftPSWeight(torch.zeros(90, 80), weight_bits=bits, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.shift, linear.shift) and torch.equal(again.sign, linear.sign)


def test_the_shift_is_clamped_in_place_in_training_only():
    shift, sign = torch.tensor([[3.0, -20.0, -2.2]]), torch.ones(1, 3)
    made = ps(shift, sign).eval()
    assert made().tolist() == [[1.0, 2.0**-14, 0.25]] and torch.equal(made.shift.data, shift)
    assert torch.equal(made.train()(), made.eval()())
    assert torch.equal(made.shift.data, torch.tensor([[0.0, -14.0, -2.2]]))


def test_a_frozen_sign_has_no_gradient_and_the_shift_has():
    made = ps(torch.full((2, 2), -3.0), random(2, 2), freeze_sign=True)
    made().sum().backward()
    assert made.sign.grad is None and not made.sign.requires_grad and made.shift.grad is not None


def test_from_dense_gives_the_rounded_logarithm_and_the_sign():
    weight = torch.tensor([[0.3, -0.8, 0.0, 1e-9, -5.0]])
    made = ShiftPSWeight(torch.zeros(1, 5))
    values = made.from_dense(weight)
    assert values["shift"].tolist() == [[-2.0, 0.0, -14.0, -14.0, 0.0]]
    assert values["sign"].tolist() == [[1.0, -1.0, 0.0, 1.0, -1.0]]
    started = ShiftPSWeight(weight, shift_init="weights")
    assert torch.equal(started.shift, values["shift"]) and torch.equal(started.sign, values["sign"])


# cache


def test_evaluation_computes_the_weight_once_and_again_when_it_has_changed(monkeypatch):
    calls = []
    real = torch.Tensor.exp2_
    monkeypatch.setattr(torch.Tensor, "exp2_", lambda x: calls.append(1) or real(x))
    weight = nn.Parameter(random(4, 4) / 4)
    made, parts = q().eval(), ps(random(4, 4) - 3, random(4, 4)).eval()
    crude = q(shift_update="crude").eval()
    for constraint, written in ((made, weight), (parts, parts.shift), (parts, parts.sign), (crude, weight)):
        calls.clear()
        first = constraint(weight).clone()
        assert torch.equal(constraint(weight), first) and len(calls) <= 1
        calls.clear()
        with torch.no_grad():
            written.mul_(-2)
        assert not torch.equal(constraint(weight), first) and len(calls) == 1
        constraint.train().eval()
        constraint(weight)
        assert len(calls) == 2


@pytest.mark.parametrize("training", [True, False])
def test_the_effective_weight_keeps_the_memory_format_also_with_one_input_channel(training):
    weight = nn.Parameter(random(8, 1, 3, 3).to(memory_format=torch.channels_last))
    made = ShiftPSWeight(weight.detach()).to(memory_format=torch.channels_last)
    made.shift.data = weight.detach()
    assert weight.stride() == (9, 1, 3, 1) == made.shift.stride()
    for constraint in (q(), made):
        assert constraint.train(training)(weight).stride() == weight.stride()


def test_a_copied_shift_constraint_is_independent():
    for made in (q(), ps(random(2, 2) - 3, random(2, 2))):
        weight = nn.Parameter(random(2, 2))
        before = made.eval()(weight).clone()
        twin = copy.deepcopy(made)
        for parameter in twin.parameters():
            parameter.data.zero_()
        twin.train()(weight)
        assert torch.equal(made(weight), before)
