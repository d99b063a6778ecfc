"""SparseConv: weights under a mask that trainer `sparse` changes during training."""

import torch
from torch import Tensor

from models.constraints.connection_update import Rewiring, top_per_row
from models.constraints.fixed_masks import RandomMaskWeight


class SparseWeight(RandomMaskWeight):
    """Constraint SparseConv: the layer's weight W trains under a mask M that changes during training.

    The effective weight is W · M. M is 1 for each connection that the layer has, else 0. At first M is random with the
    given `density`. Trainer `sparse` drops connections and grows others. While `records_gradient` is True, a backward
    pass stores the gradient of the effective weight, which covers dropped connections too, in `dense_gradient`.
    """

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__(weight, density=density, generator=generator)
        self.records_gradient = False
        self.dense_gradient: Tensor | None = None

    @torch.no_grad()
    def draw_mask(self, count: int) -> None:
        """Replace the mask by a random mask with `count` ones, drawn from torch's generator of the CPU."""
        chosen = top_per_row(torch.rand(1, self.mask.numel()), count)
        self.mask.copy_(chosen.view(self.mask.shape))

    @torch.no_grad()
    def rewire(self, weight: Tensor, rewiring: Rewiring, *, hold: bool) -> None:
        """Drop and grow the connections that `rewiring` names, by writing to the layer's `weight` in place. Discard the
        recorded gradient.

        If `hold` is True the mask changes too, so that dropped connections stay 0. Otherwise they continue to train
        from 0.
        """
        self.records_gradient, self.dense_gradient = False, None
        weight.copy_(rewiring.applied_to(weight))
        if hold:
            self.mask.copy_(rewiring.kept | rewiring.grown)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, `weight` times the mask. While `records_gradient` is True, the backward pass
        stores the gradient of the effective weight in `dense_gradient`.
        """
        effective = super().forward(weight)
        if self.records_gradient and effective.requires_grad:
            effective.register_hook(self._record_gradient)
        return effective

    def _record_gradient(self, gradient: Tensor) -> None:
        self.dense_gradient = gradient.detach()
