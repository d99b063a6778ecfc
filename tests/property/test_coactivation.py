"""Connection strengths equal those of loops for any geometry, dtype and batch size."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from models.constraints import hebbian_stats as module
from models.constraints.hebbian_stats import coactivation, correlation

ROOT = Path(__file__).parents[2]
FAST = settings(deadline=None, max_examples=80)
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
SEEDS = st.integers(0, 2**31)


@st.composite
def layers(draw):
    """Draw a convolution and an image size that fits it."""
    groups = draw(st.integers(1, 3))
    channels, filters = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)) | st.sampled_from(["same", "valid"]))
    stride = (1, 1) if padding == "same" else draw(PAIR)
    kernel, dilation = draw(PAIR), draw(PAIR)
    layer = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    around = (0, 0) if isinstance(padding, str) else padding
    size = tuple(draw(st.integers(1, 6)) for _ in range(2))
    assume(all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, around, dilation, kernel, strict=True)))
    return layer, size


def input_and_output(layer, size, batch, seed, dtype=torch.float32):
    """Return an input with zeros and an output of the same dtype."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, layer.in_channels, *size) if isinstance(layer, nn.Conv2d) else (batch, layer.in_features)
    x = torch.randn(shape, generator=generator).round(decimals=1)
    with torch.no_grad():
        return x.to(dtype), layer(x).to(dtype)


def connections(layer, x, y):
    """Yield index, inputs and outputs of every connection; (B,) values at every output position."""
    if isinstance(layer, nn.Linear):
        for o, c in itertools.product(range(layer.out_features), range(layer.in_features)):
            yield (o, c), [(x[:, c], y[:, o])]
        return
    around = layer._reversed_padding_repeated_twice
    padded = nn.functional.pad(torch.as_tensor(x), around).numpy()
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    per_group = layer.in_channels // layer.groups
    for o, c, i, j in itertools.product(*map(range, layer.weight.shape)):
        source = o // (layer.out_channels // layer.groups) * per_group + c
        places = itertools.product(range(y.shape[2]), range(y.shape[3]))
        yield (o, c, i, j), [(padded[:, source, a * sh + i * dh, b * sw + j * dw], y[:, o, a, b]) for a, b in places]


def counted(layer, x, y):
    counts = np.zeros(layer.weight.shape, dtype=np.int64)
    for index, pairs in connections(layer, x, y):
        counts[index] = sum(int(((a > 0) & (b > 0)).sum()) for a, b in pairs)
    return counts


def correlated(layer, x, y):
    """Return the notebook's f2b, transcribed to numpy."""
    strengths = np.zeros(layer.weight.shape)
    for index, pairs in connections(layer, x.astype(np.float64), y.astype(np.float64)):
        each = []
        for a, b in pairs:
            flat = (a == a[0]).all() or (b == b[0]).all()
            mean = np.mean((a - a.mean()) * (b - b.mean()))
            each.append(0.0 if flat else abs(mean / (a.std(ddof=1) * b.std(ddof=1))))
        strengths[index] = np.mean(each)
    return strengths


@FAST
@given(layers(), st.integers(1, 4), SEEDS, st.booleans())
def test_convolution_counts_equal_those_of_a_loop_for_any_geometry(made, batch, seed, last):
    layer, size = made
    x, y = input_and_output(layer, size, batch, seed)
    form = torch.channels_last if last else torch.contiguous_format
    found = coactivation(layer, x.to(memory_format=form), y.to(memory_format=form))
    assert found.dtype == torch.float64 and found.shape == layer.weight.shape
    assert np.array_equal(found.numpy(), counted(layer, x.numpy(), y.numpy()))


@FAST
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), SEEDS)
def test_linear_counts_equal_those_of_a_loop(inputs, outputs, batch, seed):
    layer = nn.Linear(inputs, outputs)
    x, y = input_and_output(layer, (), batch, seed)
    assert np.array_equal(coactivation(layer, x, y).numpy(), counted(layer, x.numpy(), y.numpy()))
    some = x.reshape(batch, 1, inputs).expand(-1, 3, -1), y.reshape(batch, 1, outputs).expand(-1, 3, -1)
    assert torch.equal(coactivation(layer, *some), 3 * coactivation(layer, x, y))


