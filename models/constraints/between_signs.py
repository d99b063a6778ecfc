"""Search for the layers between binary activations in the graph of a network.

The network uses only the signs of the outputs of such a layer. A sum of the layer that is 0 must therefore be computed
exactly (see `Constraint`).
"""

import math

import torch
from torch import fx, nn
from torch.nn import functional as F

from models.activations import Sign
from models.constraints.forward_order import trace
from models.layers import HardInvert

# Modules and functions f that map integers to integers, and for which f(α·x) = α·f(x) if α > 0. Subclasses may differ.
HOMOGENEOUS: tuple[type[nn.Module], ...] = (nn.MaxPool2d, nn.ReLU, nn.Flatten, nn.Identity)
FUNCTIONS = (torch.flatten, torch.relu, F.relu)
METHODS = ("flatten", "reshape", "view")


def sign_layers(model: nn.Module) -> set[str]:
    """Return the names of the Conv2d and Linear layers between two binary activations (`Sign`).

    The inputs of such a layer are small integers, and the network uses only the signs of its outputs. Max-pools, ReLU
    and reshapes may stand between the layer and the activations. Dropout may not, because dropout scales the values
    that it keeps. The result is empty if torch.fx cannot trace the network.
    """
    if not any(isinstance(module, Sign) for module in model.modules()) or (graph := trace(model)) is None:
        return set()
    modules = dict(model.named_modules())
    integer: set[fx.Node] = set()  # nodes whose values are integers
    between: dict[str, bool] = {}
    for node in graph.nodes:
        module = _module(node, modules)
        from_integers = bool(node.args) and node.args[0] in integer
        if type(module) is Sign or (from_integers and (_homogeneous(node, modules) or type(module) is HardInvert)):
            integer.add(node)
        elif isinstance(module, nn.Conv2d | nn.Linear):  # a layer that is used twice must pass both times
            name = str(node.target)
            between[name] = between.get(name, True) and from_integers and _reaches_only_signs(node, modules)
        elif from_integers and node.op == "call_method" and str(node.target).endswith("_"):
            return set()  # an in-place operation may change any value that shares memory with its input
    return {name for name, is_between in between.items() if is_between}


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return True if a torch.fx node maps integers to integers and commutes with positive factors.

    The `node` then calls a function f, such as ReLU or a reshape, with f(α·x) = α·f(x) for every α > 0.
    """
    if (module := _module(node, modules)) is not None:
        return type(module) in HOMOGENEOUS or (type(module) is nn.Sequential and not len(module))
    return node.target in (FUNCTIONS if node.op == "call_function" else METHODS)


def _reaches_only_signs(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return True if every use of a node's output leads to a binary activation.

    The result is False for a torch.fx `node` whose output is not used.
    """
    return bool(node.users) and all(
        type(_module(user, modules)) is Sign or (_homogeneous(user, modules) and _reaches_only_signs(user, modules))
        for user in node.users
    )


def rounded_scale(scale: float, terms: int, dtype: torch.dtype) -> float:
    """Round a scale to so few bits that sums of values of ±scale are exact.

    A sum has up to `terms` values. It is assumed to be computed in `dtype`, or in float32 if float32 is wider. A scale
    that is not finite is returned unchanged.
    """
    if not math.isfinite(scale):
        return scale
    precision = 1 - round(math.log2(torch.finfo(torch.promote_types(dtype, torch.float32)).eps))
    bits = max(1, precision - 1 - terms.bit_length())
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
