"""Batch normalisation over the global batch, which all ranks share."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import SingleValueBatchNorm


class SumOverRanks(torch.autograd.Function):
    """Differentiable all-reduce.

    forward:   y = Σ_rank x_rank, on every rank
    backward:  ∂L/∂x = Σ_rank ∂L_rank/∂y
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return SumOverRanks.forward(None, gradients[0])


sum_over_ranks: Callable[[Tensor], Tensor] = SumOverRanks.apply


class FusedSyncBatchNorm(SingleValueBatchNorm, nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which needs a GPU; evaluation is that of SingleValueBatchNorm."""

    process_group = None  # all ranks

    def forward(self, input: Tensor) -> Tensor:
        # In training not SingleValueBatchNorm's: one value per channel on this rank is not one in the global batch.
        return nn.SyncBatchNorm.forward(self, input) if self.training else super().forward(input)


class SyncBatchNorm(SingleValueBatchNorm):
    """Batch norm over the global batch by differentiable sums over the ranks, on any device; shape (B, C, …)."""

    def forward(self, input: Tensor) -> Tensor:
        return self._normalise(input) if self.training else super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None: ...  # torch's hook, called in evaluation: any shape is accepted

    def _normalise(self, input: Tensor) -> Tensor:
        """Return (x − mean) / √(variance + eps) · weight + bias, computed in float32 at least.

        The mean is reduced before the variance: E[x²] − E[x]² would lose half of the digits.
        """
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        count = sum_over_ranks(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = sum_over_ranks(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._update_running_statistics(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(input.dtype)
        return (centred * scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise(model: nn.Module, *, fused: bool) -> None:
    """Exchange every batch norm of `model`, in place, for one over the global batch that shares its parameters.

    State-dict keys stay. `fused` selects torch's implementation, for GPUs.
    """
    kind = FusedSyncBatchNorm if fused else SyncBatchNorm
    for name, norm in list(model.named_modules(remove_duplicate=False)):
        if isinstance(norm, SingleValueBatchNorm):
            synchronised = kind.__new__(kind)  # no constructor: parameters, buffers and attributes are those of `norm`
            synchronised.__dict__.update(norm.__dict__)
            model.set_submodule(name, synchronised)
