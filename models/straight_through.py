"""The base class of straight-through functions: their backward pass is not the derivative of their forward pass."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """Base class of autograd functions with a straight-through estimator.

    Subclasses define `forward`, which returns one tensor, and `backward`.
    """

    if TYPE_CHECKING:  # torch does not annotate `apply`

        @classmethod
        def apply(cls, *arguments: Any) -> Tensor: ...
