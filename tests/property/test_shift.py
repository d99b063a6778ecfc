"""Properties of DeepShift's weights and fixed-point numbers for any bits and values."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.constraints.shift import FixedPoint, ShiftPSWeight, ShiftQWeight, power_of_two, rounded

FAST = settings(deadline=None, max_examples=80)
BITS = st.integers(2, 8)
VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12)
SMALL = st.lists(st.floats(-40, 4, width=32), min_size=1, max_size=12)
BOTH = st.booleans()
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def matrix(values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def allowed(weight_bits, lowest):
    return {0.0} | {sign * 2.0**p for p in range(lowest, 1) for sign in (-1, 1)}


@FAST
@given(VALUES, BITS, BOTH, BOTH)
def test_every_weight_of_shift_q_is_zero_or_a_signed_power_of_two_in_range(values, bits, training, stochastic):
    weight = torch.nn.Parameter(matrix(values))
    signs = torch.sign(weight.detach())
    rounding = "stochastic" if stochastic else "deterministic"
    effective = ShiftQWeight(weight, weight_bits=bits, rounding=rounding).train(training)(weight)
    assert {*effective.flatten().tolist()} <= allowed(bits, -(2 ** (bits - 1) - 1))
    assert torch.equal(torch.sign(effective), signs)  # exact zeros stay zero, and nothing else becomes zero


@FAST
@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=12), BITS, BOTH, BOTH)
def test_the_crude_update_gives_a_neighbouring_power_of_two_for_any_bits(values, bits, training, stochastic):
    weight = torch.nn.Parameter(-matrix(values))
    rounding = "stochastic" if stochastic else "deterministic"
    made = ShiftQWeight(weight, weight_bits=bits, rounding=rounding, shift_update="crude").train(training)
    for value, found in zip(values, made(weight).flatten().tolist(), strict=True):
        assert math.frexp(found)[0] == -0.5 and value / 2 < -found < value * 2


@FAST
@given(SMALL, SMALL, BITS, BOTH, BOTH)
def test_every_weight_of_shift_ps_is_zero_or_a_signed_power_of_two_in_range(shifts, signs, bits, training, stochastic):
    n = min(len(shifts), len(signs))
    rounding = "stochastic" if stochastic else "deterministic"
    made = ShiftPSWeight(torch.zeros(n, 1), weight_bits=bits, rounding=rounding).train(training)
    made.shift.data, made.sign.data = matrix(shifts[:n]), matrix(signs[:n])
    effective = made()
    assert {*effective.flatten().tolist()} <= allowed(bits, -(2 ** (bits - 1) - 2))
    if not (stochastic and training):
        assert made.kept == int(effective.count_nonzero())


@FAST
@given(VALUES, BITS)
def test_from_dense_rounds_like_shift_q_within_the_range_of_shift_ps(values, bits):
    weight = matrix(values)
    made = ShiftPSWeight(weight, weight_bits=bits, shift_init="weights").eval()
    assert torch.equal(made(), power_of_two(weight, 2 - 2 ** (bits - 1)))


@FAST
@given(VALUES, BITS)
def test_power_of_two_follows_its_formula(values, bits):
    weight, lowest = matrix(values), 1 - 2 ** (bits - 1)
    w = weight.numpy()
    clamped = np.clip(np.abs(w), np.float32(2.0**lowest), np.float32(1))
    expected = np.sign(w) * np.exp2(np.round(np.log2(clamped)))
    found = power_of_two(weight, lowest).numpy()
    # rounding depends on the last bit of log2 there, and libraries differ in this bit
    near = np.abs(np.log2(clamped) % 1 - 0.5) < 1e-4
    assert np.array_equal(found[~near], expected[~near])
    w = w.copy()
    assert np.array_equal(power_of_two(weight, lowest, clamp_x=True).numpy(), found)
    assert np.array_equal(weight.numpy(), np.sign(w) * clamped)


@FAST
@given(VALUES, st.integers(2, 25), st.integers(0, 30), st.sampled_from(DTYPES))
def test_fixed_point_floors_to_its_grid_and_clamps_in_every_dtype(values, integer, fraction, dtype):
    x, fraction = torch.tensor(values).to(dtype), min(fraction, 32 - integer)
    x = x[x.isfinite()]
    fixed = FixedPoint(integer, fraction).quantise(x)
    assert fixed.dtype == dtype
    for value, found in zip(x.tolist(), fixed.tolist(), strict=True):
        on_grid = math.floor(value * 2**fraction) / 2**fraction  # Python floats scale by powers of two exactly
        exact = min(max(on_grid, -(2 ** (integer - 1))), 2 ** (integer - 1) - 1)
        assert found == torch.tensor(exact, dtype=torch.float64).to(dtype)


@FAST
@given(SMALL)
def test_stochastic_rounding_gives_a_neighbouring_integer_and_keeps_integers(values):
    x = torch.tensor(values)
    found = rounded(x, stochastic=True)
    assert ((found == torch.floor(x)) | (found == torch.ceil(x))).all()
    assert torch.equal(rounded(found, stochastic=True), found)
