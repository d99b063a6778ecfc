"""Batch normalisation with the statistics of the global batch instead of each rank's slice."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import SingleValueBatchNorm
from utils.torch_compat import AnyShapeBatchNorm


# torch.distributed.nn.functional.all_reduce does the same, but is deprecated.
class SumOverRanks(torch.autograd.Function):
    """Differentiable sum of a tensor over all ranks (all-reduce).

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
    """Synchronised batch norm that trains with torch's SyncBatchNorm, which needs a GPU.

    Evaluation mode works as in SingleValueBatchNorm, the batch norm of this program for a single process.
    """

    process_group = None  # all ranks

    def forward(self, input: Tensor) -> Tensor:
        # A rank with one value per channel shares the variance of all ranks, so it needs no SingleValueBatchNorm.
        return nn.SyncBatchNorm.forward(self, input) if self.training else super().forward(input)


class SyncBatchNorm(SingleValueBatchNorm, AnyShapeBatchNorm):
    """Synchronised batch norm that works on any device.

    Mean and variance are differentiable sums over all ranks. Inputs are (B, C, …).
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._normalise(input) if self.training else super().forward(input)

    def _normalise(self, input: Tensor) -> Tensor:
        """Normalise `input` with the mean and variance of the global batch, and update the running statistics.

        Return (x − mean) / √(variance + eps) · weight + bias, computed in float32 at least. The ranks exchange the mean
        before the variance, because E[x²] − E[x]² would lose half of the digits.
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
        """Update the running mean and variance with those of a batch.

        The attribute `momentum` is the weight of the batch. If it is None, all batches so far have equal weight.
        """
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise(model: nn.Module, *, fused: bool) -> None:
    """Replace every batch norm of `model`, in place, by a synchronised one.

    The new batch norms use the statistics of the global batch. Parameters, buffers and state-dict keys stay. `fused`
    selects torch's implementation, which needs a GPU.
    """
    kind = FusedSyncBatchNorm if fused else SyncBatchNorm
    for name, norm in list(model.named_modules(remove_duplicate=False)):
        if isinstance(norm, SingleValueBatchNorm):
            synchronised = kind.__new__(kind)  # no constructor: parameters, buffers and attributes are those of `norm`
            synchronised.__dict__.update(norm.__dict__)
            model.set_submodule(name, synchronised)
