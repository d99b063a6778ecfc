"""One network trained by several processes: each has a replica, and all replicas get the same gradient."""

import warnings
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from trainers.sync_batch_norm import synchronise
from utils.console import say, warn
from utils.distributed.batch_slice import Share
from utils.distributed.runtime import ALONE, Runtime
from utils.registry import lookup

if TYPE_CHECKING:
    from data.device_batches import Batches

# torch 2.13 has given the option another name
IS_NEW = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if IS_NEW else "broadcast_buffers": False}


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's own hook, under a name that DDP does not take for one of NCCL alone: gloo can do it too."""
    return default_hooks.bf16_compress_hook(group, bucket)


COMPRESSIONS: dict[str, Any] = {"none": None, "bf16": bf16}


class Replicas:
    """What the processes of `runtime` do to train one network; a process alone changes nothing of it."""

    def __init__(self, runtime: Runtime = ALONE, *, compression: str = "none", sync_bn: bool = False) -> None:
        self._runtime, self._sync_bn = runtime, sync_bn
        self._hook = lookup(COMPRESSIONS, compression, "grad_compression")
        self._made: tuple[list[int], nn.Module] | None = None
        self._share = Share.of(1, 0, 1)

    def take(self, batches: "Batches", step: int, images: int) -> Share:
        """The next batch of training comes: what this process, which has so many `images` of it, has of the whole."""
        self._share = Share.of(images, 0, 1) if self._runtime.alone else batches.share(step)
        return self._share

    def prepare(self, model: nn.Module) -> None:
        """Once, before `model` goes to its device and its optimizer is made."""
        if self._runtime.alone:
            for name in ["sync_bn"] * self._sync_bn + ["grad_compression"] * (self._hook is not None):
                warn(f"{name} has no effect on one process")
            return
        if self._sync_bn:
            synchronise(model, fused=self._runtime.device.type == "cuda")
        elif any(isinstance(module, _BatchNorm) for module in model.modules()):
            say("batch norm: statistics are of each process's share of a batch; --sync-bn takes the whole batch")
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.forward = partial(self._drop, module)  # type: ignore[method-assign]

    def _drop(self, module: nn.Dropout | nn.Dropout2d, input: Tensor) -> Tensor:
        """Dropout as it is of the whole batch: every process draws for all of it, so that their generators stay equal
        and an image loses the same units whichever process it is on. There may be several views of each image, all
        images' first views before the second ones."""
        if not module.training or not module.p:
            return input
        spatial = isinstance(module, nn.Dropout2d)
        views, of_one = len(input) // self._share.count, input.shape[1:2] if spatial else input.shape[1:]
        drawn = F.dropout(input.new_ones(views * self._share.total, *of_one), module.p)
        kept = drawn.view(views, self._share.total, *of_one)[:, self._share.rows].flatten(0, 1)
        return input * (kept[:, :, None, None] if spatial else kept)

    def of(self, model: nn.Module) -> nn.Module:
        """`model` for a forward pass of training, whose backward pass averages the gradients over all processes.

        Made anew when other parameters train than before: those that do not have nothing to send.
        """
        if self._runtime.alone:
            return model
        trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        if self._made is None or self._made[0] != trained:
            self._made = None  # its hooks go before the next ones come
            self._made = trained, self._replicated(model)
        return self._made[1]

    def _replicated(self, model: nn.Module) -> nn.Module:
        """Running statistics are left to the first process: what other buffers hold is the same everywhere.

        `find_unused_parameters` is not for unused parameters: without it the second step sums in other buckets than the
        first, and among three processes that is another order. A resumed run would differ in its last bits.
        """
        warnings.filterwarnings("ignore", "Grad strides do not match")  # of kernels with one input channel, both fit
        device = self._runtime.device
        network = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            **NO_BUFFERS,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        if self._hook is not None:
            network.register_comm_hook(None, self._hook)
        return network

    @torch.no_grad()
    def align(self, model: nn.Module) -> None:
        """Give every replica the running statistics of the first, which are those of the network."""
        if self._runtime.alone:
            return
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                dist.broadcast(module.running_mean, 0)
                dist.broadcast(module.running_var, 0)  # type: ignore[arg-type]
