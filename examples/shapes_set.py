"""A data set of one's own: discs, squares and crosses in noise.

python main.py --config configs/quickstart.yml --plugin examples/shapes_set.py --set shapes
"""

import numpy as np
from numpy.typing import NDArray

import featherweight as fw

SIDE = 16
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
SHAPES = {
    "disc": ROWS**2 + COLUMNS**2 < 25,
    "square": np.maximum(abs(ROWS), abs(COLUMNS)) < 4.5,
    "cross": np.minimum(abs(ROWS), abs(COLUMNS)) < 1.5,
}


@fw.register_set("shapes", in_shape=(1, SIDE, SIDE), classes=[*SHAPES])
def read_shapes() -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], ...]:
    """Return the training and the test part, each as images (n, height, width, channels) and labels (n,)."""
    return draw(1500, seed=0), draw(300, seed=1)


def draw(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw noisy images of random shapes, moved by up to three pixels."""
    random = np.random.default_rng(seed)
    labels = random.integers(len(SHAPES), size=count)
    masks = np.stack([*SHAPES.values()])[labels]
    moved = [np.roll(mask, random.integers(-3, 4, size=2), axis=(0, 1)) for mask in masks]
    images = 128 * np.stack(moved) + random.integers(128, size=(count, SIDE, SIDE))
    return images[..., None].astype(np.uint8), labels
