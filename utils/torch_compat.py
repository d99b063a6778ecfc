"""Every private name and work-around for torch and torchvision that the program needs, each with its reason."""

import inspect
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# The base class of all batch norms. torch has no public one, and listing BatchNorm1d, 2d, 3d and SyncBatchNorm would
# miss subclasses of the base class, such as ours.
AnyBatchNorm = nn.modules.batchnorm._BatchNorm

# The option of DistributedDataParallel that leaves the buffers of the ranks alone: torch 2.13 renamed it.
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


@cache
def without_dynamo(optimizer: type[torch.optim.Optimizer]) -> Any:
    """Return a subclass of `optimizer`, of the same name, whose methods do not import torch._dynamo.

    torch wraps these methods for torch.compile, which this program does not use on optimizers. The wrappers import
    torch._dynamo at the first call, which takes as long as importing torch itself (1.2 s).
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Callable[..., Any]] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


# torchvision registers shape functions for these operators when it is imported, and fails where its compiled library is
# absent, as its CUDA build is beside a CPU build of torch: "operator torchvision::nms does not exist". We call neither.
MISSING_OPERATORS = ("nms", "qnms")


def import_torchvision() -> Any:
    """Import torchvision, also a build whose compiled operators do not match torch, and return it.

    Raises ImportError if torchvision is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:  # not before: registering a name twice would break a build that has its operators
        if "torchvision::" not in str(error):
            raise
        register_missing_operators()
        import torchvision
    return torchvision


def import_transforms() -> Any:
    """Import torchvision.transforms.v2 and return it. Raises ImportError if torchvision is not installed."""
    import_torchvision()
    from torchvision.transforms import v2

    return v2


@cache
def register_missing_operators() -> torch.library.Library:
    """Define the signatures of the operators that torchvision's library did not register, and return their owner.

    Registrations end with the Library object, so the cache keeps it.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in MISSING_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
