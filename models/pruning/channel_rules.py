"""Movement of units through each operation of a network: rules from the numbers of its inputs to those of its outputs.

Beside each value stands the number of the unit that it belongs to, or NONE. A rule moves the numbers as its operation
moves the values, and joins those that it combines: joined units can be cut only together. A rule raises Mixes where
outputs depend on several units, or where a network without some of them would compute something else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NONE = -1  # of the images, and of all that comes from them without a layer
Join = Callable[[Tensor, Tensor], None]

aten = torch.ops.aten
POINTWISE = {aten.hardswish, aten.hardswish_, aten._to_copy, aten.zeros_like, aten.ones_like}  # torch tags the others
MOVES = {aten.view, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze, aten.expand}
MOVES |= {aten.alias, aten.detach, aten.cat, aten.stack, aten.repeat, aten.flip}
SCALES = {aten.mul, aten.mul_, aten.div, aten.div_}  # 0 stays 0, whatever the images are
PARTS = {aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind}
INDEXED = {aten.index, aten._unsafe_index}
SPATIAL = {aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d}
SPATIAL |= {aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d}
REDUCTIONS = {aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min}


class Mixes(Exception):
    """Raised by a rule; the message is a verb that has some layer's units as its object."""


def has_units(value: Any) -> bool:
    """Return whether `value` is a tensor that belongs to units."""
    return hasattr(value, "_units")


def units_of(value: Any) -> Any:
    """Return the numbers beside a tensor's values, of its shape."""
    return value._units


def attach(out: Any, units: Any) -> None:
    """Set the numbers of a tensor or of several, one for all or one for each; one without units is of the images."""
    values = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    each = tree_leaves(units)
    for value, numbers in zip(values, each * (len(values) // len(each)), strict=True):
        if not isinstance(numbers, Tensor) or (numbers != NONE).any():
            value._units = numbers  # type: ignore[attr-defined]
        else:
            mark(value)


def of_images(value: Any) -> bool:
    """Return whether `value` is a tensor that depends on the images and on no unit."""
    return hasattr(value, "_of_images") and not has_units(value)


def mark(out: Any) -> None:
    """Set that tensors depend on the images, and on no unit unless they have numbers too."""
    for value in tree_leaves(out):
        if isinstance(value, Tensor):
            value._of_images = True  # type: ignore[attr-defined]


def is_pointwise(func: Any) -> bool:
    """Return whether an operator computes each value from those at the same place."""
    return torch.Tag.pointwise in func.tags or func.overloadpacket in POINTWISE


def outputs(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, join: Join) -> Any:
    """Return the numbers of `out`, what the operator `func` gave for `args` and `kwargs`, in the structure of `out`."""
    packet = func.overloadpacket
    if is_pointwise(func) and isinstance(out, Tensor):
        if packet not in SCALES and any(map(of_images, tree_leaves((args, kwargs)))):
            raise Mixes("combines the images with")
        return _pointwise([x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)], out, join)
    if packet in MOVES and func is not aten.view.dtype:
        return tree_map(lambda units: _along_one_axis(units, join), func(*tree_map(_moved, tuple(args)), **kwargs))
    if not has_units(args[0]):
        raise Mixes("may mix or move")
    units = units_of(args[0]).contiguous()
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    if packet in PARTS:
        axis = given.get("dim", 0) % units.dim()
        if axis in varying(units):
            along = torch.arange(units.shape[axis], device=units.device)
            places = along.view([-1 if a == axis else 1 for a in range(units.dim())]).expand_as(units).contiguous()
            for part in tree_leaves(func(places, *args[1:], **kwargs)):
                _join_parts(part.unique(), units.movedim(axis, 0), join)
        return func(units, *args[1:], **kwargs)
    if packet in INDEXED and not any(map(has_units, args[1])):
        if _indexed(args[1]) & set(varying(units)):
            raise Mixes("picks some of")
        return func(units, args[1])
    if packet in SPATIAL:
        return _spatial(units, len(given["pad"]) // 2 if "pad" in given else 2, out)
    if packet in REDUCTIONS:
        axes = given.get("dim", ())
        axes = {axis % units.dim() for axis in ([axes] if isinstance(axes, int) else axes or range(units.dim()))}
        if axes & set(varying(units)):
            raise Mixes("mixes")
        reduced = units.amax(tuple(axes), given.get("keepdim", False))
        return tree_map(lambda _: reduced, out)
    raise Mixes("may mix or move")


def varying(units: Tensor) -> list[int]:
    """Return the axes along which the numbers differ."""
    return [axis for axis in range(units.dim()) if (units != units.narrow(axis, 0, 1)).any()]


def _moved(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return units_of(value).contiguous() if has_units(value) else torch.full_like(value, NONE, dtype=torch.long)


def _indexed(indices: Sequence[Tensor | None]) -> set[int]:
    """The axes that are indexed: several by a mask of several axes."""
    found: set[int] = set()
    axis = 0
    for index in indices:
        axes = index.dim() if index is not None and index.dtype == torch.bool else 1
        found |= set(range(axis, axis + axes)) if index is not None else set()
        axis += axes
    return found


def _pointwise(operands: Sequence[Tensor], out: Tensor, join: Join) -> Tensor:
    """Join the units that meet."""
    first, *others = (units_of(x).expand(out.shape) for x in operands if has_units(x))
    for other in others:
        join(first, other)
    axes = [axis - out.dim() for axis in varying(first)]
    for x in operands:
        if not has_units(x) and any(x.dim() >= -axis and x.shape[axis] > 1 for axis in axes):
            raise Mixes("combines a tensor of fixed width with")
    return first


def _along_one_axis(units: Tensor, join: Join) -> Tensor:
    """Join units until the numbers vary along the longest axis alone: what is left of a tensor has to be a tensor."""
    axes = varying(units)
    if len(axes) < 2:
        return units
    kept, first = max(axes, key=lambda axis: (units.shape[axis], axis)), units
    for axis in axes:
        first = first if axis == kept else first.narrow(axis, 0, 1)
    join(units, first.expand_as(units))
    return first.expand_as(units)


def _join_parts(places: Tensor, units: Tensor, join: Join) -> None:
    """Join the units (n, …) at the same place of all parts of n, so that they stay equally long; one has `places`."""
    size, length = len(units), len(places)
    every = torch.arange(size, device=units.device)
    if length and size % length == 0:
        step = size // length
        if torch.equal(places, every[:length] + places[0] // length * length):  # blocks
            return join(units, units[every % length])
        if torch.equal(places, every[places[0] % step :: step]):
            return join(units, units[every // step * step])
    raise Mixes("takes a part, which is no equal share, of")


def _spatial(units: Tensor, axes: int, out: Any) -> Any:
    """The numbers behind an operation on each channel by itself, over the last `axes` axes."""
    if any(axis >= units.dim() - axes for axis in varying(units)):
        raise Mixes("pools or pads")
    one = units
    for axis in range(units.dim() - axes, units.dim()):
        one = one.narrow(axis, 0, 1)
    return tree_map(lambda value: one.expand(value.shape), out)
