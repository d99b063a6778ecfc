"""Batch normalisation over the batch of all processes together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import SingleValueBatchNorm


class Sum(torch.autograd.Function):
    """y = Σ over the processes of x, on each of them; ∂L/∂x = Σ over the processes of ∂L/∂y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return Sum.forward(None, gradients[0])


class FusedSyncBatchNorm(SingleValueBatchNorm, nn.SyncBatchNorm):
    """torch's own, which needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:  # in training one value here is not one value everywhere
        return nn.SyncBatchNorm.forward(self, input) if self.training else super().forward(input)


class SyncBatchNorm(SingleValueBatchNorm):
    """The same on any device, by differentiable sums over the processes; (B, C, …)."""

    def forward(self, input: Tensor) -> Tensor:
        return self._by_sums(input) if self.training else super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None: ...

    def _by_sums(self, input: Tensor) -> Tensor:
        """(x − mean) / √(variance + eps) · weight + bias, in float32 at least; the mean comes before the variance:
        E[x²] − E[x]² would lose half of the digits."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        count = Sum.apply(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = Sum.apply(x.sum(over)) / count
        centred = x - mean.view(shape)
        variance = Sum.apply(centred.square().sum(over)) / count
        if self.track_running_stats:
            self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(input.dtype)
        return (centred * scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise(model: nn.Module, *, fused: bool) -> None:
    """Turn every batch norm of `model`, in place, into one over the batch of all processes; `fused`: on a GPU."""
    for module in model.modules():
        if isinstance(module, SingleValueBatchNorm):
            module.__class__ = FusedSyncBatchNorm if fused else SyncBatchNorm
            module.process_group = None  # type: ignore[assignment]
