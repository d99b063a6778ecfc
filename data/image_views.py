"""From one image to its views: Pillow decodes, torchvision's transforms crop, flip and mix, on uint8 throughout."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """The image in RGB: grey repeated, palettes looked up, CMYK converted, alpha dropped, 16 bits cut to their upper 8.

    Raises RunFailed naming the file.
    """
    try:
        if fault := irregular(path):
            raise ValueError(f"it {fault}")
        with refusing_bombs(), PIL.Image.open(path) as image:
            if image.mode.startswith("I;16"):  # Pillow's own conversion sets all that is above 255 to white
                return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode}; 8 or 16 bits per channel expected")
            if "transparency" in image.info:  # straight to RGB, Pillow would warn
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except PIL.UnidentifiedImageError:
        reason = "not an image of a known format"
    except Exception as error:  # whatever the parser of a format meets: OSError, SyntaxError, struct.error, ...
        if out_of_memory.is_out_of_memory(error):
            raise
        reason = escaped(str(error).split("\n")[0], 300) or type(error).__name__
    raise RunFailed(f"{escaped(path, 1000)}: cannot be decoded: {reason}")


@contextmanager
def refusing_bombs() -> Iterator[None]:
    """Images of more pixels than PIL.Image.MAX_IMAGE_PIXELS raise an error: up to twice as many, Pillow only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        yield


def framing(spec: SetSpec, *, train: bool) -> Callable[[Image], Tensor]:
    """Image -> uint8 (channels, height, width) of the set's size; in training a random crop, flipped at random."""
    v2 = import_transforms()
    size = list(spec.in_shape[1:])
    steps = []
    if train and spec.margin is not None:
        steps.append(v2.RandomResizedCrop(size))
    elif train and spec.augment:
        steps.append(v2.RandomCrop(size, padding=CROP_PAD))
    elif spec.margin is not None:
        steps += [v2.Resize(round(spec.margin * min(size))), v2.CenterCrop(size)]
    if train and spec.augment:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose([*steps, v2.PILToTensor()])


def mixing(augmentation: Augmentation) -> Callable[[Tensor], Tensor]:
    """torchvision's AugMix (arXiv:1912.02781), uint8 (1 or 3, height, width) -> the same.

    Against BIPROP's: the weights of the mixture, the depth of a chain and the choice among 9 operators (13 with
    all_ops: also colour, contrast, brightness and sharpness) have the same distributions. These differ:
    - Strengths. BIPROP draws u from U(0.1, severity) and takes u / 10 of the largest; here it is i / 9 of it with i
      from 0, ..., severity - 1, so that an operator may do nothing. The largest are the same (shear 0.3, a third of the
      side, 30 degrees, 4 bits, threshold 0), but for the four of all_ops: here a factor 1 +- 0.1 i, there 0.1 + 0.18 u.
    - Rounding. Here bits and thresholds are rounded, and the mixture is made of whole pixels in 0..255 and cut to whole
      ones; there it is made of normalised values. The spaces are the same otherwise, as the weights add up to 1.
    - Randomness. Here all draws depend on the run's seed, there on numpy's generator, which its seed does not reach.
    """
    v2 = import_transforms()
    return v2.AugMix(augmentation.severity, augmentation.width, augmentation.depth, all_ops=augmentation.all_ops)


def make_views(spec: SetSpec, augmentation: Augmentation, *, train: bool) -> Callable[[Image], Tensor]:
    """Image -> uint8 (views, height, width, channels): one, or with augmix and jsd the clean one and two mixed ones."""
    frame, mix = framing(spec, train=train), mixing(augmentation)

    def views(image: Image) -> Tensor:
        clean = frame(image)
        if not (train and augmentation.augmix):
            made = [clean]
        elif augmentation.jsd:
            made = [clean, mix(clean), mix(clean)]
        else:
            made = [mix(clean)]
        return torch.stack(made).permute(0, 2, 3, 1)

    return views
