"""A pass through a network in which every unit is zero, and which follows the units to the layers that read them.

A unit is an output channel of a Conv2d or a Linear. What a layer reads of units has to be 0 in this pass. As each value
belongs to one unit alone (`channel_rules`), it is 0 whenever that unit is, for all images and other units.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.pruning.channel_rules import (
    NONE,
    Mixes,
    attach,
    has_units,
    is_pointwise,
    mark,
    of_images,
    outputs,
    units_of,
)
from utils.torch_compat import AnyBatchNorm

KNOWN = (nn.Conv2d, nn.Linear, AnyBatchNorm)
REFUSED = "units cannot be pruned: "
Forward = Callable[..., Tensor]


@dataclass
class Mixed:
    """Stands beside values that depend on several `units` at once: the operation `where` `does` that to them."""

    where: str
    does: str
    units: Tensor


def whole_groups(conv: nn.Conv2d) -> bool:
    """Return whether each group of a grouped convolution is one unit, as in a depthwise convolution.

    Otherwise the channels at the same place of all groups are one unit. Either leaves groups of equal widths.
    """
    return conv.groups > 1 and 1 in (conv.in_channels // conv.groups, conv.out_channels // conv.groups)


def numbers(units: Any) -> Tensor:
    """Return the different numbers of units, on the CPU."""
    found = (units.units if isinstance(units, Mixed) else units).unique().cpu()
    return found[found != NONE]


class Trace(TorchDispatchMode):
    """The numbers of the units in each layer of `model`, found by a pass over `images`.

    `rows` has those of the outputs of each Conv2d and Linear, `columns` those along axis 1 of its weight, `entries`
    those of each batch norm. Each of the pairs `joined`, (n, 2), can be cut only together. Those in `returned` reach
    the output of the network. Raises ValueError where a layer reads what does not vanish with its unit.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        self.entries: dict[str, Tensor] = {}
        self.count = 0
        self._pairs = [torch.empty(0, 2, dtype=torch.long)]
        self._mixed: list[Mixed] = []
        self._path: list[tuple[str, nn.Module]] = []
        traced = copy.deepcopy(model).eval()
        for name, module in traced.named_modules():
            module.forward = partial(self._forward, name, module, module.forward)
        mark(images := images.clone())
        with torch.inference_mode(), self:
            result = tree_leaves(traced(images))
        if strange := [x for x in result if not isinstance(x, Tensor | int | float | None)]:
            raise ValueError(f"{REFUSED}the network returns a {type(strange[0]).__name__}, not tensors")
        self.returned = torch.cat([self._pairs[0][:, 0], *(numbers(units_of(x)) for x in result if has_units(x))])
        self.joined = torch.cat(self._pairs)
        for mixed in self._mixed:  # such an operation may fail without some units, also where nothing reads it
            if not torch.isin(mixed.units, self.returned).all():
                raise self._refusal(mixed)

    def _join(self, one: Tensor, other: Tensor) -> None:
        differ = one != other
        if ((one == NONE) & differ).any() or ((other == NONE) & differ).any():
            raise Mixes("combines the images with")
        if differ.any():
            pairs = (one[differ] * self.count + other[differ]).unique().cpu()  # far quicker than unique(dim=0)
            self._pairs.append(torch.stack([pairs // self.count, pairs % self.count], 1))

    def _forward(self, name: str, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """In place of the forward of every module: one of a layer that is known zeroes its units."""
        self._path.append((name, module))
        if isinstance(module, AnyBatchNorm):
            out: Any = self._norm(name, module, forward, *args, **kwargs)
        elif isinstance(module, KNOWN):
            out = self._layer(name, module, forward, *args, **kwargs)
        else:
            out = forward(*args, **kwargs)
        self._path.pop()
        return out

    # operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = [units_of(x) for x in tree_leaves((args, kwargs)) if has_units(x)]
        in_layer = any(isinstance(module, KNOWN) for _, module in self._path)
        if not found or in_layer:
            out = func(*args, **kwargs)
            if any(map(of_images, tree_leaves((args, kwargs)))):
                if not in_layer and not any(isinstance(x, Tensor) for x in tree_leaves(out)):
                    raise ValueError(f"{REFUSED}{self._where(func)} decides by the values of the images")
                mark(out)
            return out
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        units = self._outputs(func, args, kwargs, out, found)
        if not any(isinstance(x, Tensor) for x in tree_leaves(out)):
            raise self._refusal(Mixed(self._where(func), "decides by the values of", numbers(units)))
        in_place = func._schema.is_mutable
        if in_place and (not is_pointwise(func) or isinstance(units, Mixed) or not has_units(args[0])):
            raise self._refusal(Mixed(self._where(func), "writes into another tensor", numbers(units)))
        attach(out, units)
        return out

    def _outputs(self, func: Any, args: Any, kwargs: Any, out: Any, found: list[Any]) -> Any:
        """The numbers of `out`, or Mixed."""
        mixed = next((units for units in found if isinstance(units, Mixed)), None)
        try:
            if mixed is None:
                return outputs(func, args, kwargs, out, self._join)
        except Mixes as error:
            mixed = Mixed(self._where(func), str(error), found[0])
        self._mixed.append(replace(mixed, units=torch.cat([numbers(units) for units in found])))
        return self._mixed[-1]

    def _where(self, func: Any) -> str:
        name, module = self._path[-1]
        return f"{func.overloadpacket.__name__} in " + (
            f"{name}, a {type(module).__name__}," if name else "the network"
        )

    def _writer(self, units: Any) -> str:
        """The layer that writes one of the units."""
        unit = int(numbers(units)[0])
        return next(name for name, rows in self.rows.items() if unit in rows)

    def _refusal(self, mixed: Mixed, reader: str = "") -> ValueError:
        return ValueError(
            f"{REFUSED}{mixed.where} {mixed.does} those of {self._writer(mixed)}" + (reader and f", before {reader}")
        )

    # layers

    def _layer(self, name: str, layer: Any, forward: Forward, input: Tensor) -> Tensor:
        axis = input.dim() - (1 if isinstance(layer, nn.Linear) else 3)
        read = self._read(name, input, axis)
        if input.movedim(axis, 0)[read != NONE].any():
            told = f"one of {self._writer(read)} whose weights are all zero still gives something to {name}"
            raise ValueError(REFUSED + told)
        out = torch.zeros_like(forward(input))
        if name not in self.rows:
            self.rows[name] = torch.arange(self.count, self.count + out.shape[axis], device=out.device)
            self.count += out.shape[axis]
        rows = self.rows[name]
        groups = getattr(layer, "groups", 1)
        columns = read if groups == 1 else self._grouped(name, layer, read.view(groups, -1), rows.view(groups, -1))
        self._keep(self.columns, name, columns)
        attach(out, rows.view([-1 if a == axis else 1 for a in range(out.dim())]).expand_as(out))
        return out

    def _norm(self, name: str, layer: Any, forward: Forward, input: Tensor) -> Tensor:
        out = forward(input)
        if has_units(input):
            read = self._read(name, input, 1)
            self._keep(self.entries, name, read)
            of_units = (read != NONE).view(1, -1, *[1] * (input.dim() - 2))
            out = torch.where(of_units, torch.zeros_like(out) if layer.affine else input, out)
            attach(out, read.view(of_units.shape).expand_as(out))
        return out

    def _read(self, name: str, input: Tensor, axis: int) -> Tensor:
        """The number of each channel of an input; NONE for those of the images."""
        if not has_units(input):
            return torch.full((input.shape[axis],), NONE, device=input.device)
        units = units_of(input)
        if isinstance(units, Mixed):
            raise self._refusal(units, name)
        units = units.movedim(axis, 0).flatten(1)
        first = units.amax(1)
        if ((units == NONE) & (first != NONE)[:, None]).any():
            raise ValueError(f"{REFUSED}{name} reads the images and those of {self._writer(first)} by one channel")
        self._join(units, first[:, None].expand_as(units))
        return first

    def _keep(self, found: dict[str, Tensor], name: str, read: Tensor) -> None:
        """Keep the numbers that a layer reads; where it is used again they are joined with those before."""
        before = found.setdefault(name, read)
        if ((before == NONE) != (read == NONE)).any():
            raise ValueError(f"{REFUSED}{name} reads some at one of its uses and none at another")
        self._join(before, read)

    def _grouped(self, name: str, conv: nn.Conv2d, read: Tensor, rows: Tensor) -> Tensor:
        """Join what a grouped convolution reads and writes, (groups, channels); give the numbers of its columns."""
        whole = whole_groups(conv)
        images = read == NONE
        if images.any() and (whole or not images.all()):
            raise ValueError(f"{REFUSED}{name} has filters of its own for channels of the images")
        for units in [torch.cat([read, rows], 1).mT] if whole else [read, rows]:
            self._join(units, units[:1].expand_as(units))
        return torch.full_like(read[0], NONE) if whole else read[0]
