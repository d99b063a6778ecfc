"""The packed tensors of `export.py shift`: codes of a few bits each, one after the other; the layout stands there."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UsageError
from utils.records import checkpoints

FORMAT = "featherweight shift 1"


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers below 2^bits, each in `bits` bits one after the other: uint8."""
    wide = np.unpackbits(codes.numpy().astype(np.uint8)[:, None], axis=1)
    return torch.from_numpy(np.packbits(wide[:, 8 - bits :]))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` integers that `pack` was given: int64. Raises ValueError where `packed` does not hold as many."""
    if packed.shape != (-(-bits * count // 8),) or packed.dtype != torch.uint8:
        raise ValueError(f"codes of {bits} bits for {count} weights are not {list(packed.shape)} of {packed.dtype}")
    flat = np.unpackbits(packed.numpy(), count=bits * count).reshape(count, bits)
    return torch.from_numpy(np.packbits(flat, axis=1)[:, 0].astype(np.int64) >> (8 - bits))


def packed_powers(values: Tensor, bits: int, *, zero_code: bool, largest: int = 0) -> dict[str, Any]:
    """A packed tensor (see above) of zeros and signed powers of two of at most 2^largest, in `bits` bits each."""
    flat = values.reshape(-1)
    shift = largest + 1 - torch.frexp(flat).exponent
    last = 2 ** (bits - 1) - 1
    zero = flat == 0
    assert torch.equal(torch.ldexp(torch.sign(flat), largest - shift), flat) and shift[~zero].le(last - zero_code).all()
    codes = torch.where(zero, last if zero_code else 0, shift.clamp(0)) + (flat < 0) * 2 ** (bits - 1)
    zeros = torch.tensor([], dtype=torch.int64) if zero_code else torch.nonzero(zero)[:, 0]
    return {"shape": list(values.shape), "codes": pack(codes, bits), "zeros": zeros, "zero_code": zero_code}


def packed_freely(values: Tensor) -> dict[str, Any]:
    """A packed tensor of zeros and any signed powers of two, which stores its own `bits` and `largest` exponent.

    Raises UsageError where the powers take more than 8 bits.
    """
    exponents = torch.frexp(values[values != 0]).exponent.sub(1).tolist() or [0]
    largest, bits = max(exponents), max(2, 1 + (max(exponents) - min(exponents)).bit_length())
    if bits > 8:
        raise UsageError(
            f"powers from 2^{min(exponents)} to 2^{largest} take {bits} bits each, and at most 8 are written"
        )
    return packed_powers(values, bits, zero_code=False, largest=largest) | {"bits": bits, "largest": largest}


def signs_and_shifts(packed: dict[str, Any], bits: int) -> tuple[Tensor, Tensor]:
    """(s, n) of a packed tensor, int64 in its shape: the value is s · 2^-n with s in {-1, 0, 1}."""
    shape, bits = torch.Size(packed["shape"]), packed.get("bits", bits)
    if len(packed["codes"]) != -(-bits * shape.numel() // 8):
        raise ValueError(f"a tensor of {shape.numel():,} weights has {len(packed['codes']):,} bytes")
    codes = unpack(packed["codes"], bits, shape.numel())
    shift = codes % 2 ** (bits - 1)
    sign = 1 - 2 * (codes >> (bits - 1))
    if packed["zeros"].dtype != torch.int64 or packed["zeros"].dim() != 1 or type(packed["zero_code"]) is not bool:
        raise ValueError("zeros are no list of places, or zero_code is neither true nor false")
    sign[packed["zeros"]] = 0
    if packed["zero_code"]:
        sign[shift == 2 ** (bits - 1) - 1] = 0
    return sign.view(shape), shift.view(shape) - packed.get("largest", 0)


def values(packed: dict[str, Any], bits: int) -> Tensor:
    """A packed tensor as float64."""
    sign, shift = signs_and_shifts(packed, bits)
    return torch.ldexp(sign.double(), -shift)


def opened(path: Path) -> dict[str, Any]:
    """The content of a file that `shift` wrote. Raises UsageError for any other."""
    content = checkpoints.read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is no file of `export.py shift`")
    return content
