"""`export.py check`: run the network of a packed file on int64 additions and shifts alone, and compare with float64."""

import copy
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from args import Options, from_flat
from models.constraints.attachment import bake, weight_shape
from models.constraints.shift import FixedPoint
from scripts.parts.export_packed import signs_and_shifts, values
from trainers.build import batches, build, load_set
from trainers.methods.shift import shift_layers
from utils.distributed.runtime import Runtime
from utils.errors import UsageError

Ints = NDArray[np.int64]
ON_INTEGERS = (nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Sequential)
TILE = 8192  # columns to sum at a time, so that a group of rows stays in the cache
IMAGES = 20  # images to convolve at a time, since their windows need kernel² times their memory


class IntegerLayer(nn.Module):
    """Linear layer or convolution that uses only int64 additions and shifts.

    The inputs (B, ...) are in units of 2^-`before`, the `fraction` of the previous layer. They are first shifted down
    to units of 2^-f and clamped, which is the fixed-point rounding. ReLU and max-pool in between commute with it. The
    outputs are in units of 2^-`fraction`. `forward` raises UsageError if a sum could exceed int64.
    """

    def __init__(self, name: str, layer: Any, content: dict[str, Any], before: int) -> None:
        super().__init__()
        stored, bits, (integer, f) = content["layers"][name], content["weight_bits"], content["activation_bits"]
        self.name, self.drop = name, before - f
        if isinstance(layer, nn.Conv2d):
            self.padding: Any = layer.padding  # (height, width); torch's type admits strings too
            self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.low, self.high = -(2 ** (integer - 1)) << f, (2 ** (integer - 1) - 1) << f
        sign, shift = (t.flatten(1).numpy() for t in signs_and_shifts(stored, bits))
        deepest = max([0, *shift[sign != 0].tolist()])
        bias, up = np.zeros(len(sign), np.int64), np.zeros(len(sign), np.int64)
        if isinstance(stored["bias"], dict):
            bias_sign, bias_shift = (t.numpy() for t in signs_and_shifts(stored["bias"], bits))
            deepest = max([deepest, *(bias_shift[bias_sign != 0] - f).tolist()])
            bias, up = bias_sign, np.where(bias_sign == 0, 0, f + deepest - bias_shift)
        elif stored["bias"] is not None:
            bias, up = stored["bias"].numpy(), up + deepest
        self.fraction, self.bias = f + deepest, bias << up
        self.largest_bias = max(abs(b) << n for b, n in zip(bias.tolist(), up.tolist(), strict=True))
        self.groups = [_groups(s, deepest - n) for s, n in zip(sign, shift, strict=True)]
        self.gain = max(sum(len(rows) << up for rows, _, up in groups) for groups in self.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = (x >> self.drop).clamp(self.low, self.high)
        largest = int(x.abs().max()) * self.gain + self.largest_bias
        if largest >= 2**63:
            raise UsageError(f"layer {self.name} needs sums of {largest.bit_length() + 1} bits, and integers have 64")
        if x.dim() == 2:
            return torch.from_numpy(self.sums(np.ascontiguousarray(x.numpy().T)).T)
        return torch.cat([self.convolve(part) for part in x.split(IMAGES)])

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution (B, channels, H, W) of x, computed by `sums` over its windows."""
        (top, left), (height, width) = self.padding, self.kernel_size
        x = nn.functional.pad(x, (left, left, top, top))
        windows = x.unfold(2, height, self.stride[0]).unfold(3, width, self.stride[1])
        count, rows, columns = len(x), windows.shape[2], windows.shape[3]
        inputs = windows.permute(1, 4, 5, 0, 2, 3).reshape(-1, count * rows * columns)
        outputs = torch.from_numpy(self.sums(inputs.numpy()))
        return outputs.view(-1, count, rows, columns).transpose(0, 1)

    def sums(self, x: Ints) -> Ints:
        """Return the outputs (outputs, n) of the layer for n columns of inputs x (inputs, n).

        Inputs with equal weights are added, shifted once, and added to or subtracted from the output.
        """
        out = np.repeat(self.bias[:, None], x.shape[1], axis=1)
        for start in range(0, x.shape[1], TILE):
            tile, result = x[:, start : start + TILE], out[:, start : start + TILE]
            for total, groups in zip(result, self.groups, strict=True):
                for rows, negative, up in groups:
                    add = np.subtract if negative else np.add
                    add(total, tile[rows].sum(axis=0) << up, out=total)
        return out


def _groups(sign: Ints, up: Ints) -> list[tuple[Ints, bool, int]]:
    """Group the inputs of one output by weight. Return (input indices, is negative, shift) per distinct weight."""
    kinds = [(s, int(n)) for s in (1, -1) for n in np.unique(up[sign == s])]
    return [(np.flatnonzero((sign == s) & (up == n)), s < 0, n) for s, n in kinds]


def float_network(content: dict[str, Any], options: Options) -> nn.Module:
    """Rebuild the float64 network of an exported file. It rounds layer inputs where the run rounds them.

    Raises UsageError if the file does not fit the network of its options.
    """
    model, _ = build(options.replace(seed=0))
    layers = shift_layers(model)
    if list(layers) != list(content["layers"]):
        raise UsageError("its layers are not those of the network that its options describe")
    constraint = next(iter(layers.values())).constraint
    fixed = [constraint.fixed_point.integer, constraint.fixed_point.fraction]
    if (content["weight_bits"], list(content["activation_bits"])) != (constraint.weight_bits, fixed):
        raise UsageError("its weight_bits or activation_bits are not those of its options")
    if any(list(content["layers"][name]["shape"]) != list(weight_shape(layer)) for name, layer in layers.items()):
        raise UsageError("its weights do not have the shapes of the network that its options describe")
    plain: nn.Module = bake(model.eval()).double()
    state = dict(content["rest"])
    bits, (_, fraction) = content["weight_bits"], content["activation_bits"]
    for name, stored in content["layers"].items():
        state[f"{name}.weight"] = values(stored, bits)
        if stored["bias"] is not None:
            packed = isinstance(stored["bias"], dict)
            state[f"{name}.bias"] = values(stored["bias"], bits) if packed else stored["bias"].double() / 2.0**fraction
    plain.load_state_dict(state)
    return plain


def in_fixed_point(plain: nn.Module, names: Iterable[str], fixed: FixedPoint) -> nn.Module:
    """Return a copy of `plain` that rounds the inputs of all layers in `names` to fixed point.

    A layer that rounds its inputs already does it twice, to the same values.
    """
    network = copy.deepcopy(plain)
    for name in names:
        network.get_submodule(name).register_forward_pre_hook(fixed)
    return network


def integer_network(plain: nn.Module, content: dict[str, Any]) -> tuple[nn.Module, IntegerLayer]:
    """Return a copy of `plain` that computes on int64 numbers, and its last layer with weights.

    Raises UsageError if a layer has no integer form.
    """
    network, last = copy.deepcopy(plain), None
    for name, module in plain.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name not in content["layers"]:
                raise UsageError(f"layer {name} has no shift weights; the check needs them in every layer")
            if isinstance(module, nn.Conv2d) and (module.groups, module.dilation) != (1, (1, 1)):
                raise UsageError(f"layer {name} has groups or dilation, which the check does not support")
            before = content["activation_bits"][1] if last is None else last.fraction
            last = IntegerLayer(name, module, content, before)
            network.set_submodule(name, last)
        elif not isinstance(module, ON_INTEGERS) and not any(module.children()):
            raise UsageError(f"layer {name} is a {type(module).__name__}, which cannot run on integers alone")
    assert last is not None
    return network, last


def check(content: dict[str, Any], path: Path, data: str, images: int) -> tuple[bool, str]:
    """Compare the predictions of an exported network on integers and in float64, on the first `images` test images.

    Return True if all predictions agree, and the report to print. Raises UsageError if the file is damaged.
    """
    try:
        options = from_flat(content["options"])
        plain, fixed = float_network(content, options), FixedPoint(*content["activation_bits"])
        biases = {name: stored["bias"] for name, stored in content["layers"].items()}
        if faulty := [name for name, bias in biases.items() if isinstance(bias, Tensor) and bias.dtype != torch.int64]:
            raise UsageError(f"the bias of {faulty[0]} does not consist of integers")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        fault = "" if isinstance(error, ValueError | RuntimeError) else "an entry is missing or wrong: "
        reason = (str(error) or repr(error)).splitlines()[-1].strip()
        raise UsageError(f"{path} is damaged: {fault}{reason}") from error
    network, last = integer_network(plain, content)
    x, labels = first_images(options.replace(data=data), images)
    with torch.no_grad():
        exact = in_fixed_point(plain, content["layers"], fixed)(x.double())
        single, float_ms = run_timed(copy.deepcopy(plain).float(), x)
        ints, int_ms = run_timed(network, fixed.quantise(x.double()).mul(2.0**fixed.fraction).to(torch.int64))
    guess = ints.argmax(1)
    same = int(guess.eq(exact.argmax(1)).sum())
    equal = int((ints.double() / 2.0**last.fraction == exact).all(1).sum())
    lines = [
        f"{len(x)} test images of {options.data.set}, accuracy {100 * guess.eq(labels).double().mean():.2f} % on int64 "
        "additions and shifts alone",
        f"predictions equal those in float64 on {same} images, all logits on {equal}; those in float32 on "
        f"{int(guess.eq(single.argmax(1)).sum())}",
        f"{int_ms:.2f} ms per image on integers (numpy, 1 thread), {float_ms:.2f} in float32 (torch, "
        f"{torch.get_num_threads()} threads): {int_ms / float_ms:.0f} times slower",
    ]
    return same == len(x), "\n".join(lines)


def first_images(options: Options, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` inputs (float32) and labels of the test set. Raises UsageError if there are fewer."""
    image_set = load_set(options)
    if count > len(image_set.test):
        raise UsageError(f"images: {count} given, but the test set of {options.data.set} has {len(image_set.test)}")
    runtime = Runtime(torch.device("cpu"), torch.float32)
    parts: Iterator[tuple[Tensor, Tensor]] = batches(options, runtime, image_set, image_set.test).epoch(0)
    read: list[tuple[Tensor, Tensor]] = []
    while sum(len(labels) for _, labels in read) < count:
        read.append(next(parts))
    x, labels = (torch.cat(column)[:count] for column in zip(*read, strict=True))
    return x, labels


def run_timed(network: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """Run the network on x (B, ...). Return the logits and the milliseconds per image."""
    started = time.perf_counter()
    logits = network(x)
    return logits, 1000 * (time.perf_counter() - started) / len(x)
