"""Trace of the units of a network: the units that each layer writes and reads.

The trace runs one forward pass of a copy of the network. Hooks replace the output of each Conv2d and Linear layer by
zeros, as if the weights of all units were zero, and attach unit ids to them. A dispatch mode carries the ids through
the operators (`channel_rules`) to the layers that read them. If the image x has one channel, layer `a` two units and
layer `b` three, the trace of `b(a(x).relu())` gives the ids

    writers     a: 0 1      b: 2 3 4
    readers     a: -1       b: 0 1
    output      2 3 4

A layer must read zeros from all units, or the trace raises ValueError. Each value belongs to one unit, so the value is
zero whenever the weights of that unit are zero, for all images and all values of other units. Removing the unit then
changes nothing that setting its weights to zero does not change.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.pruning.channel_rules import (
    NO_UNIT,
    MixesUnits,
    changes_only_strides,
    has_unit_ids,
    is_from_images_alone,
    is_pointwise,
    mark_from_images,
    output_ids,
    set_unit_ids,
    unit_ids,
)
from utils.torch_compat import AnyBatchNorm, TorchDispatchMode, is_in_place, tree_leaves

SUPPORTED_LAYERS = (nn.Conv2d, nn.Linear, AnyBatchNorm)
REFUSAL = "units cannot be pruned: "


@dataclass
class MixedUnits:
    """Units (output channels) that are mixed in the values of a tensor.

    A MixedUnits replaces the unit ids of a tensor whose values each depend on several units. `operator` names the
    operator that mixes the units and its module, `verb` is the message of MixesUnits, and `ids` has the ids of the
    mixed units.
    """

    operator: str
    verb: str
    ids: Tensor


def has_unit_per_group(conv: nn.Conv2d) -> bool:
    """Return True if each group of a grouped convolution is pruned as one unit.

    A depthwise convolution is an example. Otherwise the channels at the same place of all groups are one unit. Both
    ways leave groups of equal widths.
    """
    return conv.groups > 1 and 1 in (conv.in_channels // conv.groups, conv.out_channels // conv.groups)


def distinct_ids(ids: Any) -> Tensor:
    """Return the distinct ids of the units (output channels) in `ids`, in ascending order.

    `ids` is a tensor of unit ids or a MixedUnits. NO_UNIT, the id of values that belong to no unit, is left out. The
    result is on the CPU.
    """
    distinct: Tensor = torch.unique(ids.ids if isinstance(ids, MixedUnits) else ids).cpu()
    return distinct[distinct != NO_UNIT]


class UnitTrace(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Trace of the units (output channels) that each layer writes and reads in a forward pass.

    The forward pass of `model` is over `images` (B, C, H, W). A unit is an output channel of a Conv2d or Linear layer.

    `writers` has, per Conv2d and Linear, the unit id of each output channel. `readers` has the id of each input channel
    (axis 1 of the weight), `norms` the id of each batch-norm channel. Layers are in the order of the forward pass. A
    layer has to be called as a module: hooks do not run for `layer.forward(x)`.

    `count` is the number of ids, `coupled` (n, 2) has the pairs of units that can be removed only together, and
    `output` has the ids of the units that reach the output of the network.

    Raises ValueError if a layer reads values that are not zero when the weights of their unit are zero.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.writers: dict[str, Tensor] = {}
        self.readers: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.count = 0
        self._pairs = [torch.empty(0, 2, dtype=torch.long)]
        self._mixed: list[MixedUnits] = []
        self._active: list[tuple[str, nn.Module]] = []  # modules whose forward runs, the innermost last
        traced = copy.deepcopy(model).eval()
        for name, module in traced.named_modules():
            # These hooks run closest to `forward`, so that operators in hooks of the network itself count as outside
            # the layer.
            module.register_forward_pre_hook(partial(self._before_module, name))
            module.register_forward_hook(self._after_module, with_kwargs=True, prepend=True)
        mark_from_images(images := images.clone())
        with torch.inference_mode(), self:
            result = tree_leaves(traced(images))
        if strange := [x for x in result if not isinstance(x, Tensor | int | float | None)]:
            raise ValueError(f"{REFUSAL}the network returns a {type(strange[0]).__name__}, not tensors")
        self.output = torch.cat([self._pairs[0][:, 0], *(distinct_ids(unit_ids(x)) for x in result if has_unit_ids(x))])
        self.coupled = torch.cat(self._pairs)
        for mixed in self._mixed:  # without some units such an operator may fail, even if no layer reads its output
            if not torch.isin(mixed.ids, self.output).all():
                raise self._refusal(mixed)

    def _couple(self, one: Tensor, other: Tensor) -> None:
        """Record that units (output channels) can be pruned only together.

        The ids of these units are at the same position of `one` and `other`, two tensors of the same shape.
        """
        differ = one != other
        if ((one == NO_UNIT) & differ).any() or ((other == NO_UNIT) & differ).any():
            raise MixesUnits("combines the images with")
        if differ.any():
            pairs = torch.unique(one[differ] * self.count + other[differ]).cpu()  # far quicker than unique(dim=0)
            self._pairs.append(torch.stack([pairs // self.count, pairs % self.count], 1))

    # operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and attach the ids of units (output channels) to its output.

        Each value gets the id of the unit that it belongs to. No ids are attached within Conv2d, Linear and batch-norm
        layers, whose outputs the hooks handle.
        """
        kwargs = kwargs or {}
        inputs = [unit_ids(x) for x in tree_leaves((args, kwargs)) if has_unit_ids(x)]
        in_layer = any(isinstance(module, SUPPORTED_LAYERS) for _, module in self._active)
        if changes_only_strides(func, args):
            return func(*args, **kwargs)  # the tensor keeps its ids
        if not inputs or in_layer:
            out = func(*args, **kwargs)
            if any(map(is_from_images_alone, tree_leaves((args, kwargs)))):
                if not in_layer and not any(isinstance(x, Tensor) for x in tree_leaves(out)):
                    raise ValueError(f"{REFUSAL}{self._location(func)} makes a Python value of the images")
                mark_from_images(out)
            return out
        with self:
            decomposed = func.decompose(*args, **kwargs)
        if decomposed is not NotImplemented:
            return decomposed
        out = func(*args, **kwargs)
        ids = self._output_ids(func, args, kwargs, out, inputs)
        if not any(isinstance(x, Tensor) for x in tree_leaves(out)):
            raise self._refusal(MixedUnits(self._location(func), "makes a Python value of", distinct_ids(ids)))
        if is_in_place(func) and (not is_pointwise(func) or isinstance(ids, MixedUnits) or not has_unit_ids(args[0])):
            raise self._refusal(MixedUnits(self._location(func), "overwrites another tensor with", distinct_ids(ids)))
        set_unit_ids(out, ids)
        return out

    def _output_ids(self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Any]) -> Any:
        """Return the ids of the units (output channels) that an operator's output values belong to.

        The result is a MixedUnits if values depend on several units. `out` is the output of operator `func`, and
        `inputs` has the unit ids of the arguments.
        """
        mixed = next((ids for ids in inputs if isinstance(ids, MixedUnits)), None)
        try:
            if mixed is None:
                return output_ids(func, args, kwargs, out, self._couple)
        except MixesUnits as error:
            mixed = MixedUnits(self._location(func), str(error), inputs[0])
        self._mixed.append(replace(mixed, ids=torch.cat([distinct_ids(ids) for ids in inputs])))
        return self._mixed[-1]

    def _location(self, func: Any) -> str:
        name, module = self._active[-1]
        place = f"{name}, a {type(module).__name__}," if name else "the network"
        return f"{func.overloadpacket.__name__} in {place}"

    def _writer_of(self, ids: Any) -> str:
        """Return the name of the layer that writes a unit (output channel), for error messages.

        The unit has the smallest id in `ids`.
        """
        first = int(distinct_ids(ids)[0])
        return next(name for name, written in self.writers.items() if first in written)

    def _refusal(self, mixed: MixedUnits, reader: str = "") -> ValueError:
        place = f", before {reader}" if reader else ""
        return ValueError(f"{REFUSAL}{mixed.operator} {mixed.verb} units of {self._writer_of(mixed)}{place}")

    # layers

    def _before_module(self, name: str, module: nn.Module, _args: Any) -> None:
        self._active.append((name, module))

    def _after_module(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        """Forward hook that attaches the ids of units (output channels) to the output of a layer.

        The hook runs after every module. It returns zeros with ids for a Conv2d or Linear layer and for the traced
        channels of a batch norm. The output of any other module is returned unchanged.
        """
        name, _ = self._active[-1]
        if isinstance(module, AnyBatchNorm):
            out = self._after_norm(name, module, out, *args, **kwargs)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            out = self._after_layer(name, module, out, *args, **kwargs)
        self._active.pop()
        return out

    def _after_layer(self, name: str, layer: nn.Conv2d | nn.Linear, out: Tensor, input: Tensor) -> Tensor:
        """Record which units (output channels) a Conv2d or Linear layer reads and which it writes.

        Return zeros of the shape of its output `out`, with the ids of the written units attached.
        """
        axis = input.dim() - (1 if isinstance(layer, nn.Linear) else 3)
        read = self._channel_ids(name, input, axis)
        if input.movedim(axis, 0)[read != NO_UNIT].any():
            writer = self._writer_of(read)
            raise ValueError(f"{REFUSAL}{name} reads nonzero values of units of {writer} whose weights are all zero")
        out = torch.zeros_like(out)
        if name not in self.writers:
            self.writers[name] = torch.arange(self.count, self.count + out.shape[axis], device=out.device)
            self.count += out.shape[axis]
        written = self.writers[name]
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            read = self._couple_groups(name, layer, read.view(layer.groups, -1), written.view(layer.groups, -1))
        self._store_ids(self.readers, name, read)
        set_unit_ids(out, written.view([-1 if a == axis else 1 for a in range(out.dim())]).expand_as(out))
        return out

    def _after_norm(self, name: str, norm: AnyBatchNorm, out: Tensor, input: Tensor) -> Tensor:
        """Record which units (output channels of layers) a batch norm reads.

        Return its output `out` with the ids of these units attached, and with zeros in their channels. Without affine
        parameters these channels pass on the values of `input`.
        """
        if has_unit_ids(input):
            read = self._channel_ids(name, input, 1)
            self._store_ids(self.norms, name, read)
            of_units = (read != NO_UNIT).view(1, -1, *[1] * (input.dim() - 2))
            out = torch.where(of_units, torch.zeros_like(out) if norm.affine else input, out)
            set_unit_ids(out, read.view(of_units.shape).expand_as(out))
        return out

    def _channel_ids(self, name: str, input: Tensor, axis: int) -> Tensor:
        """Return, for each input channel of a layer, the id of the unit (output channel) it reads.

        `input` is the input of layer `name`, with channels on `axis`. If values of one channel belong to several units,
        these units are recorded as units that can be pruned only together.
        """
        if not has_unit_ids(input):
            return torch.full((input.shape[axis],), NO_UNIT, device=input.device)
        ids = unit_ids(input)
        if isinstance(ids, MixedUnits):
            raise self._refusal(ids, name)
        ids = ids.movedim(axis, 0).flatten(1)
        first: Tensor = ids.amax(1)
        if ((ids == NO_UNIT) & (first != NO_UNIT)[:, None]).any():
            writer = self._writer_of(first)
            raise ValueError(f"{REFUSAL}{name} reads the images and units of {writer} through the same channel")
        self._couple(ids, first[:, None].expand_as(ids))
        return first

    def _store_ids(self, ids_by_layer: dict[str, Tensor], name: str, read: Tensor) -> None:
        """Record which units (output channels) a layer reads.

        Their ids `read` are stored in `ids_by_layer` under the `name` of the layer. If an earlier call of the layer
        read other units, units at the same position are recorded as units that can be pruned only together.
        """
        before = ids_by_layer.setdefault(name, read)
        if ((before == NO_UNIT) != (read == NO_UNIT)).any():
            raise ValueError(f"{REFUSAL}{name} reads units in one of its calls and no units in another")
        self._couple(before, read)

    def _couple_groups(self, name: str, conv: nn.Conv2d, read: Tensor, written: Tensor) -> Tensor:
        """Couple units (output channels), so that the groups of a grouped convolution stay equally wide.

        `read` and `written` have the unit ids of the input and output channels, shape (groups, channels per group).
        Return the unit id of each position on axis 1 of the weight.
        """
        per_group = has_unit_per_group(conv)
        images = read == NO_UNIT
        if images.any() and (per_group or not images.all()):
            raise ValueError(f"{REFUSAL}{name}, a grouped convolution, has separate filters for channels of the images")
        for ids in [torch.cat([read, written], 1).mT] if per_group else [read, written]:
            self._couple(ids, ids[:1].expand_as(ids))
        return torch.full_like(read[0], NO_UNIT) if per_group else read[0]
