"""Readers of CIFAR-100, SVHN and BigCIFAR10: small files in the official formats, and the real sets if present."""

import os
import pickle
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io

from data import SETS, load
from data.readers import cifar, svhn
from utils.errors import UsageError

ROWS = 4


@pytest.fixture(autouse=True)
def _small_cifar(monkeypatch):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", ROWS)


# --- CIFAR-100


def cifar100():
    """Return {file: (planes, coarse, fine)} with coarse labels in 0..19 and fine labels in 20..99."""
    rng = np.random.default_rng(3)
    counts = {"train": 5 * ROWS, "test": ROWS}
    return {
        file: (rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 20, n), rng.integers(20, 100, n))
        for file, n in counts.items()
    }


def write_binary(root):
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for file, (planes, coarse, fine) in cifar100().items():
        rows = np.concatenate([coarse[:, None], fine[:, None], planes], axis=1).astype(np.uint8)
        (folder / f"{file}.bin").write_bytes(rows.tobytes())
    return folder


def write_pickled(root, **changed):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for file, (planes, coarse, fine) in cifar100().items():
        held = {"data": planes, "coarse_labels": coarse.tolist(), "fine_labels": fine.tolist(), "batch_label": "x"}
        held = {key.encode(): value for key, value in (held | changed).items() if value is not None}
        (folder / file).write_bytes(pickle.dumps(held, protocol=2))
    return folder


