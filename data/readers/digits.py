"""The bundled digits. See data/DIGITS.md."""

from pathlib import Path

import numpy as np

from data.readers.files import reading
from data.types import Split

DIGITS_FILE = Path(__file__).parents[1].joinpath("digits.npz")


def read_digits(_root: Path, _download: bool) -> tuple[Split, Split]:
    """(train, test) of the 1,797 digits beside this file, 8x8x1, values 0..16 spread over 0..255. See DIGITS.md."""
    with reading(DIGITS_FILE), np.load(DIGITS_FILE, allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"].astype(np.int64), file["test"]
    images = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]
    train = np.setdiff1d(np.arange(len(images)), test)
    return Split(images[train], labels[train]), Split(images[test], labels[test])
