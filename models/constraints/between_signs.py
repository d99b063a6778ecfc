"""The layers between binary activations, found in the graph of a network.

Only the signs of the outputs of such a layer are used, so its sums must be exact where they are 0 (see `Constraint`).
"""

import math

import torch
from torch import fx, nn
from torch.nn import functional as F

from models.activations import Sign
from models.constraints.forward_order import trace
from models.layers import HardInvert

# Modules and functions f that keep whole numbers whole and for which f(α·x) = α·f(x) if α > 0. Subclasses may differ.
HOMOGENEOUS: tuple[type[nn.Module], ...] = (nn.MaxPool2d, nn.ReLU, nn.Flatten, nn.Identity)
FUNCTIONS = (torch.flatten, torch.relu, F.relu)
METHODS = ("flatten", "reshape", "view")


def sign_layers(model: nn.Module) -> set[str]:
    """Return the names of the Conv2d and Linear layers whose inputs and outputs are binary activations.

    Max-pools, ReLU and reshapes may stand between a layer and its activations. The inputs of such a layer are small
    whole numbers, and only the signs of its outputs are used. A layer after dropout is not one of them, because dropout
    scales the values that it keeps. The result is empty for a network that torch.fx cannot trace.
    """
    if not any(isinstance(module, Sign) for module in model.modules()) or (graph := trace(model)) is None:
        return set()
    modules = dict(model.named_modules())
    whole: set[fx.Node] = set()  # nodes whose values are whole numbers
    between: dict[str, bool] = {}
    for node in graph.nodes:
        module = _module(node, modules)
        from_whole = bool(node.args) and node.args[0] in whole
        if type(module) is Sign or (from_whole and (_homogeneous(node, modules) or type(module) is HardInvert)):
            whole.add(node)
        elif isinstance(module, nn.Conv2d | nn.Linear):  # a layer that is used twice must pass both times
            name = str(node.target)
            between[name] = between.get(name, True) and from_whole and _reaches_only_signs(node, modules)
        elif from_whole and node.op == "call_method" and str(node.target).endswith("_"):
            return set()  # an in-place operation may change any value that shares memory with its input
    return {name for name, is_between in between.items() if is_between}


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if (module := _module(node, modules)) is not None:
        return type(module) in HOMOGENEOUS or (type(module) is nn.Sequential and not len(module))
    return node.target in (FUNCTIONS if node.op == "call_function" else METHODS)


def _reaches_only_signs(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return bool(node.users) and all(
        type(_module(user, modules)) is Sign or (_homogeneous(user, modules) and _reaches_only_signs(user, modules))
        for user in node.users
    )


def rounded_scale(scale: float, terms: int, dtype: torch.dtype) -> float:
    """Return `scale` rounded to so few bits that sums of up to `terms` values of ±`scale` are exact.

    The sums are computed in `dtype`, or in float32 if that is wider. A scale that is not finite is returned unchanged.
    """
    if not math.isfinite(scale):
        return scale
    precision = 1 - round(math.log2(torch.finfo(torch.promote_types(dtype, torch.float32)).eps))
    bits = max(1, precision - 1 - terms.bit_length())
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
