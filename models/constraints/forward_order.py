"""The layers of a network in the order of its forward pass."""

import copy

import torch
from torch import Tensor, fx, nn

Layer = nn.Conv2d | nn.Linear


class _LayerTracer(fx.Tracer):
    """torch.fx tracer that records each call of a layer as one node.

    A call of any other module without children is one node too.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return isinstance(m, Layer) or next(m.children(), None) is None


def trace(model: nn.Module) -> fx.Graph | None:
    """Return the torch.fx graph of a model's forward pass, or None if tracing fails."""
    try:
        return _LayerTracer().trace(model)
    except Exception:  # a forward that branches on values may fail in any way when it gets a proxy
        return None


def layers_in_forward_order(model: nn.Module, images: Tensor | None = None) -> dict[str, Layer]:
    """Return the Conv2d and Linear layers by name, in the order of the forward pass.

    Both plain and constrained layers are returned, without the layers that the forward pass does not use. The order
    comes from a torch.fx trace. If a batch of `images` is given, the order comes instead from a forward pass of a copy
    of the network in evaluation mode. Raises ValueError if torch.fx cannot trace the network, or if a layer is used
    more than once.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    calls = _traced_calls(model) if images is None else recorded_calls(model, images)
    order = [name for name in calls if name in layers]
    if repeated := [name for name in order if order.count(name) > 1]:
        raise ValueError(f"the layers have no single order: {repeated[0]} is used {order.count(repeated[0])} times")
    return {name: layers[name] for name in order}


def _traced_calls(model: nn.Module) -> list[str]:
    """Return the names of the modules in a torch.fx trace, in order.

    The trace is that of the forward pass of `model`.
    """
    if isinstance(model, Layer):
        return [""]
    if (graph := trace(model)) is None:
        raise ValueError(f"the order of the layers is unknown: torch.fx cannot trace {type(model).__name__}")
    names = _names(model)
    return [names[model.get_submodule(str(node.target))] for node in graph.nodes if node.op == "call_module"]


@torch.no_grad()
def recorded_calls(model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of the modules that a forward pass calls, in order.

    A copy of `model` runs on `images`.
    """
    calls: list[str] = []
    recorded = copy.deepcopy(model).eval()
    for module, name in _names(recorded).items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    recorded(images)
    return calls


def _names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}
