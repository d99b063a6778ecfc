"""Batch normalisation over the batch of all processes together."""

import torch
import torch.distributed.nn.functional as between
from torch import Tensor, nn

from models.blocks import OneValue


class SyncBatchNorm(OneValue, nn.SyncBatchNorm):
    """torch's SyncBatchNorm, and on a CPU, which that one refuses, the same by differentiable sums; (B, C, …)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return nn.SyncBatchNorm.forward(self, input) if input.is_cuda else self._by_sums(input)

    def _by_sums(self, input: Tensor) -> Tensor:
        """(x − mean) / √(variance + eps) · weight + bias, in float32 at least; the mean comes before the variance:
        E[x²] − E[x]² would lose half of the digits."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        count = between.all_reduce(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = between.all_reduce(x.sum(over)) / count
        centred = x - mean.view(shape)
        variance = between.all_reduce(centred.square().sum(over)) / count
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


def synchronise(model: nn.Module) -> int:
    """Turn every batch norm of `model`, in place, into one over the batch of all processes; how many there are."""
    found = [module for module in model.modules() if isinstance(module, OneValue)]
    for module in found:
        module.__class__ = SyncBatchNorm
        module.process_group = None  # type: ignore[assignment]
    return len(found)
