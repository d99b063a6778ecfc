"""Locations of data sets: the innermost folder, other spellings of file names, and hints at packed archives."""

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
from data import SETS, load
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
def test_an_idx_set_is_found_if_data_names_any_folder_above_its_files(tmp_path, name, folder, root, compress):
    written = write_mnist(tmp_path / folder, compress=compress)
    assert_mnist(load(name, tmp_path / root), written)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_idx_file_names_may_have_a_dot_instead_of_a_dash(tmp_path, compress):
    written = write_mnist(tmp_path, compress=compress)
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert_mnist(load("MNIST", tmp_path), written)


def test_files_inside_folders_of_the_same_name_are_found(tmp_path):
    """Kaggle's archive has each file twice: with a dot in its name, and in a folder."""
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
def test_files_of_another_idx_set_are_not_read(tmp_path, name, root):
    """Both sets have the same file names."""
    write_mnist(tmp_path / root)
    with pytest.raises(UsageError, match=f"{name} was not found"):
        load(name, tmp_path / root)


@pytest.mark.parametrize(
    ("write", "folder"), [(write_cifar_bin, "cifar-10-batches-bin"), (write_cifar_py, "cifar-10-batches-py")]
)
def test_cifar10_is_found_if_data_names_its_innermost_folder(tmp_path, write, folder):
    written = write(tmp_path)
    assert_cifar(load("CIFAR10", tmp_path / folder), *written)
    (tmp_path / folder).rename(tmp_path / "renamed")
    assert_cifar(load("CIFAR10", tmp_path / "renamed"), *written)


def test_folders_named_train_and_test_are_not_read_as_cifar100(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="CIFAR100 was not found"):
        load("CIFAR100", tmp_path)


# --- archives


def run_unpack_command(message):
    """Run the unpack command of an error message."""
    command = message.partition("not unpacked: ")[2]
    words = shlex.split(command)
    if words[0] == "unzip":
        zipfile.ZipFile(words[1]).extractall(words[3])
    else:
        assert words[0] == "tar"
        subprocess.run(words, check=True)


@pytest.mark.parametrize("subfolder", ["", "cifar10", "down loads/$x"])
@pytest.mark.parametrize(
    ("write", "folder", "archive"),
    [
        (write_cifar_py, "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        (write_cifar_bin, "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        (write_cifar_bin, "cifar-10-batches-bin", "CIFAR-10.zip"),
        (write_cifar_py, "cifar-10-batches-py", "cifar10.tgz"),
    ],
)
def test_error_for_a_packed_archive_states_the_command_that_unpacks_it(tmp_path, write, folder, archive, subfolder):
    root = tmp_path / "my data"
    written = write(tmp_path / "made")
    path = root / subfolder / archive
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
    run_unpack_command(message)
    assert_cifar(load("CIFAR10", root), *written)


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("digits", "BigCIFAR10", "in_memory")])
def test_error_names_the_archive_if_data_is_the_archive_or_its_folder(tmp_path, name):
    file = {"CIFAR10": "cifar-10-python.tar.gz", "CIFAR100": "cifar-100-python.tar.gz", "MNIST": "MNIST.zip"}
    file |= {"FashionMNIST": "fashion-mnist-master.zip", "SVHN": "svhn.tar", "TinyImageNet": "tiny-imagenet-200.zip"}
    file |= {"ImageNet": "imagenet.tar", "ImageFolder": "mine.tar.xz"}
    path = tmp_path / file[name]
    path.write_bytes(b"")
    for root in (path, tmp_path):
        with pytest.raises(UsageError, match=f"its archive {re.escape(str(path))} is not unpacked: (unzip|tar -xf) "):
            load(name, root)


def test_archives_of_other_sets_are_not_mentioned(tmp_path):
    for file in ("cifar-100-python.tar.gz", "FashionMNIST.zip", "mnist.tar.gz"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UsageError, match=r"Looked for .*--download") as caught:
        load("CIFAR10", tmp_path)
    assert "unpacked" not in str(caught.value)


def test_error_states_the_data_option_for_files_found_in_another_folder(tmp_path):
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


def test_the_search_of_a_large_folder_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("data.readers.missing_hints.MAX_ENTRIES", 50)
    for i in range(100):
        (tmp_path / f"{i}.png").write_bytes(b"")
    (tmp_path / "below").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="Looked for"):
        load("SVHN", tmp_path)


def test_idx_file_with_a_dotted_name_and_gz_is_decompressed(tmp_path):
    written = write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.name.replace('-idx', '.idx')}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert_mnist(load("MNIST", tmp_path), written)


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("digits", "BigCIFAR10", "in_memory")])
def test_error_names_an_archive_with_a_generic_name(tmp_path, name):
    (tmp_path / "archive.zip").write_bytes(b"")  # Kaggle gives every download this name
    with pytest.raises(UsageError, match=r"its archive .*archive\.zip is not unpacked: unzip "):
        load(name, tmp_path)


@pytest.mark.parametrize(("part", "advice"), [("train", "train/<class>"), ("val", "val/<class>")])
def test_error_explains_the_nested_archives_of_imagenet(tmp_path, part, advice):
    path = tmp_path / f"ILSVRC2012_img_{part}.tar"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=f"its archive {re.escape(str(path))} is not unpacked.*{advice}") as caught:
        load("ImageNet", tmp_path)
    # a single tar command would leave a thousand archives, or images without class folders
    assert "tar -xf" not in str(caught.value)
