"""Private names and global settings of torch, and work-arounds for torch and torchvision, each with the reason."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# torch publishes these classes and functions in its notes only, under private module names.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

# The base class of all batch norms, which torch does not publish. A list of BatchNorm1d, 2d, 3d and SyncBatchNorm would
# miss classes that are derived from the base class, as in this program.
AnyBatchNorm = nn.modules.batchnorm._BatchNorm


class AnyShapeBatchNorm(AnyBatchNorm):
    """Batch norm that accepts inputs of any shape (B, C, …). The base class calls a private hook to check the shape."""

    def _check_input_dim(self, input: torch.Tensor) -> None: ...


# The convolution of a Conv2d with another weight: (layer, input, weight, bias) -> output. It handles `padding_mode`.
conv2d_with = nn.Conv2d._conv_forward

# Options of torch.save for the file format of torch before 1.6.
OLD_FILE_FORMAT: dict[str, Any] = {"_use_new_zipfile_serialization": False}

# The option of DistributedDataParallel that switches off copying buffers between ranks. torch 2.13 renamed it.
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


def tensor_version(tensor: Tensor) -> tuple[int, int]:
    """Return a pair of integers that changes when a tensor is written to.

    The pair changes when `tensor` is written to in place or gets other storage. Two kinds of writes do not change it:
    writes through `.data`, and the steps of torch's fused optimizers. torch has no public version of a tensor.
    """
    return tensor.data_ptr(), tensor._version


def padding_per_side(conv: nn.Conv2d) -> list[int]:
    """Return the padding of a convolution in pixels: left, right, top, bottom.

    torch computes it for padding="same", which may pad one side more than the other.
    """
    return list(conv._reversed_padding_repeated_twice)


def has_forward_pre_hooks(model: nn.Module) -> bool:
    """Return True if a module of `model` has a hook that may change its input."""
    return any(module._forward_pre_hooks for module in model.modules())


def argument_names(operator: Any) -> list[str]:
    """Return the names of the arguments of a torch operator, such as torch.ops.aten.mean.dim."""
    return [argument.name for argument in operator._schema.arguments]


def is_in_place(operator: Any) -> bool:
    """Return True if a torch operator writes to one of its arguments."""
    return bool(operator._schema.is_mutable)


def ddp_buckets(gradients: list[Tensor], bucket_bytes: int) -> list[list[int]]:
    """Return the indices of the gradients in each bucket of DistributedDataParallel, from the first layers on.

    The first bucket is small. The others have up to `bucket_bytes` bytes. A copy of this rule would not notice a change
    in torch.
    """
    from torch._C._distributed_c10d import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size

    limits = [_DEFAULT_FIRST_BUCKET_BYTES, bucket_bytes]
    buckets, _ = _compute_bucket_assignment_by_size(gradients, limits, [False] * len(gradients))
    return buckets


@cache
def without_dynamo(optimizer: type[torch.optim.Optimizer]) -> Any:
    """Return a subclass of the optimizer class whose methods do not import torch._dynamo.

    The import takes 1.2 s. The subclass has the same name. torch wraps these methods for torch.compile, which this
    program does not use on optimizers. At the first call the wrappers import torch._dynamo, which takes as long as
    importing torch itself.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Callable[..., Any]] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


# When torchvision is imported, it registers shape functions for these operators. This fails with "operator
# torchvision::nms does not exist" if its compiled library cannot be loaded, as with the CUDA build of torchvision and
# the CPU build of torch. This program uses neither operator.
MISSING_OPERATORS = ("nms", "qnms")


def import_torchvision() -> Any:
    """Import and return torchvision, even if its compiled operators do not match the build of torch.

    Raises ImportError if torchvision is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:  # registered only on failure: a second registration would break a complete build
        if "torchvision::" not in str(error):
            raise
        register_missing_operators()
        import torchvision
    return torchvision


def import_transforms() -> Any:
    """Import and return torchvision.transforms.v2.

    Raises ImportError if torchvision is not installed.
    """
    import_torchvision()
    from torchvision.transforms import v2

    return v2


@cache
def register_missing_operators() -> torch.library.Library:
    """Register signatures for operators that torchvision could not load, so that importing torchvision succeeds.

    The registrations end with the life of the returned Library object, so the cache keeps it.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in MISSING_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@contextmanager
def restored_torch_settings() -> Iterator[None]:
    """Context manager that restores the settings of torch that a run changes."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    kernels = torch.backends.cudnn.deterministic
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.deterministic = kernels
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        if gpu is not None:
            torch.cuda.set_device(gpu)
