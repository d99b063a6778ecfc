"""Data sets in image folders: search, listing, faulty folders, and decoding of image files."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data import SETS, FileSplit, load, spec
from data.image_views import decode
from data.readers import folders
from tests.folders import CLASSES, pictures, write_set, write_split
from utils.errors import RunFailed, UsageError


def names(split):
    """Return class/file of each image."""
    return ["/".join(Path(split.path(i)).parts[-2:]) for i in range(len(split))]


# --- finding and listing


@pytest.mark.parametrize("other", ["val", "test"])
def test_an_image_folder_is_listed_by_class(tmp_path, other):
    loaded = load("ImageFolder", write_set(tmp_path, train=3, val=1, other=other))
    assert isinstance(loaded.train, FileSplit) and loaded.val is None
    assert names(loaded.train) == [f"{name}/{i:03}.png" for name in CLASSES for i in range(3)]
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and loaded.test.labels.tolist() == [0, 1, 2]
    assert f"/{other}/" in loaded.test.path(0) and loaded.spec.num_classes == 3


def test_the_val_folder_is_preferred_to_the_test_folder(tmp_path):
    write_split(write_set(tmp_path) / "test", 5)
    assert len(load("ImageFolder", tmp_path).test) == 6


def test_classes_are_counted_without_any_image(tmp_path):
    for name in ("train/x", "train/a b", "val"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train/readme.txt").write_text("no class")
    found = spec("ImageFolder", tmp_path, image_size=32)
    assert found.num_classes == 2 and found.in_shape == (3, 32, 32)
    assert spec("ImageFolder", tmp_path).in_shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ImageNet", "imagenet"),
        ("ImageNet", "ImageNet"),
        ("ImageNet", ""),
        ("TinyImageNet", "tinyimagenet"),
        ("TinyImageNet", "tiny-imagenet-200"),
        ("TinyImageNet", ""),
    ],
)
def test_a_published_set_is_found_in_each_of_its_usual_folders(tmp_path, monkeypatch, name, folder):
    monkeypatch.setitem(SETS, name, replace(SETS[name], num_classes=3))
    write_set(tmp_path / folder)
    assert len(load(name, tmp_path).train) == 12


@pytest.mark.parametrize(("name", "classes"), [("ImageNet", 1000), ("TinyImageNet", 200)])
def test_a_published_set_with_another_number_of_classes_is_refused(tmp_path, name, classes):
    with pytest.raises(UsageError, match=f"3 class folders found, {name} has {classes}; set: ImageFolder takes any"):
        load(name, write_set(tmp_path))


def test_images_are_listed_as_torchvision_lists_them(tmp_path):
    """The order of the files decides which image each random draw of an epoch belongs to."""
    from utils.torch_compat import import_torchvision

    torchvision_folder = import_torchvision().datasets.folder
    assert folders.IMAGE_ENDINGS == torchvision_folder.IMG_EXTENSIONS
    for path in (
        "b/2.png",
        "b/10.PNG",
        "b/x/1.jpg",
        "b/x-y/1.jpg",
        "b/x/z/1.webp",
        "b/note.txt",
        "B/1.tiff",
        "a/1.bmp",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    split = folders.list_images(tmp_path, ["B", "a", "b"])
    listed = [(split.path(i), int(split.labels[i])) for i in range(len(split))]
    assert listed == torchvision_folder.make_dataset(tmp_path, extensions=folders.IMAGE_ENDINGS)


def test_file_names_may_be_any_bytes(tmp_path):
    write_set(tmp_path)
    odd = os.fsencode(tmp_path / "train/ant") + b"/z\xff \xc3\xa9.png"
    os.rename(tmp_path / "train/ant/003.png", odd)  # noqa: PTH104 (bytes)
    split = load("ImageFolder", tmp_path).train
    assert os.fsencode(split.path(3)) == odd and decode(split.path(3)).size == (32, 32)


# --- Tiny ImageNet's val


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Write Tiny ImageNet as published: train/<class>/images and all evaluation images in val/images."""
    monkeypatch.setitem(SETS, "TinyImageNet", replace(SETS["TinyImageNet"], num_classes=3))
    root = tmp_path / "tiny-imagenet-200"
    write_split(root / "scratch", 2)
    for name in CLASSES:
        (root / "train" / name).mkdir(parents=True)
        (root / "scratch" / name).rename(root / "train" / name / "images")
        (root / "train" / name / f"{name}_boxes.txt").write_text("000.png\t0\t0\t3\t3\n")
    write_split(root / "val", 4, classes=("images",), first=20)
    lines = [f"{i:03}.png\t{name}\t0\t0\t63\t63\n" for i, name in enumerate(("cow", "ant", "bee", "cow"))]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return root


