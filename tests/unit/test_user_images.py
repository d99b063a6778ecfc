"""Images that users pass become uint8 images of a data set, prepared as in evaluation."""

import re
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

import data
from data.image_views import crop_transform, decode
from data.user_images import prepare, single_images, to_pixels
from utils.errors import UsageError

RNG = np.random.default_rng(0)
GREY, RGB = RNG.integers(0, 256, (9, 7), np.uint8), RNG.integers(0, 256, (9, 7, 3), np.uint8)
DIGITS, CIFAR = data.SETS["digits"], data.SETS["CIFAR10"]


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(RGB),
        RGB,
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255).double(),
        torch.from_numpy(RGB)[:, ::2][:, :1].expand(9, 7, 3).new_tensor(RGB),
        np.asfortranarray(RGB),
        PIL.Image.fromarray(np.dstack([RGB, GREY]), "RGBA"),
    ],
    ids=["pil", "array", "tensor", "float", "double", "new", "fortran", "rgba"],
)
def test_every_kind_of_image_gives_the_same_pixels(image):
    assert np.array_equal(to_pixels(image), RGB) and to_pixels(image).flags.c_contiguous


@pytest.mark.parametrize(
    "image", [GREY, torch.from_numpy(GREY), torch.from_numpy(GREY) / 255, PIL.Image.fromarray(GREY)]
)
def test_grey_images_get_one_channel(image):
    assert np.array_equal(to_pixels(image), GREY[:, :, None])


def test_float_values_are_rounded_to_the_nearest_of_256():
    values = torch.tensor([[0.0, 0.499 / 255, 0.501 / 255, 254.6 / 255, 1.0]])
    assert to_pixels(values)[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_a_path_is_decoded_as_an_image_of_a_folder_is(tmp_path):
    for name, pixels in (("rgb.png", RGB), ("grey.png", GREY), ("photo.jpg", RGB)):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        for path in (tmp_path / name, str(tmp_path / name)):
            assert np.array_equal(to_pixels(path), np.array(decode(str(path))))


def test_sixteen_bit_images_keep_their_upper_eight_bits():
    image = PIL.Image.fromarray(GREY.astype(np.uint16) << 8)
    assert np.array_equal(to_pixels(image), np.dstack([GREY] * 3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("gone.png", "gone.png does not exist"),
        (__file__, "cannot be decoded: not an image of a known format"),
        (
            torch.tensor([[[0.0, 1.5]]]),
            "values from 0 to 1.5; they must be in [0, 1]: divide by 255, or leave out Normal",
        ),
        (torch.tensor([[[-0.1, 1]]]), "values from -0.1 to 1; they must be"),
        (torch.tensor([[[0.5, torch.nan]]]), "values from nan"),
        (torch.rand(2), "a float tensor has the shape (2,); (C, H, W) or (N, C, H, W) expected"),
        (GREY.astype(np.int64), "an array of int64 is no image; pass paths, PIL images"),
        (RGB / 255, "an array of float64 is no image"),
        (torch.ones(3, 3, dtype=torch.int32), "an array of int32 is no image"),
        (np.zeros((0, 4, 3), np.uint8), "an image has the shape (0, 4, 3)"),
        (3, "a int is no image"),
        (PIL.Image.fromarray(GREY.astype(np.float32)), "pixels of mode F"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        to_pixels(image)
    assert "\n" not in str(caught.value)


def test_nested_lists_and_batches_are_taken_apart():
    batch = np.stack([RGB, RGB])
    assert [image.shape for image in single_images([batch, (RGB, [torch.rand(2, 1, 4, 4)])])] == [
        *[(9, 7, 3)] * 3,
        *[(1, 4, 4)] * 2,
    ]
    assert list(single_images("a.png")) == ["a.png"]


def test_an_image_of_the_right_shape_stays_as_it_is():
    pixels = RNG.integers(0, 256, (8, 8, 1), np.uint8)
    assert np.array_equal(prepare(pixels, DIGITS), pixels)
    odd = RNG.integers(0, 256, (8, 8, 5), np.uint8)
    assert np.array_equal(prepare(odd, replace(DIGITS, in_shape=(5, 8, 8))), odd)


def test_colours_are_converted_by_the_number_of_channels():
    grey = prepare(RGB, replace(DIGITS, in_shape=(1, 9, 7)))
    assert np.array_equal(grey[:, :, 0], np.array(PIL.Image.fromarray(RGB).convert("L")))
    assert np.array_equal(prepare(GREY[:, :, None], replace(CIFAR, in_shape=(3, 9, 7))), np.dstack([GREY] * 3))


def test_images_of_another_size_are_resized_to_that_of_the_set():
    wanted = np.array(PIL.Image.fromarray(RGB).resize((32, 32), PIL.Image.Resampling.BILINEAR))
    assert np.array_equal(prepare(RGB, CIFAR), wanted)


def test_images_of_any_size_are_cropped_as_in_evaluation():
    spec = replace(data.SETS["ImageFolder"], in_shape=(3, 12, 12), num_classes=3)
    image = PIL.Image.fromarray(RNG.integers(0, 256, (20, 33, 3), np.uint8))
    wanted = crop_transform(spec, train=False)(image).permute(1, 2, 0)
    assert torch.equal(prepare(np.array(image), spec), wanted)
    same = RNG.integers(0, 256, (12, 12, 3), np.uint8)  # resized to margin times 12, then cropped
    assert not np.array_equal(prepare(same, spec), same)


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [((4, 4, 2), 3, "so 2 channels; 1, 3 or 4"), ((4, 4, 3), 5, "3 channels, the network takes 5")],
)
def test_channels_that_cannot_be_converted_are_refused(shape, channels, message):
    with pytest.raises(UsageError, match=message):
        prepare(np.zeros(shape, np.uint8), replace(DIGITS, in_shape=(channels, 4, 4)))
