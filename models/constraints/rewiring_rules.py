"""The rules of trainer `sparse` for dropping and growing connections, selected by its options."""

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

CRITERIA = DROP_CRITERIA | GROW_CRITERIA


# Rows of DROP_CRITERIA and GROW_CRITERIA name these functions. Connections with the lowest scores are dropped, those
# with the highest are grown. All arguments have the weight's shape.


def by_strength(_weight: Tensor, strengths: Tensor, _gradient: Tensor | None) -> Tensor:
    """Score connections by their recorded strengths."""
    return strengths


def by_gradient(_weight: Tensor, _strengths: Tensor | None, gradient: Tensor) -> Tensor:
    """Score connections by the magnitude of their gradient."""
    return gradient.abs()


def by_magnitude(weight: Tensor, *_: Tensor | None) -> Tensor:
    """Score connections by the magnitude of their weight."""
    return weight.abs()


def by_rank(weight: Tensor, *_: Tensor | None) -> Tensor:
    """Score connections by their rank among the weights of the same sign, as in SET."""
    return rank_within_sign(weight)


def by_chance(weight: Tensor, *_: Tensor | None) -> Tensor:
    """Score connections at random, from torch's generator of the CPU."""
    return torch.rand(weight.shape).to(weight.device)


def equal(weight: Tensor, *_: Tensor | None) -> Tensor:
    """Give all connections the same score."""
    return torch.zeros_like(weight)


@dataclass(frozen=True, kw_only=True)
class RewiringRules:
    """Options of trainer `sparse`, and the rewiring rules that they select.

    The rules choose the connections to drop and to grow. The command line's help explains each option.
    """

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
        """True if connections are dropped and grown in each filter separately.

        This is the rule of Numenta's notebook "Sparse CNN". Layers then have no target density.
        """
        return self.prune_rate is None

    @property
    def reduces_density(self) -> bool:
        """True if the network has fewer connections at the end of training than at its start."""
        if self.by_filter:
            return self.sparse_hold
        return self.density_schedule == "cubic"

    def records_strengths(self, since: int, strengths: Mapping[str, Tensor]) -> bool:
        """Return True if this training step must record the connection strengths.

        The criterion of the option `drop` or `grow` may need strengths, such as coactivations. `since` is the number of
        steps after the last rewiring. `strengths` are the strengths recorded so far. If none are recorded yet,
        recording starts at once, because --start-epoch may start training between two rewirings.
        """
        needed = CRITERIA[self.drop].strengths or CRITERIA[self.grow].strengths
        return bool(needed) and (since % self.update_interval == 0 or not strengths)

    def target_counts(self, shapes: Sequence[Sequence[int]], start: float, remaining: float) -> list[int]:
        """Return the number of connections per layer at one point of the density schedule.

        At this point a fraction `remaining` of the fall from the density `start` is still to come. `shapes` are the
        shapes of the layers' weights.
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
        """Choose which connections of a layer to keep and which to grow.

        The options `drop` and `grow` name the criteria. Some criteria are computed from `strengths` and `gradient`,
        which have one value per connection. All tensors have the weight's shape. `strengths` and the dense `gradient`
        may be None if no criterion uses them. If the option `prune_rate` is set, the layer then has `target`
        connections, of which a `fraction` is new. Random scores come from torch's generator of the CPU.
        """
        drop: Tensor = CRITERIA[self.drop].load()(weight, strengths, gradient)
        if self.by_filter and self.drop == "random":
            return prune_randomly(weight, drop, self.live_share)
        grow, grows = CRITERIA[self.grow].load()(weight, strengths, gradient), self.grow != "none"
        if self.by_filter:
            return rewire_filters(drop, grow, keep_share=self.keep_share, live_share=self.live_share, grows=grows)
        return replace_connections(mask, drop, grow, target=target, fraction=fraction, grows=grows)
