"""SparseConv: weights under a mask that the training method moves."""

import torch
from torch import Tensor

from models.constraints.connection_update import Change, strongest
from models.constraints.fixed_masks import RandomMaskWeight


class SparseWeight(RandomMaskWeight):
    """Constraint SparseConv: w = W · M; W trains, M has a one for every connection there is.

    At first a random `density` of them; trainer `sparse` drops connections and grows others. While `watched`, a
    backward pass leaves the dense gradient dL/dw, of dropped connections too, in `gradient`.
    """

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__(weight, density=density, generator=generator)
        self.watched = False
        self.gradient: Tensor | None = None

    @torch.no_grad()
    def draw(self, count: int) -> None:
        """Begin with `count` random connections, from torch's generator of the CPU."""
        chosen = strongest(torch.rand(1, self.mask.numel()), count)
        self.mask.copy_(chosen.view(self.mask.shape))

    @torch.no_grad()
    def change(self, weight: Tensor, change: Change, *, hold: bool) -> None:
        """Bring `change` into the layer's `weight`, and with `hold` into the mask: else what is zeroed trains on.

        The gradient that it may have been made from is forgotten.
        """
        self.watched, self.gradient = False, None
        weight.copy_(change.applied(weight))
        if hold:
            self.mask.copy_(change.kept | change.grown)

    def forward(self, weight: Tensor) -> Tensor:
        effective = super().forward(weight)
        if self.watched and effective.requires_grad:
            effective.register_hook(self._take)
        return effective

    def _take(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()
