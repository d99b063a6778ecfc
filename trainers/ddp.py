"""Train one network on several ranks: each has a replica, and all replicas get the same gradient."""

import warnings
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from trainers.sync_batch_norm import synchronise
from utils.console import say, warn
from utils.distributed.batch_slice import BatchSlice
from utils.distributed.runtime import ALONE, Runtime
from utils.registry import lookup
from utils.torch_compat import NO_BUFFER_SYNC, AnyBatchNorm


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Communication hook that sends gradients in bfloat16.

    DDP refuses torch's bf16_compress_hook, by its name, with another backend than NCCL. gloo supports it too.
    """
    return default_hooks.bf16_compress_hook(group, bucket)


COMPRESSIONS: dict[str, Any] = {"none": None, "bf16": bf16}


class GlobalDropout(nn.Module):
    """Dropout whose mask is drawn for the global batch, and of which this rank applies `batch_slice`.

    Every rank draws the whole mask. So the generators of the ranks stay equal, and an image loses the same units on
    whichever rank it is. With several views per image, the first views of all images precede the second ones.

    p: Probability that a unit is dropped.
    spatial: Drop whole channels, as Dropout2d does. Input is (B, C, H, W).
    """

    def __init__(self, p: float, *, spatial: bool) -> None:
        super().__init__()
        self.p, self.spatial = p, spatial
        self.batch_slice = BatchSlice.of(1, 0, 1)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p:
            return input
        rows, total = self.batch_slice.rows, self.batch_slice.total
        views, units = len(input) // self.batch_slice.count, input.shape[1:2] if self.spatial else input.shape[1:]
        drawn = F.dropout(input.new_ones(views * total, *units), self.p)
        kept = drawn.view(views, total, *units)[:, rows].flatten(0, 1)
        return input * (kept[:, :, None, None] if self.spatial else kept)


class GlobalBatches(Protocol):
    """Batches of which each rank has a slice."""

    def share(self, number: int) -> BatchSlice:
        """Return this rank's slice of global batch `number` of an epoch."""
        ...


class Replicas:
    """The replicas of one network on the ranks of `runtime`. On a single process the network stays as it is.

    compression: Name in COMPRESSIONS of how gradients are sent. Raises ValueError for an unknown name.
    sync_bn: Compute batch-norm statistics over the global batch instead of each rank's slice.
    """

    def __init__(self, runtime: Runtime = ALONE, *, compression: str = "none", sync_bn: bool = False) -> None:
        self._runtime, self._sync_bn = runtime, sync_bn
        self._hook = lookup(COMPRESSIONS, compression, "grad_compression")
        self._dropouts: list[GlobalDropout] = []
        self._wrapped: tuple[list[int], nn.Module] | None = None  # ids of the trained parameters, DDP module

    def prepare(self, model: nn.Module) -> None:
        """Exchange, in place, the modules of `model` that depend on the whole batch.

        Call once, before `model` moves to its device and its optimizer is made.
        """
        if self._runtime.alone:
            for name, is_set in (("sync_bn", self._sync_bn), ("grad_compression", self._hook is not None)):
                if is_set:
                    warn(f"{name} has no effect on one process")
            return
        if self._sync_bn:
            synchronise(model, fused=self._runtime.device.type == "cuda")
        elif any(isinstance(module, AnyBatchNorm) for module in model.modules()):
            say("batch norm: each process uses the statistics of its slice of a batch; --sync-bn uses the whole batch")
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                self._dropouts.append(GlobalDropout(module.p, spatial=isinstance(module, nn.Dropout2d)))
                model.set_submodule(name, self._dropouts[-1])

    def next_slice(self, batches: GlobalBatches, step: int, images: int) -> BatchSlice:
        """Return this rank's slice of global batch `step` of `batches`, for the next forward pass.

        images: Number of images of the batch on this rank.
        """
        if self._runtime.alone:
            return BatchSlice.of(images, 0, 1)
        batch_slice = batches.share(step)
        for dropout in self._dropouts:
            dropout.batch_slice = batch_slice
        return batch_slice

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module for forward passes of training, whose backward pass averages gradients over the ranks.

        It is made again when the set of trainable parameters changes: frozen parameters send no gradients.
        """
        if self._runtime.alone:
            return model
        trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        if self._wrapped is None or self._wrapped[0] != trained:
            self._wrapped = None  # removes the old hooks from the parameters before new ones are added
            self._wrapped = trained, self._distributed(model)
        return self._wrapped[1]

    def _distributed(self, model: nn.Module) -> nn.Module:
        """Wrap `model` in DDP without synchronising buffers: only running statistics differ between ranks, and
        `broadcast_statistics` sends them."""
        warnings.filterwarnings("ignore", "Grad strides do not match")  # kernels with one input channel fit either way
        device = self._runtime.device
        network = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            **NO_BUFFER_SYNC,
            # No parameter is unused. Without the search DDP rebuilds its buckets after the first step, and three ranks
            # then sum in another order: a resumed run would differ in its last bits.
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        if self._hook is not None:
            network.register_comm_hook(None, self._hook)
        return network

    @torch.no_grad()
    def broadcast_statistics(self, model: nn.Module) -> None:
        """Copy the running statistics of rank 0, which checkpoints store, to all ranks."""
        if self._runtime.alone:
            return
        for module in model.modules():
            if isinstance(module, AnyBatchNorm) and module.running_mean is not None:
                dist.broadcast(module.running_mean, 0)
                dist.broadcast(module.running_var, 0)  # type: ignore[arg-type]
