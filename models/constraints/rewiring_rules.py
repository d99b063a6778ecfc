"""The drop and grow rules of trainer `sparse`, chosen by its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.constraints.connection_update import (
    Rewiring,
    kept_per_layer,
    prune_randomly,
    rank_within_sign,
    replace_connections,
    rewire_filters,
)
from models.constraints.registry import DROP_CRITERIA, GROW_CRITERIA

BY_STRENGTH = tuple(name for name, row in (DROP_CRITERIA | GROW_CRITERIA).items() if row.strengths)


@dataclass(frozen=True, kw_only=True)
class RewiringRules:
    """The options of trainer `sparse`, which args.py explains, and the rewiring of a layer that follows from them."""

    prune_rate: float | None
    drop: str
    grow: str
    update_interval: int
    progress_interval: int | None
    progress_until: float | None
    drop_fraction: float
    keep_share: float
    live_share: float
    layer_density: str
    density_schedule: str
    sparse_hold: bool

    @property
    def by_filter(self) -> bool:
        """True if each filter is rewired on its own, as in the notebook, without a target number per layer."""
        return self.prune_rate is None

    @property
    def reduces_density(self) -> bool:
        """True if rewiring leaves fewer connections than before."""
        if self.by_filter:
            return self.sparse_hold
        return self.density_schedule == "cubic"

    def records_strengths(self, since: int, strengths: Mapping[str, Tensor]) -> bool:
        """Return whether to record connection strengths `since` steps after the last rewiring.

        Empty `strengths` are recorded at once, because --start-epoch may begin between two rewirings.
        """
        needed = self.drop in BY_STRENGTH or self.grow == "hebbian"
        return needed and (since % self.update_interval == 0 or not strengths)

    def target_counts(self, shapes: Sequence[Sequence[int]], start: float, remaining: float) -> list[int]:
        """Return the number of connections per layer during the density schedule.

        The schedule leads from density `start` to the final density; the fraction `remaining` of it is left. `shapes`
        are those of the layers' weights.
        """
        final = kept_per_layer(shapes, self.prune_rate or 1.0, self.layer_density)
        if self.density_schedule == "constant" or self.by_filter:
            return final
        first = kept_per_layer(shapes, start, self.layer_density)
        return [b + round(max(0, a - b) * remaining) for a, b in zip(first, final, strict=True)]

    def rewiring(
        self,
        weight: Tensor,
        mask: Tensor,
        strengths: Tensor | None,
        gradient: Tensor | None,
        *,
        target: int,
        fraction: float,
    ) -> Rewiring:
        """Return the rewiring of a layer.

        With a `prune_rate` it leaves `target` connections and replaces a `fraction` of them. The `strengths` and the
        dense `gradient` may be None if no rule uses them. All tensors have the weight's shape. Random scores come from
        torch's generator of the CPU.
        """
        drop = _scores(self.drop, weight, strengths, gradient)
        if self.by_filter and self.drop == "random":
            return prune_randomly(weight, drop, self.live_share)
        grow, grows = _scores(self.grow, weight, strengths, gradient), self.grow != "none"
        if self.by_filter:
            shares = {"keep_share": self.keep_share, "live_share": self.live_share}
            return rewire_filters(drop, grow, **shares, grows=grows)
        return replace_connections(mask, drop, grow, target=target, fraction=fraction, grows=grows)


def _scores(rule: str, weight: Tensor, strengths: Tensor | None, gradient: Tensor | None) -> Tensor:
    """Return a score for every connection: connections with the lowest are dropped, or with the highest grown."""
    if rule in BY_STRENGTH:
        assert strengths is not None
        return strengths
    if rule == "gradient":
        assert gradient is not None
        return gradient.abs()
    if rule == "magnitude_per_sign":
        return rank_within_sign(weight)
    if rule == "random":
        return torch.rand(weight.shape).to(weight.device)
    return weight.abs() if rule == "magnitude" else torch.zeros_like(weight)
