"""Rewiring keeps, drops and grows exact numbers of connections for any shapes, shares, ties and rules."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.constraints.connection_update import (
    Rewiring,
    filter_counts,
    filter_shape,
    keep_and_grow,
    kept_per_layer,
    prune_randomly,
    rank_within_sign,
    replace_connections,
    rewire_filters,
    top_per_row,
)
from models.constraints.topk_mask import kept_count
from tests.rewiring import rewiring_rules

FAST = settings(deadline=None, max_examples=100)
LINEAR = st.tuples(st.integers(1, 6), st.integers(1, 30))
CONV = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
SHAPES = LINEAR | CONV
SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**31)
LEVELS = st.sampled_from([1, 2, 7, 10**6])  # distinct scores: few give ties


def draw(shape, seed, levels):
    return torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed)).double()


# rewiring of the published notebook


def notebook_rewiring(weight, strengths, keep_share, live_share):
    """Return (kept, grown) by the notebook's loop over filters in numpy, with ordered ties."""
    kept, grown = np.zeros(weight.shape, bool), np.zeros(weight.shape, bool)
    for index in np.ndindex(weight.shape[: 2 if weight.ndim == 4 else 1]):
        flat = strengths[index].ravel()
        k1, k2 = (max(int(share * flat.size), 1) for share in (keep_share, live_share))
        order = sorted(range(flat.size), key=lambda i: (-flat[i], i))
        kept[index].ravel()[order[:k1]] = True
        grown[index].ravel()[order[k1:k2]] = True
    return kept, grown


@FAST
@given(SHAPES, SEEDS, LEVELS, SHARES, SHARES, st.booleans())
@example((1, 1, 5, 5), 0, 1, 0.10, 0.15, False)
def test_rewire_filters_equals_the_published_notebook_with_exact_counts(shape, seed, levels, one, other, last):
    keep, live = sorted((one, other))
    strengths = draw(shape, seed, levels)
    if last and len(shape) == 4:
        strengths = strengths.contiguous(memory_format=torch.channels_last)
    rewiring = rewire_filters(strengths, strengths, keep_share=keep, live_share=live, grows=True)
    kept, grown = notebook_rewiring(strengths.numpy(), strengths.numpy(), keep, live)
    assert np.array_equal(rewiring.kept.numpy(), kept) and np.array_equal(rewiring.grown.numpy(), grown)
    rows, n = filter_shape(strengths)
    k1, k2 = filter_counts(n, keep, live)
    assert (rewiring.kept.reshape(rows, n).sum(1) == k1).all() and (
        rewiring.grown.reshape(rows, n).sum(1) == k2 - k1
    ).all()
    assert rewiring.bound == (math.sqrt(6 / (k2 - k1)) if k2 > k1 else 0)


@pytest.mark.parametrize(("n", "counts"), [(9, (1, 1)), (25, (2, 3)), (49, (4, 7)), (400, (40, 60)), (1, (1, 1))])
def test_filter_counts_at_the_published_shares_equal_the_listed_counts(n, counts):
    assert filter_counts(n, 0.10, 0.15) == counts


def test_a_filter_is_a_kernel_or_the_inputs_of_a_linear_unit():
    assert filter_shape(torch.empty(6, 3, 5, 4)) == (18, 20)
    assert filter_shape(torch.empty(10, 84)) == (10, 84)


def test_without_growing_only_the_strongest_keep_share_is_kept():
    strengths = torch.arange(50.0).view(1, 2, 5, 5)
    rewiring = rewire_filters(strengths, strengths, keep_share=0.1, live_share=0.9, grows=False)
    assert rewiring.kept.nonzero().tolist() == [[0, 0, 4, 3], [0, 0, 4, 4], [0, 1, 4, 3], [0, 1, 4, 4]]
    assert not rewiring.grown.any()


def notebook_control(weight, uniform, zeroed):
    """Return the weights of the notebook's control before redrawing, and the mask of redrawn ones, in numpy."""
    after, redrawn = weight.copy(), np.zeros(weight.shape, bool)
    for index in np.ndindex(weight.shape):
        if 1 - uniform[index] <= zeroed:
            after[index] = 0
        elif after[index] == 0:
            redrawn[index] = True
    return after, redrawn


