"""Decoding and augmentation of single images: Pillow decodes, torchvision crops, flips and applies AugMix.

The augmented versions of an image are called its views.
"""

import warnings
from collections.abc import Callable

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from data.registry import SetSpec
from data.transforms import CROP_PAD
from data.types import Augmentation
from utils import out_of_memory
from utils.errors import RunFailed
from utils.files import irregular
from utils.text import escaped
from utils.torch_compat import import_transforms

Image = PIL.Image.Image


def decode(path: str) -> Image:
    """Decode the image file `path` and return the image in RGB.

    Grey, palette and CMYK images are converted, alpha is dropped, and 16-bit values are reduced to their upper 8 bits.
    Raises RunFailed if the file cannot be decoded.
    """
    try:
        if fault := irregular(path):
            raise ValueError(f"it {fault}")
        # Up to twice MAX_IMAGE_PIXELS, Pillow itself only warns of a decompression bomb.
        bombs = warnings.catch_warnings(action="error", category=PIL.Image.DecompressionBombWarning)
        with bombs, PIL.Image.open(path) as image:
            return as_rgb(image)
    except PIL.UnidentifiedImageError:
        reason = "not an image of a known format"
    except Exception as error:  # parsers raise OSError, SyntaxError, struct.error and others
        if out_of_memory.is_out_of_memory(error):
            raise
        reason = escaped(str(error).split("\n")[0], 300) or type(error).__name__
    raise RunFailed(f"{escaped(path, 1000)}: cannot be decoded: {reason}")


def as_rgb(image: Image) -> Image:
    """Return an image in RGB.

    Alpha is dropped, and 16-bit values are reduced to their upper 8 bits. Raises ValueError for pixels of other types.
    """
    if image.mode.startswith("I;16"):  # Pillow's own conversion makes every value above 255 white
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}; 8 or 16 bits per channel expected")
    if "transparency" in image.info:  # Pillow warns when such an image is converted to RGB directly
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def crop_transform(spec: SetSpec, *, train: bool) -> Callable[[Image], Tensor]:
    """Return a transform that crops an image to the image size of a data set.

    The transform maps a PIL image to a uint8 tensor (channels, height, width).

    In training, the transform crops and flips at random as `spec` specifies. In evaluation, it resizes images and crops
    the centre if the images of the data set have varying sizes.
    """
    v2 = import_transforms()
    size = list(spec.in_shape[1:])
    steps = []
    if train and spec.augment and spec.margin is not None:
        steps.append(v2.RandomResizedCrop(size))
    elif train and spec.augment:
        steps.append(v2.RandomCrop(size, padding=CROP_PAD))
    elif spec.margin is not None:
        steps += [v2.Resize(round(spec.margin * min(size))), v2.CenterCrop(size)]
    if train and spec.augment:
        steps.append(v2.RandomHorizontalFlip())
    transform: Callable[[Image], Tensor] = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def augmix_transform(augmentation: Augmentation) -> Callable[[Tensor], Tensor]:
    """Return torchvision's AugMix transform of uint8 images (arXiv:1912.02781).

    Images have the shape (1 or 3, height, width).

    An operator is one of 9, or one of 13 with all_ops, which adds colour, contrast, brightness and sharpness. The
    distributions of the operator, the chain depth and the mixture weights are BIPROP's. Differences from BIPROP:

    - Strength. BIPROP draws u from U(0.1, severity) and uses u / 10 of the maximum. torchvision draws i from 0, ...,
      severity - 1 and uses i / 9 of the maximum, so that an operator may do nothing. The maxima are equal (shear 0.3,
      translation by a third of the side, 30 degrees, 4 bits, threshold 0), except for the operators of all_ops:
      a factor of 1 +- 0.1 i here, 0.1 + 0.18 u in BIPROP.
    - Rounding. torchvision rounds bits and thresholds and mixes integer pixels in 0..255. BIPROP mixes normalised
      values. The two spaces agree up to rounding, since the mixture weights add up to 1.
    - Randomness. All draws depend on the run's seed. In BIPROP they come from numpy's generator, which is not seeded.
    """
    a = augmentation
    transform: Callable[[Tensor], Tensor] = import_transforms().AugMix(a.severity, a.width, a.depth, all_ops=a.all_ops)
    return transform


def views_transform(spec: SetSpec, augmentation: Augmentation, *, train: bool) -> Callable[[Image], Tensor]:
    """Return a transform from an image to its views (augmented versions).

    The transform maps a PIL image to a uint8 tensor (views, height, width, channels).
    There is one view, or in training with augmix and jsd three: the clean image and two AugMix versions.
    """
    crop = crop_transform(spec, train=train)
    if not (train and augmentation.augmix):
        return lambda image: crop(image).permute(1, 2, 0).unsqueeze(0)
    mix = augmix_transform(augmentation)

    def transform(image: Image) -> Tensor:
        clean = crop(image)
        views = [clean, mix(clean), mix(clean)] if augmentation.jsd else [mix(clean)]
        return torch.stack(views).permute(0, 2, 3, 1)

    return transform
