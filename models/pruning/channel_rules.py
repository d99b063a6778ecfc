"""Rules that carry unit ids through the operators of a network.

A unit is an output channel of a Conv2d or Linear layer. During a trace, each activation carries a tensor of its own
shape with the id of the unit that each value belongs to, or NO_UNIT for the images and for values computed from them
without a layer. A rule computes the ids of an operator's output from the ids of its inputs. If layer `a` has the
units 0 and 1, and layer `b` has the units 2 and 3, the ids along the channel axis are

    a(x)                        0 1
    a(x).relu()                 0 1
    cat([a(x), x, b(x)], 1)     0 1 -1 2 3      (the image x has one channel)
    a(x) + b(x)                 0 1             and couples unit 0 with 2, unit 1 with 3
    a(x).softmax(1)             raises MixesUnits: each output depends on both units

Units are coupled where one value depends on several of them. Coupled units can be removed only together. A rule raises
MixesUnits if an output depends on units that cannot be coupled, or if the operator computes something else once units
are removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.torch_compat import argument_names, tree_leaves, tree_map

NO_UNIT = -1
Couple = Callable[[Tensor, Tensor], None]  # records units at the same position of two id tensors as coupled

# Operators by the rule that applies to them. Any other operator on units is refused.
aten = torch.ops.aten
# Pointwise operators that torch does not tag as pointwise.
POINTWISE = {aten.hardswish, aten.hardswish_, aten._to_copy, aten.zeros_like, aten.ones_like}
MOVEMENTS = {aten.view, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze}
MOVEMENTS |= {aten.expand, aten.alias, aten.detach, aten.cat, aten.stack, aten.repeat, aten.flip}
SCALINGS = {aten.mul, aten.mul_, aten.div, aten.div_}  # map the 0 of a zero unit to 0, whatever the images are
SPLITS = {aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind}
INDEXINGS = {aten.index, aten._unsafe_index}
SPATIAL = {aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d}
SPATIAL |= {aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d}
REDUCTIONS = {aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min}


def changes_only_strides(func: Any, args: Any) -> bool:
    """Return True if an operator changes nothing but the strides of dimensions of size 1.

    `nn.AdaptiveAvgPool2d(1)` of a channels_last tensor calls such an operator.
    """
    if func.overloadpacket is not aten.as_strided_ or len(args) != 3:
        return False
    tensor, size, stride = args
    same = (length == 1 or old == new for length, old, new in zip(size, tensor.stride(), stride, strict=True))
    return list(size) == list(tensor.shape) and all(same)


class MixesUnits(Exception):
    """Raised if units (output channels) cannot be pruned because an operator combines them.

    The message is a verb phrase that precedes "units of LAYER", such as "pools or pads the".
    """


def has_unit_ids(value: Any) -> bool:
    """Return True if a tensor carries the ids of the units (output channels) of its values."""
    return hasattr(value, "_unit_ids")


def unit_ids(value: Any) -> Any:
    """Return the ids of the units (output channels) that the values of a tensor belong to.

    The ids are int64 of the same shape, or a MixedUnits if values depend on several units.
    """
    return value._unit_ids


def set_unit_ids(out: Any, ids: Any) -> None:
    """Attach to each tensor in `out` the ids of the units (output channels) of its values.

    `ids` is one id tensor for all tensors, or a structure with one id tensor per tensor. A tensor whose ids are all
    NO_UNIT is instead marked as computed from the images.
    """
    values = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
    leaves = tree_leaves(ids)
    # An attribute lives as long as its tensor. A table keyed by id() would confuse a tensor with a freed one.
    for value, ids_of_value in zip(values, leaves * (len(values) // len(leaves)), strict=True):
        if not isinstance(ids_of_value, Tensor) or (ids_of_value != NO_UNIT).any():
            value._unit_ids = ids_of_value  # type: ignore[attr-defined]
        else:
            mark_from_images(value)


def is_from_images_alone(value: Any) -> bool:
    """Return True if a tensor was computed from the input images without any Conv2d or Linear layer."""
    return hasattr(value, "_from_images") and not has_unit_ids(value)


def mark_from_images(out: Any) -> None:
    """Mark the tensors in `out` as computed from the input images, for `is_from_images_alone`."""
    for value in tree_leaves(out):
        if isinstance(value, Tensor):
            value._from_images = True  # type: ignore[attr-defined]


def is_pointwise(func: Any) -> bool:
    """Return True if an operator is pointwise, such as an addition."""
    return torch.Tag.pointwise in func.tags or func.overloadpacket in POINTWISE


def output_ids(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, couple: Couple) -> Any:
    """Return the ids of the units (output channels) that the output values of an operator belong to.

    `out` is the output of the torch operator `func` for `args` and `kwargs`, which carry ids. `couple` records units
    that can be pruned only together. The ids have the structure of `out`. Raises MixesUnits as the module describes.
    """
    operator = func.overloadpacket
    if is_pointwise(func) and isinstance(out, Tensor):
        return _pointwise_ids(operator, tree_leaves((args, kwargs)), out, couple)
    if operator in MOVEMENTS and func is not aten.view.dtype:
        moved = func(*tree_map(_ids_in_place_of_values, tuple(args)), **kwargs)
        return tree_map(lambda ids: _couple_to_one_axis(ids, couple), moved)
    if not has_unit_ids(args[0]):
        raise MixesUnits("may mix or move")
    ids = unit_ids(args[0]).contiguous()
    named = dict(zip(argument_names(func), args, strict=False)) | dict(kwargs)
    if operator in SPLITS:
        _couple_parts(lambda positions: func(positions, *args[1:], **kwargs), ids, named.get("dim", 0), couple)
        return func(ids, *args[1:], **kwargs)
    if operator in INDEXINGS and not any(map(has_unit_ids, args[1])):
        if _indexed_axes(args[1]) & set(varying_axes(ids)):
            raise MixesUnits("picks some of the")
        return func(ids, args[1])
    if operator in SPATIAL:
        return _spatial_ids(ids, len(named["pad"]) // 2 if "pad" in named else 2, out)
    if operator in REDUCTIONS:
        return _reduced_ids(ids, named.get("dim", ()), named.get("keepdim", False), out)
    raise MixesUnits("may mix or move")


def varying_axes(ids: Tensor) -> list[int]:
    """Return the axes along which the values of an integer tensor are not all equal."""
    return [axis for axis in range(ids.dim()) if (ids != ids.narrow(axis, 0, 1)).any()]


def _ids_in_place_of_values(value: Any) -> Any:
    """Replace a tensor by the ids of the units (output channels) of its values.

    A tensor without ids is replaced by NO_UNIT everywhere. Any other object is returned unchanged.
    """
    if not isinstance(value, Tensor):
        return value
    return unit_ids(value).contiguous() if has_unit_ids(value) else torch.full_like(value, NO_UNIT, dtype=torch.long)


def _pointwise_ids(operator: Any, operands: Sequence[Any], out: Tensor, couple: Couple) -> Tensor:
    """Return the ids of the units (output channels) in the output of a pointwise operator.

    `out` is the output, such as that of an addition. `couple` records that units whose values the operator combines can
    be pruned only together. The ids are those of the first operand that has any.
    """
    if operator not in SCALINGS and any(map(is_from_images_alone, operands)):
        raise MixesUnits("combines the images with")
    tensors = [x for x in operands if isinstance(x, Tensor)]
    ids: list[Tensor] = [unit_ids(x).expand(out.shape) for x in tensors if has_unit_ids(x)]
    for other in ids[1:]:
        couple(ids[0], other)
    axes = [axis - out.dim() for axis in varying_axes(ids[0])]
    for x in tensors:
        if not has_unit_ids(x) and any(x.dim() >= -axis and x.shape[axis] > 1 for axis in axes):
            raise MixesUnits("combines a tensor of fixed width with")
    return ids[0]


def _couple_to_one_axis(ids: Tensor, couple: Couple) -> Tensor:
    """Couple units (output channels) so that their ids vary along one axis only.

    Return these ids. The axis is the longest along which the given `ids` vary. `couple` records that units at the same
    position of this axis can be pruned only together. With ids along two axes, the values left after pruning might form
    no rectangular tensor.
    """
    axes = varying_axes(ids)
    if len(axes) < 2:
        return ids
    longest, first = max(axes, key=lambda axis: (ids.shape[axis], axis)), ids
    for axis in axes:
        first = first if axis == longest else first.narrow(axis, 0, 1)
    couple(ids, first.expand_as(ids))
    return first.expand_as(ids)


def _couple_parts(split: Callable[[Tensor], Any], ids: Tensor, dim: int, couple: Couple) -> None:
    """Couple units (output channels), so that an axis still splits into equal parts after pruning.

    `ids` has the unit id of each value. The operator `split` cuts axis `dim`. `couple` records which units can be
    pruned only together.
    """
    axis = dim % ids.dim()
    if axis in varying_axes(ids):
        positions = torch.arange(ids.shape[axis], device=ids.device)
        positions = positions.view([-1 if a == axis else 1 for a in range(ids.dim())]).expand_as(ids).contiguous()
        for part in tree_leaves(split(positions)):
            _couple_equal_parts(torch.unique(part), ids.movedim(axis, 0), couple)


def _couple_equal_parts(positions: Tensor, ids: Tensor, couple: Couple) -> None:
    """Couple the channels at equal positions when axis 0 is split into equal parts.

    `couple` records that these units can be pruned only together. `positions` (length,) has the indices of one part.
    `ids` (n, …) has the unit id of each value. Raises MixesUnits unless the part is one of the n / length blocks, or
    every (n / length)-th position.
    """
    size, length = len(ids), len(positions)
    every = torch.arange(size, device=ids.device)
    if length and size % length == 0:
        step = size // length
        if torch.equal(positions, every[:length] + positions[0] // length * length):
            return couple(ids, ids[every % length])
        if torch.equal(positions, every[positions[0] % step :: step]):
            return couple(ids, ids[every // step * step])
    raise MixesUnits("takes an unequal part of the")


def _indexed_axes(indices: Sequence[Tensor | None]) -> set[int]:
    """Return the axes that `tensor[indices]` indexes. A bool mask of n axes indexes n axes."""
    indexed: set[int] = set()
    axis = 0
    for index in indices:
        axes = index.dim() if index is not None and index.dtype == torch.bool else 1
        indexed |= set(range(axis, axis + axes)) if index is not None else set()
        axis += axes
    return indexed


def _spatial_ids(ids: Tensor, axes: int, out: Any) -> Any:
    """Return the ids of the units (output channels) in the output of a pooling or padding.

    The operator acts on the last `axes` axes. `ids` has the unit ids of its input, and `out` is its output.
    """
    if any(axis >= ids.dim() - axes for axis in varying_axes(ids)):
        raise MixesUnits("pools or pads the")
    for axis in range(ids.dim() - axes, ids.dim()):
        ids = ids.narrow(axis, 0, 1)
    return tree_map(lambda value: ids.expand(value.shape), out)


def _reduced_ids(ids: Tensor, dim: int | Sequence[int], keepdim: bool, out: Any) -> Any:
    """Return the ids of the units (output channels) in the output of a reduction, such as a mean.

    The reduction is over the axes `dim`, or over all axes if `dim` is empty. `ids` has the unit ids of its input, and
    `out` is its output.
    """
    axes = {axis % ids.dim() for axis in ([dim] if isinstance(dim, int) else dim or range(ids.dim()))}
    if axes & set(varying_axes(ids)):
        raise MixesUnits("mixes the")
    reduced = ids.amax(tuple(axes), keepdim)
    return tree_map(lambda _: reduced, out)
