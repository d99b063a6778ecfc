"""Products with `OnesMatrix` equal dense products for any shape and fraction of ones."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.constraints import sparse_matmul
from models.constraints.gradients import ThroughOnes
from models.constraints.sparse_matmul import find_ones

FAST = settings(deadline=None, max_examples=80)
SIDES = st.integers(1, 12)
SHARES = st.sampled_from([0.0, 0.02, 0.3, 1.0])
SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def drawn(rows, columns, share, seed, dtype=torch.float32):
    """Return numbers of both signs. About the fraction `share` has a magnitude of at least ½."""
    generator = torch.Generator().manual_seed(seed)
    large = torch.rand(rows, columns, generator=generator) < share
    small = torch.rand(rows, columns, generator=generator).mul_(0.49)
    signs = torch.randint(0, 2, (rows, columns), generator=generator) * 2 - 1
    return ((small + 0.5 * large) * signs).where(small < 0.4, 0.5 * large.float()).to(dtype)


def binary(real):
    return torch.from_numpy((np.abs(real.detach().numpy()) >= 0.5).astype(real.numpy(force=True).dtype))


@FAST
@given(SIDES, SIDES, st.integers(0, 5), SHARES, SEEDS, DTYPES)
def test_products_equal_those_of_the_dense_matrix(rows, columns, count, share, seed, dtype):
    real = drawn(rows, columns, share, seed, dtype)
    places, dense = find_ones(real, max_density=1), binary(real)
    x = torch.randint(-8, 9, (count, columns), generator=torch.Generator().manual_seed(seed)).to(dtype)  # exact sums
    g = torch.randint(-8, 9, (count, rows), generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert len(places) == int(dense.sum())
    assert torch.equal(places.linear(x), x @ dense.t())
    assert torch.equal(places.transposed().linear(g), g @ dense)
    assert places.linear(x).is_contiguous()


@FAST
@given(SIDES, SIDES, SHARES, SEEDS)
def test_find_ones_works_in_chunks_and_returns_none_above_the_density(rows, columns, share, seed):
    real = drawn(rows, columns, share, seed)
    whole = sparse_matmul.CHUNK
    try:
        sparse_matmul.CHUNK = 7
        found = find_ones(real, max_density=1)
        exact = len(found) / real.numel()
        assert find_ones(real, max_density=exact + 1e-9) is not None
        assert exact == 0 or find_ones(real, max_density=exact - 1 / real.numel() / 2) is None
    finally:
        sparse_matmul.CHUNK = whole
    assert found._indices.tolist() == np.flatnonzero(binary(real).numpy()).tolist()


@FAST
@given(SIDES, SIDES, SHARES, SEEDS, st.sampled_from([0.0, 0.2, 1.0]))
def test_find_ones_clamps_all_values_also_if_it_returns_none(rows, columns, share, seed, most):
    real = 2 * drawn(rows, columns, share, seed)
    into = np.clip(real.numpy(), 0, 1)
    whole = sparse_matmul.CHUNK
    try:
        sparse_matmul.CHUNK = 7
        found = find_ones(real, most, clamp=True)
    finally:
        sparse_matmul.CHUNK = whole
    assert real.numpy().tolist() == into.tolist()
    if found is None:
        assert (into >= 0.5).mean() > most
    else:
        assert found._indices.tolist() == np.flatnonzero(into >= 0.5).tolist()


@FAST
@given(SIDES, SIDES, SHARES, SEEDS, st.sampled_from([1.0, 0.0, 2.5]))
def test_gradients_are_those_of_a_dense_product_with_the_binary_weight(rows, columns, share, seed, on):
    real = drawn(rows, columns, share, seed, torch.float64).requires_grad_()
    x = torch.randn(3, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    g = torch.randn(3, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    y = ThroughOnes.apply(x, real, find_ones(real, max_density=1), on)
    weight, other = (on * binary(real)).requires_grad_(), x.detach().clone().requires_grad_()
    expected = other @ weight.t()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(real.grad, weight.grad, rtol=1e-12, atol=1e-12)
