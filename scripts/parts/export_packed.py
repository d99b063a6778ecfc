"""The packed tensors of `export.py shift`: codes of a few bits each. The docstring of export.py defines the layout."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UsageError
from utils.records import checkpoints

FORMAT = "featherweight shift 1"


def pack(codes: Tensor, bits: int) -> Tensor:
    """Concatenate integers below 2^bits (int64) into a uint8 tensor, `bits` bits each."""
    wide = np.unpackbits(codes.numpy().astype(np.uint8)[:, None], axis=1)
    return torch.from_numpy(np.packbits(wide[:, 8 - bits :]))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` integers (int64) that `pack` concatenated. Raises ValueError if `packed` has another size."""
    if packed.shape != (-(-bits * count // 8),) or packed.dtype != torch.uint8:
        raise ValueError(
            f"codes are {packed.dtype} {list(packed.shape)}, uint8 of {bits} bits for {count} weights expected"
        )
    flat = np.unpackbits(packed.numpy(), count=bits * count).reshape(count, bits)
    return torch.from_numpy(np.packbits(flat, axis=1)[:, 0].astype(np.int64) >> (8 - bits))


def pack_powers(values: Tensor, bits: int, *, zero_code: bool, largest: int = 0) -> dict[str, Any]:
    """Pack a tensor of zeros and signed powers of two up to 2^largest into codes of `bits` bits.

    zero_code: Encode a zero as the largest shift, instead of a list of indices.
    """
    flat = values.reshape(-1)
    shift = largest + 1 - torch.frexp(flat).exponent
    last = 2 ** (bits - 1) - 1
    zero = flat == 0
    assert torch.equal(torch.ldexp(torch.sign(flat), largest - shift), flat) and shift[~zero].le(last - zero_code).all()
    codes = torch.where(zero, last if zero_code else 0, shift.clamp(0)) + (flat < 0) * 2 ** (bits - 1)
    zeros = torch.tensor([], dtype=torch.int64) if zero_code else torch.nonzero(zero)[:, 0]
    return {"shape": list(values.shape), "codes": pack(codes, bits), "zeros": zeros, "zero_code": zero_code}


def pack_any_powers(values: Tensor) -> dict[str, Any]:
    """Pack a tensor of zeros and signed powers of two of any size.

    The packed tensor also stores the `bits` per code and the `largest` exponent.

    Raises UsageError if the powers need more than 8 bits.
    """
    exponents = torch.frexp(values[values != 0]).exponent.sub(1).tolist() or [0]
    largest, bits = max(exponents), max(2, 1 + (max(exponents) - min(exponents)).bit_length())
    if bits > 8:
        raise UsageError(
            f"powers from 2^{min(exponents)} to 2^{largest} need {bits} bits each; the file format has at most 8"
        )
    return pack_powers(values, bits, zero_code=False, largest=largest) | {"bits": bits, "largest": largest}


def signs_and_shifts(packed: dict[str, Any], bits: int) -> tuple[Tensor, Tensor]:
    """Unpack a tensor of values s · 2^-n into s in {-1, 0, 1} and n, both int64 in its shape.

    Raises ValueError if the packed tensor is damaged.
    """
    shape, bits = torch.Size(packed["shape"]), packed.get("bits", bits)
    if len(packed["codes"]) != -(-bits * shape.numel() // 8):
        raise ValueError(f"{shape.numel():,} weights of {bits} bits have {len(packed['codes']):,} bytes of codes")
    codes = unpack(packed["codes"], bits, shape.numel())
    shift = codes % 2 ** (bits - 1)
    sign = 1 - 2 * (codes >> (bits - 1))
    if packed["zeros"].dtype != torch.int64 or packed["zeros"].dim() != 1 or type(packed["zero_code"]) is not bool:
        raise ValueError("its entry zeros is no 1-D tensor of int64, or zero_code is no bool")
    sign[packed["zeros"]] = 0
    if packed["zero_code"]:
        sign[shift == 2 ** (bits - 1) - 1] = 0
    return sign.view(shape), shift.view(shape) - packed.get("largest", 0)


def values(packed: dict[str, Any], bits: int) -> Tensor:
    """Unpack a tensor to its float64 values."""
    sign, shift = signs_and_shifts(packed, bits)
    return torch.ldexp(sign.double(), -shift)


def read(path: Path) -> dict[str, Any]:
    """Read a file that `export.py shift` wrote. Raises UsageError for any other file."""
    content = checkpoints.read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path} was not written by `export.py shift`")
    return content