@FAST
@given(layers(), st.integers(1, 6), SEEDS)
def test_convolution_correlations_equal_those_of_numpy_for_any_geometry(made, batch, seed):
    layer, size = made
    x, y = input_and_output(layer, size, batch, seed)
    x[:, 0], x[0, :, 0] = 0.1, 0.0  # constant over the batch, though 0.1 has no exact mean
    found = correlation(layer, x, y)
    expected = correlated(layer, x.numpy(), y.numpy()) if batch > 1 else np.zeros(layer.weight.shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@FAST
@given(st.integers(1, 5), st.integers(1, 5), st.integers(2, 9), SEEDS)
def test_linear_correlations_equal_those_of_numpy(inputs, outputs, batch, seed):
    layer = nn.Linear(inputs, outputs)
    x, y = input_and_output(layer, (), batch, seed)
    expected = correlated(layer, x.numpy(), y.numpy())
    np.testing.assert_allclose(correlation(layer, x, y).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert correlation(layer, x, y).max() <= 1 + 1e-6


@FAST
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6), st.integers(1, 4), SEEDS)
def test_linear_correlations_are_averaged_over_the_middle_axes(inputs, outputs, batch, positions, seed):
    layer = nn.Linear(inputs, outputs)
    x = torch.randn(batch, positions, inputs, generator=torch.Generator().manual_seed(seed))
    y = layer(x).detach()
    each = [correlated(layer, x[:, p].numpy(), y[:, p].numpy()) for p in range(positions)]
    np.testing.assert_allclose(correlation(layer, x, y).numpy(), np.mean(each, 0), rtol=1e-4, atol=1e-5)
    squared = x.unsqueeze(1), y.unsqueeze(1)  # two axes in the middle
    assert torch.equal(correlation(layer, *squared), correlation(layer, x, y))


@FAST
@given(layers(), SEEDS, st.integers(1, 20))
def test_splitting_the_batch_changes_no_count(made, seed, bound):
    layer, size = made
    x, y = input_and_output(layer, size, 5, seed)
    whole, calls = coactivation(layer, x, y), []
    actual = torch.ops.aten.convolution_backward
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "MAX_EXACT", bound)
        patched.setattr(torch.ops.aten, "convolution_backward", lambda g, *a: calls.append(g) or actual(g, *a))
        assert torch.equal(coactivation(layer, x, y), whole)
    for gradient in calls:  # if one image exceeds the bound, float64 counts
        assert gradient.numel() // gradient.shape[1] <= bound or (
            gradient.dtype == torch.float64 and len(gradient) == 1
        )


def test_counts_above_two_to_the_24_are_exact():
    """17 million positions are active. A float32 count, one by one, would stop at 16,777,216."""
    side = 2048
    layer = nn.Conv2d(1, 1, 1, bias=False)
    x = torch.ones(1, 1, side, side).expand(5, -1, -1, -1)
    assert coactivation(layer, x, x).item() == 5 * side**2 > 2**24
    rows = torch.ones(1, 1).expand(2**24 + 9, 1)
    assert coactivation(nn.Linear(1, 1), rows, rows).item() == 2**24 + 9


@pytest.mark.parametrize("strength", [coactivation, correlation])
@pytest.mark.parametrize("layer, shape", [(nn.Conv2d(2, 3, 3), (0, 2, 5, 5)), (nn.Linear(4, 3), (0, 4))])
def test_an_empty_batch_has_no_strength(strength, layer, shape):
    found = strength(layer, torch.zeros(shape), layer(torch.zeros(shape)))
    assert torch.equal(found, torch.zeros(layer.weight.shape, dtype=torch.float64))


@pytest.mark.parametrize("strength", [coactivation, correlation])
def test_bfloat16_and_autocast_count_in_float32(strength):
    """A bfloat16 count would stop at 256."""
    torch.manual_seed(0)
    for layer, size in ((nn.Conv2d(2, 3, 3, padding=1), (9, 9)), (nn.Linear(4, 3), ())):
        x, y = input_and_output(layer, size, 700, 3, torch.bfloat16)
        expected = strength(layer, x.float(), y.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(strength(layer, x, y), expected)
            assert torch.equal(strength(layer, x.float(), y.float()), expected)
        assert strength is correlation or expected.max() > 256


@example(0.0, 0)
@example(-0.0, 0)
@example(1e-30, 4)
@given(st.floats(-1, 1, width=32), st.just(None))
def test_only_values_above_zero_are_active(value, expected):
    layer, x = nn.Linear(1, 1), torch.full((4, 1), value)
    assert coactivation(layer, x, torch.ones(4, 1)).item() == (4 * (value > 0) if expected is None else expected)


PEAK = """
import torch
from pathlib import Path
from models.constraints.hebbian_stats import coactivation
torch.set_num_threads(1)
layer = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
x = torch.randn(128, 64, 32, 32).contiguous(memory_format=torch.channels_last)
y = x.clone()
def memory(key):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
coactivation(layer, x[:1], y[:1])
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
coactivation(layer, x, y)
print((memory("VmHWM") - before) * 1024 / (x.nbytes + y.nbytes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak from /proc")
def test_coactivation_needs_less_memory_than_twice_the_activations():
    """The test measures the resident memory of a process. The copies of the notebook would be 576 times the input."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1
