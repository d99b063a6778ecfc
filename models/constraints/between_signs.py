"""The layers between binary activations, found in a network's graph: their sums of signs decide signs."""

import math

import torch
from torch import fx, nn
from torch.nn import functional as F

from models.activations import Sign
from models.layers import HardInvert

# Through these (not their subclasses) whole numbers stay whole, and x and α·x have the same sign behind them if α > 0.
HOMOGENEOUS: tuple[type[nn.Module], ...] = (nn.MaxPool2d, nn.ReLU, nn.Flatten, nn.Identity)
FUNCTIONS = (torch.flatten, torch.relu, F.relu)
METHODS = ("flatten", "reshape", "view")


class _Tracer(fx.Tracer):
    """Looks into the modules that only hold others."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return isinstance(m, nn.Conv2d | nn.Linear) or next(m.children(), None) is None


def sign_layers(model: nn.Module) -> set[str]:
    """Names of the Conv2d and Linear layers between binary activations, max-pools, ReLU and reshapes aside.

    Their inputs are always small whole numbers. Nothing but the signs of their outputs is used. A layer behind dropout
    is none: it scales what is kept. Empty for a network that torch.fx cannot trace.
    """
    if not any(isinstance(module, Sign) for module in model.modules()):
        return set()
    try:
        nodes = _Tracer().trace(model).nodes
    except Exception:  # a forward of anybody's may fail in any way when it is given a proxy
        return set()
    modules = dict(model.named_modules())
    whole: set[fx.Node] = set()
    found: dict[str, bool] = {}
    for node in nodes:
        module = _module(node, modules)
        from_whole = bool(node.args) and node.args[0] in whole
        if type(module) is Sign or (from_whole and (_homogeneous(node, modules) or type(module) is HardInvert)):
            whole.add(node)
        elif isinstance(module, nn.Conv2d | nn.Linear):  # one that is used twice must be such a layer both times
            name = str(node.target)
            found[name] = found.get(name, True) and from_whole and _reaches_signs_alone(node, modules)
        elif from_whole and node.op == "call_method" and str(node.target).endswith("_"):
            return set()  # in place: nothing that shares its memory is known to be whole any more
    return {name for name, is_one in found.items() if is_one}


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if (module := _module(node, modules)) is not None:
        return type(module) in HOMOGENEOUS or (type(module) is nn.Sequential and not len(module))
    return node.target in (FUNCTIONS if node.op == "call_function" else METHODS)


def _reaches_signs_alone(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return bool(node.users) and all(
        type(_module(user, modules)) is Sign or (_homogeneous(user, modules) and _reaches_signs_alone(user, modules))
        for user in node.users
    )


def short(scale: float, terms: int, dtype: torch.dtype) -> float:
    """`scale` rounded to so few bits that sums of up to `terms` of ± it are exact in `dtype`, float32 at least."""
    if not math.isfinite(scale):
        return scale
    precision = 1 - round(math.log2(torch.finfo(torch.promote_types(dtype, torch.float32)).eps))
    bits = max(1, precision - 1 - terms.bit_length())
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