@FAST
@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.15, 0.5, 1.0]), SHARES)
def test_prune_randomly_drops_each_weight_by_its_own_draw_and_redraws_kept_zeros(shape, seed, live, zeros):
    torch.manual_seed(seed)
    weight, uniform = torch.randn(shape) * (torch.rand(shape) >= zeros), torch.rand(shape)
    rewiring = prune_randomly(weight, uniform, live)
    after, redrawn = notebook_control(weight.numpy(), uniform.double().numpy(), 1 - live)
    new = int(redrawn.sum())
    assert np.array_equal(rewiring.grown.numpy(), redrawn)
    assert np.array_equal(torch.where(rewiring.kept, weight, 0).numpy(), after)
    assert not (rewiring.kept & rewiring.grown).any() and rewiring.bound == (math.sqrt(6 / new) if new else 0)
    applied = rewiring.applied_to(weight)
    assert torch.equal(applied[~rewiring.grown], torch.from_numpy(after)[~rewiring.grown])
    assert (applied[rewiring.grown].abs() <= rewiring.bound).all()


def test_the_random_control_keeps_15_percent_independently_and_redraws_kept_zeros():
    torch.manual_seed(0)
    rules, weight = rewiring_rules(drop="random", grow="random"), torch.randn(400, 1000)
    weight[:, :850] = 0
    rewiring = rules.rewiring(weight, torch.ones_like(weight), None, None, target=0, fraction=0.0)
    lives = (rewiring.kept | rewiring.grown).float()
    assert lives.mean() == pytest.approx(0.15, abs=5 * (0.15 * 0.85 / weight.numel()) ** 0.5)
    for counts, n in (
        (lives.sum(1), 1000),
        (lives.sum(0), 400),
    ):  # binomial: no row, column or layer has a fixed number
        assert counts.var() == pytest.approx(n * 0.15 * 0.85, rel=0.25)
    assert torch.equal(rewiring.grown, (lives > 0) & (weight == 0)) and not rewiring.kept[:, :850].any()
    assert rewiring.bound == math.sqrt(6 / int(rewiring.grown.sum()))
    again = rules.rewiring(weight, torch.ones_like(weight), None, None, target=0, fraction=0.0)
    assert not torch.equal(again.kept, rewiring.kept)


@FAST
@given(SHAPES, SEEDS)
def test_a_rewiring_keeps_draws_within_its_bound_and_zeroes_the_others(shape, seed):
    torch.manual_seed(seed)
    weight, role = torch.randn(shape), draw(shape, seed, 3)
    after = Rewiring(role == 0, role == 1, 0.25).applied_to(weight)
    assert torch.equal(after[role == 0], weight[role == 0]) and not after[role == 2].any()
    assert (after[role == 1].abs() <= 0.25).all() and (after[role == 1] != 0).all()
    assert not Rewiring(role == 0, role == 1).applied_to(weight)[role == 1].any()


def test_grown_weights_are_kaiming_uniform_over_the_number_grown():
    torch.manual_seed(0)
    grown = torch.ones(100, 1000, dtype=torch.bool)
    drawn = Rewiring(~grown, grown, math.sqrt(6 / 20)).applied_to(torch.zeros(100, 1000))
    assert drawn.abs().max() == pytest.approx(math.sqrt(6 / 20), rel=1e-3) and drawn.mean().abs() < 0.01
    # standard deviation of a uniform draw within this bound
    assert drawn.std() == pytest.approx(math.sqrt(2 / 20), rel=0.01)


# rewiring that keeps the number of connections


@FAST
@given(SHAPES, SEEDS, LEVELS, LEVELS, st.data())
def test_replace_connections_leaves_exactly_the_target(shape, seed, drop_levels, grow_levels, data):
    size = math.prod(shape)
    count, target = (data.draw(st.integers(1, size)) for _ in range(2))
    fraction, grows = data.draw(SHARES), data.draw(st.booleans())
    mask = top_per_row(draw((1, size), seed + 2, 10**6), count).view(shape).float()
    drop, grow = draw(shape, seed, drop_levels), draw(shape, seed + 1, grow_levels)
    rewiring = replace_connections(mask, drop, grow, target=target, fraction=fraction, grows=grows)
    live = mask > 0
    assert not (rewiring.kept & rewiring.grown).any() and not (rewiring.kept & ~live).any() and rewiring.bound == 0
    assert not (rewiring.grown & live).any()
    assert int((rewiring.kept | rewiring.grown).sum()) == (target if grows else min(count, target))
    if not grows:
        assert not rewiring.grown.any()
        dropped = live & ~rewiring.kept
        assert not dropped.any() or not rewiring.kept.any() or drop[dropped].max() <= drop[rewiring.kept].min()


def test_replace_connections_drops_the_worst_and_grows_the_best_of_the_others():
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    drop = torch.tensor([[4.0, 3, 2, 1, 9, 9, 9, 9]])  # absent connections cannot be kept
    grow = torch.tensor([[9.0, 9, 5, 0, 1, 4, 6, 2]])
    rewiring = replace_connections(mask, drop, grow, target=4, fraction=0.5, grows=True)
    # Indices 2 and 3 are dropped. Index 6 (score 6) grows. Index 2 (score 5) grows again and keeps its weight.
    assert rewiring.kept.tolist() == [[True, True, True, False, False, False, False, False]]
    assert rewiring.grown.tolist() == [[False, False, False, False, False, False, True, False]]


