"""Data-parallel training: every rank trains a replica of the network, and all replicas get the same gradient."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data.device_batches import Batches
from trainers.registry import GRAD_COMPRESSIONS
from trainers.sync_batch_norm import synchronise
from utils.console import say, warn
from utils.distributed.batch_slice import BatchSlice
from utils.distributed.runtime import ALONE, Runtime
from utils.registry import load_object, lookup
from utils.torch_compat import NO_BUFFER_SYNC, AnyBatchNorm


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Communication hook of DistributedDataParallel that sends gradients in bfloat16.

    DDP accepts torch's bf16_compress_hook, which it knows by name, only with NCCL. gloo supports bfloat16 too.
    """
    return default_hooks.bf16_compress_hook(group, bucket)


class GlobalDropout(nn.Module):
    """Dropout for data-parallel training, with one mask for the global batch.

    Every rank draws the mask of the global batch, and applies only the rows of the mask that belong to its own images.
    The generators of the ranks therefore stay equal, and the mask of an image does not depend on its rank. With several
    views per image, the first views of all images precede the second views.

    p: Probability that a unit is dropped.
    spatial: Drop whole channels, as Dropout2d does. Input is (B, C, H, W).
    batch_slice: This rank's slice of the global batch, which must be set before every training step.
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


class Replicas:
    """Replicas of one network for data-parallel training, one per rank of `runtime`.

    With a single process the network stays unchanged.

    compression: Compression of the gradients, a name in GRAD_COMPRESSIONS. Raises ValueError for an unknown name.
    sync_bn: Compute batch-norm statistics over the global batch instead of each rank's slice.
    """

    def __init__(self, runtime: Runtime = ALONE, *, compression: str = "none", sync_bn: bool = False) -> None:
        self._runtime, self._sync_bn = runtime, sync_bn
        hook = lookup(GRAD_COMPRESSIONS, compression, "grad_compression")
        self._hook = None if hook is None else load_object(hook)
        self._dropouts: list[GlobalDropout] = []
        self._wrapped: tuple[list[int], nn.Module] | None = None  # ids of the trained parameters, DDP module

    def prepare(self, model: nn.Module) -> None:
        """Replace dropout and batch-norm layers of `model`, in place, for data-parallel training.

        The new dropout layers draw one mask for the global batch. Batch norms are replaced only with `sync_bn`, by
        layers that use the statistics of the global batch. Call once, before `model` moves to its device and its
        optimizer is created.
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

    def next_slice(self, batches: Batches, step: int, images: int) -> BatchSlice:
        """Return this rank's slice of global batch number `step`.

        The dropout layers get the slice too, because they draw one mask for the global batch. `images` is the number of
        images on this rank.
        """
        if self._runtime.alone:
            return BatchSlice.of(images, 0, 1)
        batch_slice = batches.share(step)
        for dropout in self._dropouts:
            dropout.batch_slice = batch_slice
        return batch_slice

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap `model` in DistributedDataParallel, which averages gradients over the ranks in the backward pass.

        The wrapper is cached, and created anew when the set of trainable parameters changes, because frozen parameters
        send no gradients. With a single process, return `model` itself.
        """
        if self._runtime.alone:
            return model
        trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        if self._wrapped is None or self._wrapped[0] != trained:
            self._wrapped = None  # removes the old hooks from the parameters before new ones are added
            self._wrapped = trained, self._distributed(model)
        return self._wrapped[1]

    def _distributed(self, model: nn.Module) -> nn.Module:
        """Wrap `model` in DistributedDataParallel, without synchronisation of buffers.

        DistributedDataParallel would synchronise buffers before every forward pass. Only the running statistics of
        batch norms differ between ranks. `broadcast_statistics` sends them once per epoch.
        """
        # Kernels with one input channel have two equivalent strides, so torch's warning about them is harmless.
        warnings.filterwarnings("ignore", "Grad strides do not match")
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
        """Copy the batch-norm running statistics of rank 0 to all other ranks.

        Checkpoints store the statistics of rank 0.
        """
        if self._runtime.alone:
            return
        for module in model.modules():
            if isinstance(module, AnyBatchNorm) and module.running_mean is not None:
                dist.broadcast(module.running_mean, 0)
                dist.broadcast(module.running_var, 0)  # type: ignore[arg-type]
