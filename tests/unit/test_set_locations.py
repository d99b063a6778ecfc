"""Sets where their owners have them: the innermost folder itself, other spellings, archives not yet unpacked."""

import gzip
import re
import shlex
import shutil
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from args import parse
from data import SPECS, load
from data.readers import cifar
from tests.unit.test_data_sources import (
    IDX_FILES,
    ROWS,
    assert_cifar,
    write_cifar_bin,
    write_cifar_py,
    write_mnist,
)
from utils.errors import UsageError


@pytest.fixture(autouse=True)
def _small_cifar(monkeypatch):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", ROWS)


def assert_mnist(loaded, written):
    read = (loaded.train.images[..., 0], loaded.train.labels, loaded.test.images[..., 0], loaded.test.labels)
    assert all(np.array_equal(found, expected) for found, expected in zip(read, written, strict=True))


# --- folders and spellings


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "folder", "root"),
    [
        ("MNIST", "MNIST/raw", "MNIST/raw"),
        ("MNIST", "MNIST/raw", "MNIST"),
        ("MNIST", "MNIST", "."),
        ("MNIST", "digits of mine", "digits of mine"),
        ("FashionMNIST", "FashionMNIST/raw", "FashionMNIST/raw"),
        ("FashionMNIST", "fashion-mnist", "fashion-mnist"),
    ],
)
def test_the_innermost_folder_is_a_place_too(tmp_path, name, folder, root, compress):
    written = write_mnist(tmp_path / folder, compress=compress)
    assert_mnist(load(name, tmp_path / root), written)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_a_dot_may_stand_for_a_dash(tmp_path, compress):
    written = write_mnist(tmp_path, compress=compress)
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert_mnist(load("MNIST", tmp_path), written)


def test_files_in_folders_of_their_own_names_are_found(tmp_path):
    """As Kaggle's archive has them, once with dots and once in folders."""
    written = write_mnist(tmp_path / "flat")
    for file in IDX_FILES:
        (tmp_path / "deep" / file).mkdir(parents=True)
        shutil.copy(tmp_path / "flat" / file, tmp_path / "deep" / file / file)
    assert_mnist(load("MNIST", tmp_path / "deep"), written)
    for file in IDX_FILES:
        shutil.copy(tmp_path / "flat" / file, tmp_path / "deep" / file.replace("-idx", ".idx"))
        (tmp_path / "deep" / file / file).unlink()
    assert_mnist(load("MNIST", tmp_path / "deep"), written)


@pytest.mark.parametrize(
    ("name", "root"),
    [("MNIST", "FashionMNIST/raw"), ("MNIST", "fashion-mnist"), ("FashionMNIST", "MNIST/raw"), ("MNIST", "KMNIST")],
)
def test_files_of_a_sister_set_are_not_taken_for_it(tmp_path, name, root):
    """Their names are the same."""
    write_mnist(tmp_path / root)
    with pytest.raises(UsageError, match=f"{name} was not found"):
        load(name, tmp_path / root)


@pytest.mark.parametrize(
    ("write", "folder"), [(write_cifar_bin, "cifar-10-batches-bin"), (write_cifar_py, "cifar-10-batches-py")]
)
def test_cifars_own_folder_is_a_place(tmp_path, write, folder):
    written = write(tmp_path)
    assert_cifar(load("CIFAR10", tmp_path / folder), *written)
    (tmp_path / folder).rename(tmp_path / "renamed")
    assert_cifar(load("CIFAR10", tmp_path / "renamed"), *written)


def test_folders_of_images_are_not_taken_for_cifar100(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="CIFAR100 was not found"):
        load("CIFAR100", tmp_path)


# --- archives


def unpacked_by(message):
    """The command that a message advises, run."""
    command = message.partition("not unpacked: ")[2]
    words = shlex.split(command)
    if words[0] == "unzip":
        zipfile.ZipFile(words[1]).extractall(words[3])
    else:
        assert words[0] == "tar"
        subprocess.run(words, check=True)