@pytest.mark.parametrize(("fraction", "replaced"), [(0.0, 0), (0.3, 3), (0.39, 3), (1.0, 10)])
def test_the_number_replaced_is_the_fraction_rounded_down(fraction, replaced):
    mask = torch.zeros(1, 40)
    mask[0, :10] = 1
    grow = 1 - mask
    rewiring = replace_connections(mask, mask, grow, target=10, fraction=fraction, grows=True)
    assert int(rewiring.grown.sum()) == replaced and int(rewiring.kept.sum()) == 10 - replaced


def test_the_first_of_equal_scores_are_kept_and_grown():
    kept, grown = keep_and_grow(torch.zeros(2, 6), torch.zeros(2, 6), 2, 3)
    assert kept.tolist() == [[True, True, False, False, False, False]] * 2
    assert grown.tolist() == [[False, False, True, True, True, False]] * 2


# connections per layer


RULES = st.sampled_from(["uniform", "erdos_renyi_kernel"])


@FAST
@given(st.lists(SHAPES, min_size=1, max_size=6), st.floats(0, 1, exclude_min=True), RULES)
@example([(1, 1), (1, 1), (6, 30)], 0.01, "erdos_renyi_kernel")
@example([(6, 30), (1, 2)], 0.99, "erdos_renyi_kernel")
def test_layer_counts_add_up_exactly_and_no_layer_is_empty_or_above_its_size(shapes, density, rule):
    sizes = [math.prod(shape) for shape in shapes]
    counts = kept_per_layer(shapes, density, rule)
    assert sum(counts) == max(len(shapes), kept_count(sum(sizes), density))
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if rule == "uniform":
        assert all(abs(n - density * s) <= len(shapes) + 1 for n, s in zip(counts, sizes, strict=True))