@pytest.mark.parametrize("folder", ["", "cifar100"])
@pytest.mark.parametrize("write", [write_binary, write_pickled])
def test_cifar100_is_read_with_fine_labels_from_both_archive_formats(tmp_path, write, folder):
    write(tmp_path / folder)
    loaded = load("CIFAR100", tmp_path)
    for split, (planes, _, fine) in zip((loaded.train, loaded.test), cifar100().values(), strict=True):
        assert np.array_equal(split.images, planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert np.array_equal(split.labels, fine) and split.labels.dtype == np.int64
        assert split.images.flags.c_contiguous
    assert loaded.spec.num_classes == 100 and loaded.spec.augment and loaded.spec.margin is None


def test_cifar100_binary_archive_is_preferred(tmp_path):
    write_pickled(tmp_path)
    assert load("CIFAR100", tmp_path).train.images.any()
    (write_binary(tmp_path / "cifar100") / "test.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"test.bin: 0 bytes, 12296 expected"):
        load("CIFAR100", tmp_path)


CIFAR100_FAULTS = {
    "no fine labels": ({"fine_labels": None}, "an array 'data' and a list 'fine_labels' of integers expected"),
    "too few": ({"fine_labels": [1] * 3}, "3 labels and an array"),
    "label 100": ({"fine_labels": [100] * 20}, "label 100 is out of range, 0 to 99"),
    "code": ({"coarse_labels": Path("x")}, "not a CIFAR100 file: .*nothing was run"),
}


@pytest.mark.parametrize("fault", CIFAR100_FAULTS)
def test_error_for_a_faulty_cifar100_pickle_names_the_file(tmp_path, fault):
    changed, message = CIFAR100_FAULTS[fault]
    folder = write_pickled(tmp_path, **changed)
    with pytest.raises(UsageError, match=message) as caught:
        load("CIFAR100", tmp_path)
    assert str(folder / "train") in str(caught.value)


def test_error_for_a_missing_cifar100_names_its_files(tmp_path):
    with pytest.raises(UsageError, match=r"train\.bin, test\.bin in .*cifar-100-binary.*train, test in .*--download"):
        load("CIFAR100", tmp_path)


def test_cifar100_binary_file_is_read_in_chunks(tmp_path, monkeypatch):
    """One file holds the whole training part, which must not be in memory twice."""
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", 400)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for file, rows in (("train", 2000), ("test", 400)):
        np.zeros((rows, 3074), np.uint8).tofile(folder / f"{file}.bin")
    tracemalloc.start()
    load("CIFAR100", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * 2400 * 3072


def test_bigcifar10_images_are_stored_small_and_enlarged_per_batch(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*cifar.BATCHES, "test_batch"):
        (folder / f"{name}.bin").write_bytes(bytes(ROWS * 3073))
    loaded = load("BigCIFAR10", tmp_path, image_size=64)
    assert loaded.train.images.shape == (20, 32, 32, 3) and loaded.spec.in_shape == (3, 64, 64)


# --- SVHN


def svhn_arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10


def write_svhn(folder, **changed):
    """Write both files as published: compressed, column-major, the image index last, label 10 for the digit 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 12), ("test", 5)):
        images, digits = svhn_arrays(count)
        held = {"X": images.transpose(1, 2, 3, 0), "y": np.where(digits == 0, 10, digits)[:, None].astype(np.uint8)}
        held = {key: value for key, value in (held | changed).items() if value is not None}
        scipy.io.savemat(folder / f"{part}_32x32.mat", held, do_compression=True)


@pytest.mark.parametrize("folder", ["", "svhn", "SVHN"])
def test_svhn_is_read_from_every_folder(tmp_path, folder):
    write_svhn(tmp_path / folder)
    loaded = load("SVHN", tmp_path, val_split=0.25)
    assert loaded.train.images.flags.c_contiguous and loaded.train.labels.dtype == np.int64
    whole = load("SVHN", tmp_path)
    for split, count in ((whole.train, 12), (whole.test, 5)):
        images, digits = svhn_arrays(count)
        assert np.array_equal(split.images, images) and np.array_equal(split.labels, digits)
    assert not SETS["SVHN"].augment


def test_images_first_reorders_column_major_images_in_place():
    images = np.random.default_rng(0).integers(0, 256, (4100, 3, 2, 3), np.uint8)
    stored = np.asfortranarray(images.transpose(1, 2, 3, 0))
    found = svhn.images_first(stored)
    assert np.array_equal(found, images) and np.shares_memory(found, stored)


def bad_label(value):
    return {"y": np.array([[1]] * 11 + [[value]], np.uint8)}


SVHN_FAULTS = {
    "label 0": (bad_label(0), "label 0 is out of range, 1 to 10 expected"),
    "label 11": (bad_label(11), "label 11 is out of range, 1 to 10 expected"),
    "no labels": ({"y": None}, "bytes X of shape"),
    "fewer labels": ({"y": np.ones((11, 1), np.uint8)}, "bytes X of shape"),
    "a row of labels": ({"y": np.ones((1, 12), np.uint8)}, "bytes X of shape"),
    "images first": ({"X": np.ones((12, 32, 32, 3), np.uint8)}, "bytes X of shape"),
    "floats": ({"X": np.ones((32, 32, 3, 12))}, "bytes X of shape"),
    "text": ({"X": "no pixels"}, "bytes X of shape"),
    "nothing": ({"X": np.ones((32, 32, 3, 0), np.uint8), "y": np.ones((0, 1), np.uint8)}, "bytes X of shape"),
}


@pytest.mark.parametrize("fault", SVHN_FAULTS)
def test_error_for_a_faulty_svhn_file_names_the_file(tmp_path, fault):
    changed, message = SVHN_FAULTS[fault]
    write_svhn(tmp_path, **changed)
    with pytest.raises(UsageError, match=message) as caught:
        load("SVHN", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'train_32x32.mat'}: ")


@pytest.mark.parametrize("keep", [0, 100, 128, 140, 2000, -10])
def test_error_for_a_truncated_matlab_file_is_one_line(tmp_path, keep):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError) as caught:
        load("SVHN", tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_a_matlab_file_is_an_error(tmp_path):
    write_svhn(tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"<html>404 not found</html>" * 20)
    with pytest.raises(UsageError, match=r"train_32x32.mat: not a MATLAB file that can be read: "):
        load("SVHN", tmp_path)


def test_error_for_svhn_without_scipy_names_the_package_to_install(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageError, match="SVHN: scipy reads its MATLAB files and is not installed; pip install scipy"):
        load("SVHN", tmp_path)


def test_svhn_download_fetches_both_parts(tmp_path, monkeypatch):
    """torchvision's class downloads one part per call."""
    parts = []

    def construct(root, split, download):
        parts.append(split)
        if len(parts) == 2:
            write_svhn(Path(root))

    module = SimpleNamespace(datasets=SimpleNamespace(SVHN=construct))
    monkeypatch.setattr("utils.torch_compat.import_torchvision", lambda: module)
    assert len(load("SVHN", tmp_path, download=True).train) == 12 and parts == ["train", "test"]


def test_torchvision_downloads_to_the_file_names_that_the_readers_expect():
    from utils.torch_compat import import_torchvision

    sets = import_torchvision().datasets
    assert sets.CIFAR100.base_folder == "cifar-100-python"
    assert [sets.SVHN.split_list[part][1] for part in ("train", "test")] == ["train_32x32.mat", "test_32x32.mat"]


# --- real sets

REAL = os.environ.get("FEATHERWEIGHT_DATA", "")
PRESENT = {
    "CIFAR100": lambda: any(not location.missing_names() for location in cifar.CIFAR100.locations(Path(REAL))),
    "SVHN": lambda: any((Path(REAL) / sub / "train_32x32.mat").exists() for sub in ("", "svhn", "SVHN")),
}


@pytest.mark.parametrize("name", PRESENT)
def test_mean_and_std_equal_those_of_the_real_set(name, monkeypatch):
    if not REAL or not PRESENT[name]():
        pytest.skip(f"FEATHERWEIGHT_DATA names no folder with {name}")
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", 10_000)
    loaded = load(name, REAL)
    pixels = loaded.train.images[::7] / 255
    assert pixels.mean((0, 1, 2)) == pytest.approx(loaded.spec.mean, abs=5e-3)
    assert pixels.std((0, 1, 2)) == pytest.approx(loaded.spec.std, abs=5e-3)
    assert len(loaded.train) == (50_000 if name == "CIFAR100" else 73_257)
