"""Convert images that a user passes (files, PIL images, arrays, tensors) into the uint8 images of a data set."""

from collections.abc import Iterator
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.image_views import Image, as_rgb, crop_transform, decode
from data.registry import SetSpec
from utils.errors import RunFailed, UsageError

Pixels = NDArray[np.uint8]
GREY_MODES = ("1", "L", "LA")  # modes of PIL images that become grey instead of RGB
ACCEPTED = (
    "pass paths, PIL images, uint8 arrays (H, W), (H, W, C) or (N, H, W, C), float tensors (C, H, W) or (N, C, H, W) "
    "in [0, 1], or a list of these"
)


def single_images(images: Any) -> Iterator[Any]:
    """Yield the single images in nested lists and batches of images.

    `images` is one image, a batch with four dimensions, or a list or tuple of them.
    """
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 4):
        for image in images:
            yield from single_images(image)
    else:
        yield images


def to_pixels(image: Any) -> Pixels:
    """Return an image as a uint8 array (height, width, channels).

    image: path of a file, PIL image, uint8 array or tensor (H, W) or (H, W, C), or float tensor (H, W) or (C, H, W)
    with values in [0, 1], which are rounded to 8 bits. Raises UsageError for anything else.
    """
    if isinstance(image, str | PathLike):
        return _from_pil(_decoded(Path(image)))
    if isinstance(image, PIL.Image.Image):
        return _from_pil(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return _from_float(image) if image.is_floating_point() else _from_array(image.numpy())
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise UsageError(f"a {type(image).__name__} is no image; {ACCEPTED}")


def _decoded(path: Path) -> Image:
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    try:
        return decode(str(path))
    except RunFailed as error:
        raise UsageError(str(error)) from error


def _from_pil(image: Image) -> Pixels:
    try:
        image = image.convert("L") if image.mode in GREY_MODES else as_rgb(image)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _with_channels(np.array(image))


def _from_float(image: Tensor) -> Pixels:
    if image.ndim not in (2, 3):
        raise UsageError(f"a float tensor has the shape {tuple(image.shape)}; (C, H, W) or (N, C, H, W) expected")
    low, high = (float(value) for value in image.aminmax()) if image.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also if a value is NaN
        found = f"a float tensor has values from {low:.4g} to {high:.4g}; they must be in [0, 1]"
        raise UsageError(f"{found}: divide by 255, or leave out Normalize, because pixels are scaled as in training")
    pixels: Pixels = image.float().mul(255).round().byte().numpy()
    return _with_channels(pixels if image.ndim == 2 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _from_array(image: NDArray[Any]) -> Pixels:
    if image.dtype != np.uint8:
        raise UsageError(f"an array of {image.dtype} is no image; {ACCEPTED}")
    return _with_channels(np.ascontiguousarray(image))


def _with_channels(pixels: Pixels) -> Pixels:
    """Return pixels of the shape (H, W) or (H, W, C) with three dimensions. Raises UsageError for another shape."""
    if pixels.ndim == 2:
        return pixels[:, :, np.newaxis]
    if pixels.ndim != 3 or not pixels.size:
        raise UsageError(f"an image has the shape {pixels.shape}; {ACCEPTED}")
    return pixels


def pil_image(pixels: Pixels) -> Image:
    """Return pixels (height, width, channels) as a PIL image.

    One channel gives a grey image, three give RGB, four RGBA. Raises UsageError for another number.
    """
    if pixels.shape[2] not in (1, 3, 4):
        wrong = f"an image has the shape {pixels.shape}, so {pixels.shape[2]} channels; 1, 3 or 4 expected"
        raise UsageError(f"{wrong} (uint8 images are (H, W, C), float tensors (C, H, W))")
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def prepare(pixels: Pixels, spec: SetSpec) -> Tensor:
    """Return an image in the size and with the channels of a data set, prepared as in evaluation.

    Colours are converted to grey or back. Images of a data set with images of any size are resized and cropped to the
    centre, as `data.image_views.crop_transform` does. Other images are resized to the size of the data set.

    pixels: uint8 (h, w, c). The result is uint8 (height, width, channels), as in `spec.in_shape`.
    """
    channels, height, width = spec.in_shape
    if spec.margin is None and pixels.shape == (height, width, channels):
        return torch.from_numpy(pixels)
    image = pil_image(pixels)
    if pixels.shape[2] != channels:
        if channels not in (1, 3):
            raise UsageError(f"an image has {pixels.shape[2]} channels, the network takes {channels}")
        image = image.convert("L" if channels == 1 else "RGB")
    if spec.margin is not None:
        cropped: Tensor = _centre_crop(spec)(image)
        return cropped.permute(1, 2, 0)
    if image.size != (width, height):
        image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    return torch.from_numpy(_with_channels(np.array(image)))


@lru_cache(8)
def _centre_crop(spec: SetSpec) -> Any:
    return crop_transform(spec, train=False)
