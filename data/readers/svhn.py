"""Reader of SVHN's cropped digits (http://ufldl.stanford.edu/housenumbers).

A MATLAB file has images X, uint8 (32, 32, 3, n), and labels y, uint8 (n, 1), 1 to 10.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.readers.set_files import Location, check_labels, find_set_files, report_parse_errors, report_read_errors
from data.types import Split
from utils import declared_sizes
from utils.errors import UsageError


def read_svhn(root: Path, download: bool) -> tuple[Split, Split]:
    """Read SVHN, and return the splits (train, test) with images of 32x32x3.

    Raises UsageError for a missing or damaged file.
    """
    names = ("train_32x32.mat", "test_32x32.mat")
    locations = [Location(folder, names) for folder in (root, root / "svhn", root / "SVHN")]
    train, test = find_set_files("SVHN", root, locations, download)
    return read_svhn_split(train), read_svhn_split(test)


def read_svhn_split(path: Path) -> Split:
    """Read one MATLAB file of SVHN as a split. Raises UsageError if the file is damaged or scipy is missing."""
    try:
        from scipy.io import loadmat  # only here: no other set needs scipy
    except ImportError as error:
        raise UsageError("SVHN: scipy reads its MATLAB files and is not installed; pip install scipy") from error
    readable = report_parse_errors(path, "MATLAB file that can be read")
    with report_read_errors(path), path.open("rb") as file, readable:
        declared_sizes.check(path, declared_sizes.matlab_size(file))
        content = loadmat(file, variable_names=("X", "y"))
    images, labels = content.get("X"), content.get("y")
    bytewise = all(isinstance(array, np.ndarray) and array.dtype == np.uint8 for array in (images, labels))
    if not bytewise or images.shape[:3] != (32, 32, 3) or labels.shape != (images.shape[3], 1) or not labels.size:
        raise UsageError(f"{path}: bytes X of shape (32, 32, 3, n) and y of shape (n, 1) expected")
    digits = check_labels(path, labels[:, 0], 10, first=1) % 10  # label 10 is the digit 0
    return Split(images_first(images), digits)


def images_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reorder the axes of MATLAB's images in place, so that the image index comes first.

    The column-major shape (height, width, channels, n) becomes (n, height, width, channels). The training images have
    225 MB. Only 4096 images at a time are copied.
    """
    height, width, channels, count = images.shape
    stored = np.ascontiguousarray(images.T)  # (n, channels, width, height): no copy, the bytes lie in this order
    rows = stored.reshape(count, height, width, channels)
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        rows[part] = stored[part].transpose(0, 3, 2, 1).copy()
    return rows