def test_classes_of_val_come_from_the_annotations(tiny):
    loaded = load("TinyImageNet", tiny.parent)
    assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded.test.labels.tolist() == [2, 0, 1, 2]
    assert names(loaded.test) == [f"images/{i:03}.png" for i in range(4)]


ANNOTATION_FAULTS = {
    "unknown class": ("000.png\tcow\n001.png\tyak\t0\n", "line 2: 'yak' is not a class folder of train"),
    "no class": ("000.png\n", "line 1: '' is not a class folder of train"),
    "missing file": ("000.png\tcow\n9.png\tcow\n", r"line 2: images/9\.png does not exist"),
    "empty": ("", "val_annotations.txt: lists no images"),
}


@pytest.mark.parametrize("fault", ANNOTATION_FAULTS)
def test_error_for_a_faulty_annotation_names_the_line(tiny, fault):
    content, message = ANNOTATION_FAULTS[fault]
    (tiny / "val/val_annotations.txt").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        load("TinyImageNet", tiny.parent)
    assert str(caught.value).startswith(str(tiny / "val/val_annotations.txt"))


# --- faulty folders


def test_error_for_missing_folders_names_the_folders(tmp_path):
    for call in (spec, load):
        with pytest.raises(UsageError, match=r"ImageFolder was not found under .*train, val in .*train, test in") as e:
            call("ImageFolder", tmp_path / "nowhere")
        assert "--download" not in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UsageError, match=r"tiny-imagenet-200.*it has no download"):
        load("TinyImageNet", tmp_path, download=True)
    (tmp_path / "imagenet/train").mkdir(parents=True)
    with pytest.raises(UsageError, match="imagenet is not complete: val not found"):
        load("ImageNet", tmp_path)


def test_a_train_folder_without_classes_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "train/1.png").write_bytes(b"")
    for call in (spec, load):
        with pytest.raises(UsageError, match=r"train: no class folders found"):
            call("ImageFolder", tmp_path)


def test_error_for_a_class_without_images_names_the_class_in_one_line(tmp_path):
    write_set(tmp_path)
    for path in (tmp_path / "val/bee").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UsageError, match=r"/val: no images for the classes bee; image files end in ") as caught:
        load("ImageFolder", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "here", "there"), [("train", "train", "val"), ("val", "val", "train")])
def test_error_names_the_first_class_that_is_missing_in_train_or_val(tmp_path, part, here, there):
    write_set(tmp_path)
    write_split(tmp_path / part, 1, classes=("dog", "bat"))
    with pytest.raises(UsageError, match=f"/{here} has a class folder 'bat', .*/{there} has none"):
        load("ImageFolder", tmp_path)


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "train").write_text("")
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match="train: cannot be read: Not a directory"):
        load("ImageFolder", tmp_path)


# --- sizes


