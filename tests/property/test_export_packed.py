"""Packing is lossless for all bits, signs, shifts and zeros, and uses the stated number of bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.parts.export_packed import pack, pack_any_powers, pack_powers, signs_and_shifts, unpack, values
from utils.errors import UsageError

FAST = settings(deadline=None, max_examples=80)
BITS = st.integers(2, 8)


@FAST
@given(BITS, st.data())
def test_unpacking_restores_the_codes_from_exactly_their_bits(bits, data):
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), dtype=torch.int64)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-bits * len(codes) // 8)
    assert torch.equal(unpack(packed, bits, len(codes)), codes)
    text = "".join(f"{code:0{bits}b}" for code in codes.tolist())
    assert "".join(f"{byte:08b}" for byte in packed.tolist()).rstrip("0") == text.rstrip("0")


@FAST
@given(BITS, st.booleans(), st.sampled_from([(6,), (2, 3), (1, 2, 1, 3)]), st.data())
def test_unpacking_restores_the_weights_and_their_zeros(bits, zero_code, shape, data):
    last = 2 ** (bits - 1) - 1 - zero_code
    one = st.tuples(st.sampled_from([-1, 0, 1]), st.integers(0, last))
    drawn = data.draw(st.lists(one, min_size=6, max_size=6))
    weight = torch.tensor([s * 2.0**-n for s, n in drawn]).view(shape)
    packed = pack_powers(weight, bits, zero_code=zero_code)
    assert torch.equal(values(packed, bits), weight.double())
    sign, shift = signs_and_shifts(packed, bits)
    assert np.array_equal(sign.flatten(), [s for s, _ in drawn])
    assert all(n == m for (s, n), m in zip(drawn, shift.flatten().tolist(), strict=True) if s)
    assert len(packed["zeros"]) == (0 if zero_code else sum(s == 0 for s, _ in drawn))
    assert packed["shape"] == list(shape)


@FAST
@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(-40, 40)), min_size=1, max_size=9))
def test_any_powers_are_restored_from_the_fewest_bits(drawn):
    weight = torch.tensor([s * 2.0**n for s, n in drawn])
    packed = pack_any_powers(weight)
    assert torch.equal(values(packed, 5), weight.double())
    exponents = [n for s, n in drawn if s] or [0]
    assert 2 ** (packed["bits"] - 1) > max(exponents) - min(exponents) and packed["largest"] == max(exponents)
    assert packed["bits"] == 2 or 2 ** (packed["bits"] - 2) <= max(exponents) - min(exponents)
    assert len(packed["codes"]) == -(-packed["bits"] * len(drawn) // 8)


def test_powers_that_need_more_than_8_bits_are_refused():
    assert pack_any_powers(torch.tensor([2.0**-100, 2.0**27]))["bits"] == 8
    with pytest.raises(
        UsageError, match=r"powers from 2\^-100 to 2\^28 need 9 bits each; the file format has at most 8"
    ):
        pack_any_powers(torch.tensor([2.0**-100, 0.0, -(2.0**28)]))
