"""SparseConv: weights under a mask that the training method rewires."""

import torch
from torch import Tensor

from models.constraints.connection_update import Rewiring, top_per_row
from models.constraints.fixed_masks import RandomMaskWeight


class SparseWeight(RandomMaskWeight):
    """Constraint SparseConv: w = W · M. W trains; M is 1 for each connection of the layer, else 0.

    Initially a random `density` of the connections exists. Trainer `sparse` drops connections and grows others. While
    `records_gradient` is True, a backward pass stores dL/dw in `dense_gradient`, for dropped connections too.
    """

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__(weight, density=density, generator=generator)
        self.records_gradient = False
        self.dense_gradient: Tensor | None = None

    @torch.no_grad()
    def draw_mask(self, count: int) -> None:
        """Draw a mask of `count` random connections, from torch's generator of the CPU."""
        chosen = top_per_row(torch.rand(1, self.mask.numel()), count)
        self.mask.copy_(chosen.view(self.mask.shape))

    @torch.no_grad()
    def rewire(self, weight: Tensor, rewiring: Rewiring, *, hold: bool) -> None:
        """Apply `rewiring` to the layer's `weight` in place, and discard the recorded gradient.

        With `hold` the mask changes too, so that dropped connections stay 0. Without it they train on from 0.
        """
        self.records_gradient, self.dense_gradient = False, None
        weight.copy_(rewiring.applied_to(weight))
        if hold:
            self.mask.copy_(rewiring.kept | rewiring.grown)

    def forward(self, weight: Tensor) -> Tensor:
        """Return W · M."""
        effective = super().forward(weight)
        if self.records_gradient and effective.requires_grad:
            effective.register_hook(self._record_gradient)
        return effective

    def _record_gradient(self, gradient: Tensor) -> None:
        self.dense_gradient = gradient.detach()