def test_specs_of_large_image_sets_hold_the_published_constants():
    assert SETS["ImageNet"].in_shape == (3, 224, 224) and SETS["ImageNet"].num_classes == 1000
    assert SETS["TinyImageNet"].in_shape == (3, 64, 64) and SETS["TinyImageNet"].num_classes == 200
    assert SETS["BigCIFAR10"].in_shape == (3, 128, 128) and SETS["BigCIFAR10"].num_classes == 10
    for name in ("ImageNet", "TinyImageNet", "BigCIFAR10", "ImageFolder"):
        assert (SETS[name].mean, SETS[name].std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert SETS[name].margin == (1 if name == "BigCIFAR10" else 256 / 224) and SETS[name].augment


@pytest.mark.parametrize("name", ["ImageNet", "TinyImageNet", "BigCIFAR10"])
def test_image_size_sets_the_size_of_the_crop(name):
    assert spec(name, ".", image_size=96).in_shape == (3, 96, 96)
    assert spec(name, ".") is SETS[name] and spec(name, ".", image_size=SETS[name].in_shape[1]) is SETS[name]
    with pytest.raises(UsageError, match="image_size: 0 given, at least 1"):
        spec(name, ".", image_size=0)


@pytest.mark.parametrize("name", ["digits", "MNIST", "CIFAR10", "CIFAR100", "SVHN"])
def test_image_size_of_a_set_with_fixed_size_cannot_change(name):
    own = SETS[name].in_shape[1]
    assert spec(name, ".", image_size=own) is SETS[name]
    with pytest.raises(UsageError, match=f"image_size: 64 given, but the images of {name} are {own}x{own}"):
        spec(name, ".", image_size=64)


# --- decoding


def saved(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("ending", ["png", "bmp", "webp", "ppm", "tif"])
def test_lossless_formats_decode_to_the_exact_pixels(tmp_path, ending):
    picture = pictures()[3]
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"x.{ending}", PIL.Image.fromarray(picture), **options)
    assert np.array_equal(np.asarray(decode(path)), picture)


def test_jpeg_decodes_to_nearly_the_same_pixels(tmp_path):
    picture = pictures()[3]
    found = np.asarray(decode(saved(tmp_path / "x.jpg", PIL.Image.fromarray(picture), quality=95)))
    assert np.abs(found.astype(int) - picture).mean() < 4


def test_all_colour_modes_are_decoded_to_rgb(tmp_path):
    image = PIL.Image.fromarray(pictures()[5])
    rgb = np.asarray(image)
    grey = np.asarray(image.convert("L"))
    three = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(decode(saved(tmp_path / "grey.png", image.convert("L"))), three)
    assert np.array_equal(decode(saved(tmp_path / "two.png", image.convert("LA"))), three)
    deep = PIL.Image.fromarray(grey.astype(np.uint16) << 8 | 200)
    assert np.array_equal(decode(saved(tmp_path / "deep.png", deep)), three)
    clear = image.convert("RGBA")
    clear.putalpha(7)
    assert np.array_equal(decode(saved(tmp_path / "alpha.png", clear)), rgb)
    palette = image.quantize(16)
    assert np.array_equal(decode(saved(tmp_path / "palette.png", palette)), np.asarray(palette.convert("RGB")))
    bits = image.convert("1")
    assert np.array_equal(decode(saved(tmp_path / "bits.png", bits)), np.asarray(bits.convert("RGB")))
    inks = image.convert("CMYK")
    found = np.asarray(decode(saved(tmp_path / "cmyk.jpg", inks, quality=100, subsampling=0)))
    assert np.abs(found.astype(int) - rgb).mean() < 4


def test_a_palette_with_transparency_decodes_without_a_warning(tmp_path):
    palette = PIL.Image.fromarray(pictures()[5]).quantize(16)
    path = saved(tmp_path / "x.png", palette, transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(path), np.asarray(palette.convert("RGB")))


def broken_files(tmp_path):
    path = tmp_path / "whole.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    png = path.read_bytes()
    PIL.Image.open(path).save(tmp_path / "whole.jpg")
    jpg = (tmp_path / "whole.jpg").read_bytes()
    PIL.Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    return {
        "empty": (b"", "not an image of a known format"),
        "text": (b"<html>404</html>", "not an image of a known format"),
        "cut png": (png[:400], "truncated|broken"),
        "cut jpg": (jpg[: len(jpg) // 2], "truncated"),
        "flipped png": (png[:60] + b"\xff" * 40 + png[100:], "broken|incorrect|invalid"),
        "bad chunk": (png[:33] + b"\0\0\0\0abc\xff" + png[41:], "broken|CRC|bad|cannot|truncated|invalid"),
        "floats": ((tmp_path / "float.tif").read_bytes(), "pixels of mode F; 8 or 16 bits"),
    }


@pytest.mark.parametrize("fault", ["empty", "text", "cut png", "cut jpg", "flipped png", "bad chunk", "floats"])
def test_error_for_a_broken_image_names_the_image_in_one_line(tmp_path, fault):
    content, message = broken_files(tmp_path)[fault]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(RunFailed, match=message) as caught:
        decode(str(tmp_path / "x.png"))
    assert str(caught.value).startswith(f"{tmp_path / 'x.png'}: cannot be decoded: ")
    assert "\n" not in str(caught.value)


def test_error_for_a_deleted_image_names_the_image(tmp_path):
    with pytest.raises(RunFailed, match=r"gone.png: cannot be decoded: .*No such file"):
        decode(str(tmp_path / "gone.png"))


# --- hidden files


HIDDEN_FILES = (".DS_Store", "._000.png", ".hidden.png", "Thumbs.db", "desktop.ini")
HIDDEN_FOLDERS = (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir")


def add_hidden_files(folder):
    """Add the files of notebooks, macOS, Windows and network drives, among them images that cannot be decoded."""
    for name in HIDDEN_FILES:
        (folder / name).write_bytes(b"\0\5\x16\7 no image")
    for name in HIDDEN_FOLDERS:
        (folder / name).mkdir()
        (folder / name / "000-checkpoint.png").write_bytes(b"no image")


@pytest.mark.parametrize("other", ["val", "test"])
def test_hidden_files_and_folders_are_ignored(tmp_path, other):
    write_set(tmp_path, train=2, val=1, other=other)
    before = load("ImageFolder", tmp_path)
    for folder in (tmp_path, *(tmp_path / part for part in ("train", other, "train/ant", f"{other}/bee"))):
        add_hidden_files(folder)
    after = load("ImageFolder", tmp_path)
    assert names(after.train) == names(before.train) and names(after.test) == names(before.test)
    assert after.spec.num_classes == 3 and spec("ImageFolder", tmp_path).num_classes == 3


def test_a_set_below_a_hidden_folder_is_found(tmp_path):
    assert len(load("ImageFolder", write_set(tmp_path / ".cache/set")).train) == 12


def test_a_class_with_only_hidden_files_is_an_error(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train/yak").mkdir()
    (tmp_path / "val/yak").mkdir()
    add_hidden_files(tmp_path / "train/yak")
    with pytest.raises(UsageError, match=r"train: no images for the classes yak; .*\.png"):
        load("ImageFolder", tmp_path)


def test_hidden_files_in_an_annotated_val_folder_are_ignored(tiny):
    for folder in (tiny / "train", tiny / "train/ant/images", tiny / "val", tiny / "val/images"):
        add_hidden_files(folder)
    (tiny / "val/._val_annotations.txt").write_bytes(b"\0\5\x16\7")
    annotations = tiny / "val/val_annotations.txt"
    annotations.write_text(annotations.read_text() + "._000.png\tcow\n.DS_Store\tmac\n")
    loaded = load("TinyImageNet", tiny.parent)
    assert loaded.test.labels.tolist() == [2, 0, 1, 2] and loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_control_characters_of_a_file_name_are_escaped_in_the_error(tmp_path):
    path = tmp_path / "a\nerror: forged\x1b[2J.png"
    path.write_bytes(b"no image")
    with pytest.raises(RunFailed) as caught:
        decode(str(path))
    assert str(caught.value).endswith(
        "a\\nerror: forged\\x1b[2J.png: cannot be decoded: not an image of a known format"
    )
