"""SparseConv: weights under a mask that trainer `sparse` changes during training."""

import torch
from torch import Tensor

from models.constraints.connection_update import Rewiring, top_per_row
from models.constraints.fixed_masks import RandomMaskWeight


class SparseWeight(RandomMaskWeight):
    """Constraint SparseConv, which multiplies the layer's trained weight by a changing mask.

    The effective weight is W · M. W is the layer's weight. The mask M changes during training. M is 1 for each
    connection that the layer has, else 0. At first M is random with the given `density`. Trainer `sparse` drops
    connections and grows others. While `records_gradient` is True, a backward pass stores the gradient of the effective
    weight, which covers dropped connections too, in `dense_gradient`.
    """

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__(weight, density=density, generator=generator)
        self.records_gradient = False
        self.dense_gradient: Tensor | None = None

    @torch.no_grad()
    def draw_mask(self, count: int) -> None:
        """Replace the mask by a random mask with `count` ones.

        The mask is drawn from torch's generator of the CPU.
        """
        chosen = top_per_row(torch.rand(1, self.mask.numel()), count)
        self.mask.copy_(chosen.view(self.mask.shape))

    @torch.no_grad()
    def rewire(self, weight: Tensor, rewiring: Rewiring, *, hold: bool) -> None:
        """Drop and grow connections in place, and discard the recorded gradient.

        `rewiring` names the connections. The layer's `weight` is written to.

        If `hold` is True the mask changes too, so that dropped connections stay 0. Otherwise they continue to train
        from 0.
        """
        self.records_gradient, self.dense_gradient = False, None
        weight.copy_(rewiring.applied_to(weight))
        if hold:
            self.mask.copy_(rewiring.kept | rewiring.grown)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, which is `weight` times the mask.

        While `records_gradient` is True, the backward pass stores the gradient of the effective weight in
        `dense_gradient`.
        """
        effective = super().forward(weight)
        if self.records_gradient and effective.requires_grad:
            effective.register_hook(self._record_gradient)
        return effective

    def _record_gradient(self, gradient: Tensor) -> None:
        self.dense_gradient = gradient.detach()