@pytest.mark.parametrize("place", ["", "cifar10", "down loads/$x"])
@pytest.mark.parametrize(
    ("write", "folder", "archive"),
    [
        (write_cifar_py, "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        (write_cifar_bin, "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        (write_cifar_bin, "cifar-10-batches-bin", "CIFAR-10.zip"),
        (write_cifar_py, "cifar-10-batches-py", "cifar10.tgz"),
    ],
)
def test_an_archive_is_named_with_the_command_that_unpacks_it(tmp_path, write, folder, archive, place):
    root = tmp_path / "my data"
    written = write(tmp_path / "made")
    path = root / place / archive
    path.parent.mkdir(parents=True)
    if archive.endswith("zip"):
        with zipfile.ZipFile(path, "w") as file:
            for part in (tmp_path / "made" / folder).iterdir():
                file.write(part, f"{folder}/{part.name}")
    else:
        with tarfile.open(path, "w:gz") as file:
            file.add(tmp_path / "made" / folder, folder)
    with pytest.raises(UsageError) as caught:
        load("CIFAR10", root)
    message = str(caught.value)
    assert (
        f"CIFAR10 was not found under {root}; its archive {path} is not unpacked: " in message and "\n" not in message
    )
    unpacked_by(message)
    assert_cifar(load("CIFAR10", root), *written)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("digits", "BigCIFAR10")])
def test_an_archive_given_for_the_folder_is_named(tmp_path, name):
    file = {"CIFAR10": "cifar-10-python.tar.gz", "CIFAR100": "cifar-100-python.tar.gz", "MNIST": "MNIST.zip"}
    file |= {"FashionMNIST": "fashion-mnist-master.zip", "SVHN": "svhn.tar", "TinyImageNet": "tiny-imagenet-200.zip"}
    file |= {"ImageNet": "imagenet.tar", "ImageFolder": "mine.tar.xz"}
    path = tmp_path / file[name]
    path.write_bytes(b"")
    for root in (path, tmp_path):
        with pytest.raises(UsageError, match=f"its archive {re.escape(str(path))} is not unpacked: (unzip|tar -xf) "):
            load(name, root)


def test_an_archive_of_another_set_is_not_named(tmp_path):
    for file in ("cifar-100-python.tar.gz", "FashionMNIST.zip", "mnist.tar.gz"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UsageError, match=r"Looked for .*--download") as caught:
        load("CIFAR10", tmp_path)
    assert "unpacked" not in str(caught.value)


def test_files_in_another_folder_are_named_with_what_to_give(tmp_path):
    folder = tmp_path / "house numbers/cropped"
    folder.mkdir(parents=True)
    for file in ("train_32x32.mat", "test_32x32.mat"):
        (folder / file).write_bytes(b"")
    with pytest.raises(UsageError, match="its files are in ") as caught:
        load("SVHN", tmp_path)
    words = shlex.split(str(caught.value).partition(": ")[2])
    given = parse(["--config", "configs/quickstart.yml", *words]).data.data
    assert given == str(folder)
    with pytest.raises(UsageError, match="MATLAB"):
        load("SVHN", given)


def test_a_large_folder_is_not_searched_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("data.readers.missing_hints.MAX_ENTRIES", 50)
    for i in range(100):
        (tmp_path / f"{i}.png").write_bytes(b"")
    (tmp_path / "below").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="Looked for"):
        load("SVHN", tmp_path)


def test_a_gz_of_a_dotted_name_is_decompressed(tmp_path):
    written = write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.name.replace('-idx', '.idx')}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert_mnist(load("MNIST", tmp_path), written)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("digits", "BigCIFAR10")])
def test_an_archive_without_a_name_of_its_own_is_named(tmp_path, name):
    (tmp_path / "archive.zip").write_bytes(b"")  # Kaggle's
    with pytest.raises(UsageError, match=r"its archive .*archive\.zip is not unpacked: unzip "):
        load(name, tmp_path)


@pytest.mark.parametrize(("part", "advice"), [("train", "train/<class>"), ("val", "val/<class>")])
def test_imagenets_archives_of_archives_are_told_apart(tmp_path, part, advice):
    path = tmp_path / f"ILSVRC2012_img_{part}.tar"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=f"its archive {re.escape(str(path))} is not unpacked.*{advice}") as caught:
        load("ImageNet", tmp_path)
    assert "tar -xf" not in str(caught.value)  # it would leave a thousand archives, or images without classes
