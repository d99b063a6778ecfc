"""Reader of the bundled digits. data/DIGITS.md states their source and licence."""

from pathlib import Path

import numpy as np

from data.readers.set_files import report_read_errors
from data.types import Split

DIGITS_FILE = Path(__file__).parents[1].joinpath("digits.npz")


def read_digits(_root: Path, _download: bool) -> tuple[Split, Split]:
    """Read the 1,797 bundled digits, and return the splits (train, test) with images of 8x8x1.

    The file has pixel values 0..16, which are scaled to 0..255.
    """
    with report_read_errors(DIGITS_FILE), np.load(DIGITS_FILE, allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"].astype(np.int64), file["test"]
    images = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]
    train = np.setdiff1d(np.arange(len(images)), test)
    return Split(images[train], labels[train]), Split(images[test], labels[test])
