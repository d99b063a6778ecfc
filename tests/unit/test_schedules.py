"""Learning-rate policies equal BIPROP's formulas in every epoch."""

import math

import pytest

from trainers.schedules import POLICIES, schedule

HORIZONS = [(1, 0), (2, 1), (10, 0), (60, 5), (100, 5), (100, 99), (250, 0), (3, 7)]  # (epochs, warm-up)


def cosine(e, epochs, warmup):
    return 0.5 * (1 + math.cos(math.pi * (e - warmup) / (epochs - warmup)))


def steps(*pairs):
    def factor(e):
        value = 1.0
        for start, below in pairs:
            if e >= start:
                value = below
        return value

    return factor


XNOR = steps((30, 0.1), (44, 0.01), (54, 0.001))
FORMULAS = {  # (epoch, epochs, warm-up) -> factor
    "constant_lr": lambda e, _, w: (e + 1) / w if e < w else 1,
    "cosine_lr": lambda e, n, w: (e + 1) / w if e < w else cosine(e, n, w),
    "multistep_lr": lambda e, _n, _w: 0.1 ** (e // 20),
    "xnor_lr": lambda e, _n, _w: XNOR(e),
    "mpt132_w34_2_lr": lambda e, _n, _w: steps((27, 0.1), (44, 0.01), (54, 0.0001))(e),
    "mpt11_w34_2_v2_lr": lambda e, _n, _w: steps((50, 0.1), (62, 0.01), (70, 0.0001))(e),
    "mpt11_w18_2_lr": lambda e, _n, _w: steps((46, 0.1), (65, 0.01), (80, 0.0001))(e),
    "mpt11_w18_2_v2_lr": lambda e, _n, _w: steps((35, 0.1), (50, 0.01), (60, 0.0001))(e),
    "cos_multi_lr": lambda e, n, w: XNOR(e) * (cosine(e, n, w) if e >= 55 else 1),
    "deepshift_lr": lambda e, _n, _w: steps((80, 0.1), (120, 0.01), (160, 0.001), (180, 0.0001))(e),
}


def test_every_policy_has_a_formula_in_this_file():
    assert FORMULAS.keys() == POLICIES.keys()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("epochs, warmup", HORIZONS)
def test_every_policy_equals_its_formula_in_every_epoch(name, epochs, warmup):
    factor = schedule(name, epochs=epochs, warmup=warmup, step=20, gamma=0.1)
    for epoch in range(epochs):
        assert factor(epoch) == pytest.approx(FORMULAS[name](epoch, epochs, warmup), rel=1e-12, abs=1e-15), epoch


@pytest.mark.parametrize("name", POLICIES)
def test_factors_are_plain_floats_and_depend_only_on_the_epoch(name):
    factor = schedule(name, epochs=100, warmup=5)
    forwards = [factor(epoch) for epoch in range(100)]
    assert [factor(epoch) for epoch in reversed(range(100))] == forwards[::-1]
    assert all(type(value) is float and 0 <= value <= 1 for value in forwards)


@pytest.mark.parametrize("step, gamma", [(1, 0.5), (7, 0.3), (20, 2.0)])
def test_multistep_uses_step_and_gamma(step, gamma):
    factor = schedule("multistep_lr", epochs=50, warmup=5, step=step, gamma=gamma)
    assert [factor(epoch) for epoch in range(50)] == pytest.approx([gamma ** (epoch // step) for epoch in range(50)])


def test_factors_equal_values_measured_on_biprop():
    assert [schedule("cosine_lr", epochs=4)(e) for e in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert [schedule("cosine_lr", epochs=100, warmup=5)(e) for e in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )
    falls = schedule("cos_multi_lr", epochs=100)
    assert falls(54) == 0.001 and falls(55) == pytest.approx(0.001 * 0.4218, abs=1e-6)


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"lr_policy: 'cosin_lr' is unknown .*'cosine_lr'"):
        schedule("cosin_lr", epochs=1)
