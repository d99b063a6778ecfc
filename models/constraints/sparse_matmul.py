"""A matrix of zeros and few ones, kept as the places of its ones: products with it skip the zeros."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Share of ones above which a dense product is taken. On one core (AVX2, float32), 200 × 4000 by 4000 × 4000, forward
# and back with the look for the ones, it takes so many times as long: 11 at 0.1 %, 7.5 at 1 %, 2.6 at 5 %, 1.8 at 10 %.
SPARSE = 0.1
MANY = 0.75  # share of rows with a number in them above which the whole product is taken
CHUNK = 1 << 18  # numbers looked at in one go: they stay in the cache between one operation and the next
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}  # what θ may be for this


class Ones:
    """A (rows, columns) matrix B of zeros and ones on the CPU: the columns of the ones, row by row."""

    def __init__(self, places: np.ndarray, rows: int, columns: int) -> None:
        """`places`: the ones' row-major indices, ascending."""
        self._places, self._shape = places, (rows, columns)
        of_row, of_column = np.divmod(places, columns)
        starts = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(of_row, minlength=rows), out=starts[1:])
        self._columns, self._starts = torch.from_numpy(of_column), torch.from_numpy(starts)
        self._transposed: Ones | None = None

    def __len__(self) -> int:
        """How many ones."""
        return len(self._places)

    def times(self, x: Tensor) -> Tensor:
        """x · Bᵀ, a new contiguous (N, rows) tensor for a (N, columns) one: each output is a sum over a row's ones."""
        return self.times_columns(x.t().contiguous()).t().contiguous()

    def times_columns(self, x: Tensor) -> Tensor:
        """B · x, a new contiguous (rows, N) tensor for a contiguous (columns, N) one."""
        return F.embedding_bag(self._columns, x, self._starts, mode="sum", include_last_offset=True)

    def transposed(self) -> "Ones":
        """Bᵀ, made once."""
        if self._transposed is None:
            rows, columns = self._shape
            of_row, of_column = np.divmod(self._places, columns)
            places = of_column * rows + of_row
            if rows * columns < 2**31:
                places = places.astype(np.int32)  # numpy sorts these four times as fast
            places.sort()
            self._transposed = Ones(places.astype(np.int64), columns, rows)
        return self._transposed


def ones_of(real: Tensor, most: float = SPARSE, *, clamp: bool = False) -> Ones | None:
    """Where |real| ≥ ½ in a contiguous float32 or float64 matrix on the CPU; None where that is a larger share than
    `most`. `clamp`: `real` is brought into [0, 1] on the way, in place, all of it in either case."""
    flat = real.detach().view(-1)
    values = flat.numpy()
    magnitude, large = np.empty(CHUNK, values.dtype), np.empty(CHUNK, bool)
    found, count = [np.empty(0, np.int64)], 0
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        if clamp:
            flat[start : start + CHUNK].clamp_(0, 1)
        else:
            chunk = np.abs(chunk, out=magnitude[: len(chunk)])
        np.greater_equal(chunk, 0.5, out=large[: len(chunk)])
        found.append(np.flatnonzero(large[: len(chunk)]) + start)
        count += len(found[-1])
        if count > most * len(values):
            if clamp:
                flat[start + CHUNK :].clamp_(0, 1)
            return None
    return Ones(np.concatenate(found), *real.shape)


def product_of_rows(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a · b as `dtype`, one of `NUMPY`, for contiguous (rows, N) and (N, columns) on the CPU: rows of `a` that are all
    0 give rows of 0 without a product.

    Where few ones lead on from a layer, most of its outputs have no gradient: 9 of 10 before an output layer with 1 %.
    """
    rows = a.abs().sum(1).nonzero().squeeze(1)  # not amax, which refuses an empty batch
    if len(rows) > MANY * len(a):
        return a.mm(b).to(dtype)
    out = np.zeros((len(a), b.shape[1]), NUMPY[dtype])  # calloc clears large blocks in half the time of torch.zeros
    return torch.from_numpy(out).index_copy_(0, rows, a[rows].mm(b).to(dtype))
