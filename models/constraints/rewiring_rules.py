"""The drop and grow rules of trainer `sparse` put together: from a layer's scores to the change of its connections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.constraints.connection_update import (
    Change,
    kept_per_layer,
    progress_connections,
    prune_randomly,
    rank_within_sign,
    replace_connections,
)

BY_STRENGTH = ("hebbian", "correlation")


@dataclass(frozen=True)
class Rules:
    """The method's own options, which args.py explains. Without `prune_rate` progress goes filter by filter."""

    prune_rate: float | None = None
    drop: str = "hebbian"
    grow: str = "hebbian"
    update_interval: int = 20
    progress_interval: int | None = None
    progress_until: float | None = None
    drop_fraction: float = 0.3
    keep_share: float = 0.1
    live_share: float = 0.15
    layer_density: str = "uniform"
    density_schedule: str = "constant"
    sparse_hold: bool = True

    @property
    def by_filter(self) -> bool:
        """Whether it is the notebook's progress; else each layer keeps its number of connections."""
        return self.prune_rate is None

    @property
    def thins(self) -> bool:
        """Whether changes leave fewer connections than before them."""
        if self.by_filter:
            return self.sparse_hold
        return self.density_schedule == "cubic"

    def counts(self, since: int, found: Mapping[str, Tensor]) -> bool:
        """Return whether strengths are counted `since` steps after the last change.

        They are at once where none are `found`: --start-epoch may begin between two changes.
        """
        needed = self.drop in BY_STRENGTH or self.grow == "hebbian"
        return needed and (since % self.update_interval == 0 or not found)

    def targets(self, shapes: Sequence[Sequence[int]], start: float, left: float) -> list[int]:
        """How many connections each layer has where a share `left` of the way from density `start` lies ahead."""
        final = kept_per_layer(shapes, self.prune_rate or 1.0, self.layer_density)
        if self.density_schedule == "constant" or self.by_filter:
            return final
        first = kept_per_layer(shapes, start, self.layer_density)
        return [b + round(max(0, a - b) * left) for a, b in zip(first, final, strict=True)]

    def change(
        self,
        weight: Tensor,
        mask: Tensor,
        strengths: Tensor | None,
        gradient: Tensor | None,
        *,
        target: int,
        fraction: float,
    ) -> Change:
        """What becomes of a layer's connections; `strengths` and dense `gradient` only where a rule needs them.

        With a density there are `target` of them afterwards, and a `fraction` is replaced. Random scores come from
        torch's generator of the CPU.
        """
        drop = _scores(self.drop, weight, strengths, gradient)
        if self.by_filter and self.drop == "random":
            return prune_randomly(weight, drop, self.live_share)
        grow, grows = _scores(self.grow, weight, strengths, gradient), self.grow != "none"
        if self.by_filter:
            shares = {"keep_share": self.keep_share, "live_share": self.live_share}
            return progress_connections(drop, grow, **shares, grows=grows)
        return replace_connections(mask, drop, grow, target=target, fraction=fraction, grows=grows)


def _scores(rule: str, weight: Tensor, strengths: Tensor | None, gradient: Tensor | None) -> Tensor:
    """How good a rule finds every connection: it drops the lowest, or grows the highest."""
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
