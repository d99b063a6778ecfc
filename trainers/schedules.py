"""Schedules of the learning rate and of the density, as pure functions of the epoch.

The learning rate changes once per epoch. Names and formulas are BIPROP's, except deepshift_lr.
"""

import math
from collections.abc import Callable
from functools import partial

from models.constraints.registry import DENSITY_START
from utils.registry import lookup

Policy = Callable[[int, int, int, int, float], float]  # (epoch, epochs, warm-up epochs, step, gamma) -> factor of --lr


def _linear_warmup(epoch: int, warmup: int) -> float | None:
    """Return the learning-rate factor in a linear warm-up of `warmup` epochs, or None after it."""
    return (epoch + 1) / warmup if epoch < warmup else None


def _cosine(epoch: int, epochs: int, warmup: int) -> float:
    """Return the learning-rate factor of a cosine decay from 1 to 0.

    The factor is 1 in epoch `warmup` and 0 in epoch `epochs`.
    """
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))


def constant(epoch: int, _epochs: int, warmup: int, _step: int, _gamma: float) -> float:
    """Return the learning-rate factor of a constant schedule with linear warm-up.

    The factor is 1 after `warmup` epochs.
    """
    return _linear_warmup(epoch, warmup) or 1.0


def cosine(epoch: int, epochs: int, warmup: int, _step: int, _gamma: float) -> float:
    """Return the learning-rate factor of a cosine schedule with linear warm-up.

    The factor rises to 1 in `warmup` epochs, and then decays to 0 in epoch `epochs`.
    """
    return _linear_warmup(epoch, warmup) or _cosine(epoch, epochs, warmup)


def multistep(epoch: int, _epochs: int, _warmup: int, step: int, gamma: float) -> float:
    """Return the learning-rate factor of a step decay by `gamma` every `step` epochs."""
    return gamma ** (epoch // step)


def milestones(factors: dict[int, float], epoch: int, *_unused: float) -> float:
    """Return the learning-rate factor of the latest milestone up to `epoch`.

    `factors` maps the epoch of each milestone to its factor. The factor is 1 before the first milestone.
    """
    return next((factor for start, factor in sorted(factors.items(), reverse=True) if epoch >= start), 1.0)


_XNOR = {30: 0.1, 44: 0.01, 54: 0.001}


def cosine_after_milestones(epoch: int, epochs: int, warmup: int, _step: int, _gamma: float) -> float:
    """Return the learning-rate factor of a step schedule with a cosine decay at its end.

    The factor is 1 at first, and 0.1, 0.01 or 0.001 from epoch 30, 44 or 54 on (as in xnor_lr). From epoch 55 on, a
    cosine decay over the whole run also multiplies it.
    """
    factor = milestones(_XNOR, epoch)
    return factor * _cosine(epoch, epochs, warmup) if epoch >= 55 else factor


POLICIES: dict[str, Policy] = {
    "constant_lr": constant,
    "cosine_lr": cosine,
    "multistep_lr": multistep,
    "xnor_lr": partial(milestones, _XNOR),
    "mpt132_w34_2_lr": partial(milestones, {27: 0.1, 44: 0.01, 54: 0.0001}),
    "mpt11_w34_2_v2_lr": partial(milestones, {50: 0.1, 62: 0.01, 70: 0.0001}),
    "mpt11_w18_2_lr": partial(milestones, {46: 0.1, 65: 0.01, 80: 0.0001}),
    "mpt11_w18_2_v2_lr": partial(milestones, {35: 0.1, 50: 0.01, 60: 0.0001}),
    "cos_multi_lr": cosine_after_milestones,
    "deepshift_lr": partial(milestones, {80: 0.1, 120: 0.01, 160: 0.001, 180: 0.0001}),  # DeepShift's CIFAR-10 runs
}


def schedule(name: str, *, epochs: int, warmup: int = 0, step: int = 1, gamma: float = 1.0) -> Callable[[int], float]:
    """Return the learning-rate schedule `name`, a function from epoch to factor.

    Epochs are counted from 0. The factor multiplies the base rate. `step` and `gamma` are for multistep_lr. Raises
    ValueError if no schedule has that name.
    """
    policy = lookup(POLICIES, name, "lr_policy")
    return lambda epoch: policy(epoch, epochs, warmup, step, gamma)


def density(epoch: int, final: float, length: int) -> float:
    """Return the density of `epoch` in a cubic schedule from 0.5 to `final`.

    The schedule runs from epoch 0 to epoch `length`. The sparsity is s(e) = S + (0.5 − S)(1 − e/length)³ with S = 1 −
    final. This is BIPROP's cubic schedule (Zhu & Gupta, "To prune, or not to prune", 2017, eq. 1, starting at 0.5). A
    `final` density above 0.5 holds from the start.
    """
    if final > DENSITY_START or epoch >= length:
        return final
    return final + (DENSITY_START - final) * (1 - epoch / length) ** 3