def test_erdos_renyi_kernel_is_proportional_to_the_sum_of_the_sides():
    """The layers are LeNet's. The shares are RigL's, scaled to one density; full layers leave their surplus."""
    shapes = [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    counts = kept_per_layer(shapes, 0.05, "erdos_renyi_kernel")
    sides = [sum(shape) for shape in shapes]
    total = kept_count(sum(math.prod(shape) for shape in shapes), 0.05)
    scale = total / sum(sides)
    assert sum(counts) == total and scale * sides[0] < 450
    assert counts == pytest.approx([scale * side for side in sides], abs=1)
    dense = kept_per_layer(shapes, 0.5, "erdos_renyi_kernel")
    assert (dense[0], dense[4]) == (450, 840) and sum(dense) == kept_count(61770, 0.5)
    scale = (sum(dense) - 450 - 840) / sum(sides[1:4])
    assert dense[1:4] == pytest.approx([scale * side for side in sides[1:4]], abs=1) and scale * sides[4] > 840


def test_layers_rounded_up_the_most_compensate_for_the_minimum_of_one_in_small_layers():
    assert kept_per_layer([(1, 1), (1, 1), (8, 8), (1, 9)], 0.2, "uniform") == [1, 1, 12, 1]


def test_target_counts_fall_from_the_start_density_to_the_final_one():
    shapes = [(8, 4, 3, 3), (30, 72), (10, 30)]
    rules = rewiring_rules(prune_rate=0.07, density_schedule="cubic", layer_density="erdos_renyi_kernel")
    path = [rules.target_counts(shapes, 0.5, left / 10) for left in range(10, -1, -1)]
    assert path[0] == kept_per_layer(shapes, 0.5, "erdos_renyi_kernel")
    assert path[-1] == kept_per_layer(shapes, 0.07, "erdos_renyi_kernel")
    assert all(a >= b for before, after in pairwise(path) for a, b in zip(before, after, strict=True))
    steady = rewiring_rules(prune_rate=0.07, layer_density="erdos_renyi_kernel")
    assert steady.target_counts(shapes, 0.5, 1.0) == path[-1]


# RewiringRules


def scored(rule, **own):
    """Return the rewiring by `rule` for scores that differ from one another."""
    weight = torch.tensor([[3.0, -4, 0, 1, 0, 0, 0, 0]])
    mask = (weight != 0).float()
    known = {"strengths": torch.arange(8.0).view(1, 8), "gradient": torch.tensor([[0.0, 0, 0, 0, 1, -9, 2, 3]])}
    return rule.rewiring(weight, mask, **known, target=3, fraction=0.4, **own)


@pytest.mark.parametrize(
    ("drop", "grow", "dropped", "grown"),
    [
        ("magnitude", "gradient", 3, 5),  # RigL
        ("hebbian", "gradient", 0, 5),
        ("correlation", "hebbian", 0, 7),
        ("magnitude", "hebbian", 3, 7),
    ],
)
def test_each_rule_uses_the_scores_of_its_name(drop, grow, dropped, grown):
    rewiring = scored(rewiring_rules(prune_rate=0.4, drop=drop, grow=grow))
    assert rewiring.kept[0].nonzero().flatten().tolist() == sorted({0, 1, 3} - {dropped})
    assert rewiring.grown[0].nonzero().flatten().tolist() == [grown]


def test_random_rules_draw_from_the_generator_of_torch_each_time():
    seen, rules = set(), rewiring_rules(prune_rate=0.4, drop="magnitude", grow="random")  # SET
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in range(60):
        rewiring = scored(rules)
        assert rewiring.kept[0, :2].all() and int((rewiring.kept | rewiring.grown).sum()) == 3
        seen.add(int((rewiring.kept | rewiring.grown)[0, 2:].nonzero()) + 2)
    assert seen == {2, 3, 4, 5, 6, 7}
    torch.set_rng_state(state)
    first = scored(rules)
    torch.set_rng_state(state)
    assert torch.equal(scored(rules).grown, first.grown)


# SET's own drop rule


def set_algorithm(weight, live, replaced):
    """Return the drops of SET's algorithm 1 in numpy: zeros first, then the weights of each sign closest to 0.

    The fraction dropped of each sign is that of all live weights, rounded down or up so that `replaced` are dropped.
    """
    zeros = [i for i in np.flatnonzero(live) if not weight[i]]
    signs = [
        sorted((i for i in np.flatnonzero(live) if s * weight[i] > 0), key=lambda i: s * weight[i]) for s in (1, -1)
    ]
    rest, total = replaced - len(zeros), sum(map(len, signs))
    if rest < 0:
        return [(set(), set())], zeros
    shares = [rest * len(of) / max(total, 1) for of in signs]
    options = {
        (math.floor(shares[0]), rest - math.floor(shares[0])),
        (rest - math.floor(shares[1]), math.floor(shares[1])),
    }
    return [tuple(set(of[:n]) for of, n in zip(signs, option, strict=True)) for option in options], zeros


@FAST
@given(st.integers(1, 60), SEEDS, SHARES, SHARES, SHARES, st.booleans())
@example(10, 0, 1.0, 0.3, 0.0, True)
def test_magnitude_per_sign_drops_the_same_fraction_of_each_sign_as_set_does(
    n, seed, density, fraction, zeros, one_sign
):
    torch.manual_seed(seed)
    live = torch.rand(1, n) < density
    live[0, 0] = True
    weight = torch.randn(1, n) * live * (torch.rand(1, n) >= zeros)
    weight = weight.abs() if one_sign else weight
    count = int(live.sum())
    rewiring = replace_connections(
        live.float(), rank_within_sign(weight), torch.zeros(1, n), target=count, fraction=fraction, grows=False
    )
    assert torch.equal(rewiring.kept, live)  # nothing grows, so nothing is replaced
    kept = count - int(fraction * count)
    rewiring = replace_connections(
        live.float(), rank_within_sign(weight), torch.zeros(1, n), target=kept, fraction=0.0, grows=False
    )
    dropped = {*(live & ~rewiring.kept)[0].nonzero().flatten().tolist()}
    found, dead = set_algorithm(weight[0].numpy(), live[0].numpy(), count - kept)
    assert len(dropped) == count - kept
    signs = tuple({i for i in dropped if s * weight[0, i] > 0} for s in (1, -1))
    assert signs in found and dropped - signs[0] - signs[1] <= {*dead}


def test_magnitude_and_magnitude_per_sign_differ_if_one_sign_has_smaller_weights():
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4, -5.0, -6.0, -7.0, -8.0, 0.0, 0.0]])
    given = (weight, (weight != 0).float(), None, None)
    for drop, dropped in (("magnitude", {0, 1, 2, 3}), ("magnitude_per_sign", {0, 1, 4, 5})):
        rewiring = rewiring_rules(prune_rate=0.8, drop=drop, grow="none").rewiring(*given, target=4, fraction=0.5)
        assert {*(weight != 0)[0].nonzero().flatten().tolist()} - {
            *rewiring.kept[0].nonzero().flatten().tolist()
        } == dropped


def test_rank_within_sign_handles_equal_weights_zeros_and_nan():
    assert rank_within_sign(torch.tensor([[2.0, 2.0, -1.0, 0.0, math.nan]])).tolist() == [[1.0, 0.5, 1.0, 0.0, 0.0]]
    assert rank_within_sign(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
