"""Products with a sparse matrix of zeros and ones. The products skip the zeros."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Fraction of ones above which a dense product is used. On one core (AVX2, float32, 200 × 4000 by 4000 × 4000, forward
# and backward, search for the ones included) the dense product takes 11 times as long at 0.1 % of ones, 7.5 times at
# 1 %, 2.6 times at 5 % and 1.8 times at 10 %.
MAX_DENSITY = 0.1
MAX_ROWS = 0.75  # fraction of rows with a value other than 0 above which the dense product is used
CHUNK = 1 << 18  # values processed at a time, so that they stay in the cache from one operation to the next
NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}  # the dtypes that the real weight may have


class OnesMatrix:
    """Sparse matrix of zeros and ones on the CPU.

    The matrix B has shape (rows, columns). The column index of each 1 is stored, row by row.
    """

    def __init__(self, indices: np.ndarray, rows: int, columns: int) -> None:
        """Make the matrix from the flat, ascending indices of its ones.

        The indices are row-major.
        """
        self._indices, self._shape = indices, (rows, columns)
        row, column = np.divmod(indices, columns)
        starts = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=starts[1:])
        self._columns, self._starts = torch.from_numpy(column), torch.from_numpy(starts)
        self._transposed: OnesMatrix | None = None

    def __len__(self) -> int:
        """Return the number of ones in the matrix."""
        return len(self._indices)

    def linear(self, x: Tensor) -> Tensor:
        """Multiply `x` by the transposed matrix, like F.linear.

        `x` has shape (N, columns). Returns a contiguous (N, rows) tensor.
        """
        return self.matmul(x.t().contiguous()).t().contiguous()

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply the matrix by a dense matrix `x`.

        `x` is contiguous, of shape (columns, N). Returns a new contiguous tensor (rows, N).
        """
        return F.embedding_bag(self._columns, x, self._starts, mode="sum", include_last_offset=True)

    def transposed(self) -> "OnesMatrix":
        """Return the transposed matrix, which is computed on the first call only."""
        if self._transposed is None:
            rows, columns = self._shape
            row, column = np.divmod(self._indices, columns)
            indices = column * rows + row
            if rows * columns < 2**31:
                indices = indices.astype(np.int32)  # numpy sorts int32 four times as fast
            indices.sort()
            self._transposed = OnesMatrix(indices.astype(np.int64), columns, rows)
        return self._transposed


def find_ones(real: Tensor, max_density: float = MAX_DENSITY, *, clamp: bool = False) -> OnesMatrix | None:
    """Return the sparse matrix that is 1 where |real| ≥ ½, or None.

    None means that the fraction of ones is above `max_density`, because a dense product is then faster. `real` is a
    contiguous float32 or float64 matrix on the CPU. With `clamp` the whole of `real` is also clamped to [0, 1] in
    place.
    """
    flat = real.detach().view(-1)
    values = flat.numpy()
    magnitude, large = np.empty(CHUNK, values.dtype), np.empty(CHUNK, bool)
    indices, count = [np.empty(0, np.int64)], 0
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        if clamp:
            flat[start : start + CHUNK].clamp_(0, 1)
        else:
            chunk = np.abs(chunk, out=magnitude[: len(chunk)])
        np.greater_equal(chunk, 0.5, out=large[: len(chunk)])
        indices.append(np.flatnonzero(large[: len(chunk)]) + start)
        count += len(indices[-1])
        if count > max_density * len(values):
            if clamp:
                flat[start + CHUNK :].clamp_(0, 1)
            return None
    return OnesMatrix(np.concatenate(indices), *real.shape)


def product_of_rows(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix product of `a` and `b`, skipping the zero rows of `a`.

    The product is in `dtype`. `a` (rows, N) and `b` (N, columns) are contiguous and on the CPU. `dtype` is one of
    `NUMPY_DTYPES`. `a` is the gradient of a layer's outputs. If the next layer uses few of these outputs, many rows of
    `a` are 0: 9 of 10 before an output layer with 1 % of ones.
    """
    rows = a.abs().sum(1).nonzero().squeeze(1)  # amax raises for an empty batch
    if len(rows) > MAX_ROWS * len(a):
        return a.mm(b).to(dtype)
    # calloc clears large blocks in half the time of torch.zeros.
    out = np.zeros((len(a), b.shape[1]), NUMPY_DTYPES[dtype])
    return torch.from_numpy(out).index_copy_(0, rows, a[rows].mm(b).to(dtype))
