"""Readers of the data sets: tiny files in every format and with every fault, and the real sets if present."""

import gzip
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import data
from data import SETS, load
from data.readers import cifar
from data.readers.digits import DIGITS_FILE
from data.splits import stratified
from utils.errors import UsageError

ROOT = Path(__file__).parents[2]
ROWS = 6  # images per CIFAR file in these tests
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


@pytest.fixture(autouse=True)
def _small_cifar(monkeypatch):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", ROWS)


# --- write each format


def idx(array, magic=None):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">I{array.ndim}I", magic or 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, train=7, test=3, compress=False):
    """Write the four files. Return (train images, train labels, test images, test labels)."""
    rng = np.random.default_rng(0)
    arrays = []
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        arrays += [rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count, np.uint8)]
        for kind, array in (("images-idx3", arrays[-2]), ("labels-idx1", arrays[-1])):
            content = gzip.compress(idx(array)) if compress else idx(array)
            (folder / f"{part}-{kind}-ubyte{'.gz' if compress else ''}").write_bytes(content)
    return arrays


def cifar_arrays():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (6, ROWS, 3072), np.uint8), rng.integers(0, 10, (6, ROWS))


def write_cifar_bin(root):
    planes, labels = cifar_arrays()
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, pixels, numbers in zip(CIFAR_NAMES, planes, labels, strict=True):
        content = np.concatenate([numbers[:, None].astype(np.uint8), pixels], axis=1).tobytes()
        (folder / f"{name}.bin").write_bytes(content)
    return planes, labels


def python2_pickle(pixels, labels):
    """Return a pickle with the opcodes of the official files: Python 2, its numpy, protocol 2, byte strings as keys."""
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    integer = lambda i: b"J" + struct.pack("<i", i)  # noqa: E731
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNN" + integer(-1) * 2 + b"K\0tb"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    raw = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    array += b"(K\1" + shape + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(integer(int(label)) for label in labels) + b"e"
    return b"\x80\2}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def python3_pickle(pixels, labels, protocol=2):
    return pickle.dumps({b"data": pixels, b"labels": [int(i) for i in labels], b"batch_label": b"x"}, protocol=protocol)


def write_cifar_py(root, encode=python2_pickle):
    planes, labels = cifar_arrays()
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, pixels, numbers in zip(CIFAR_NAMES, planes, labels, strict=True):
        (folder / name).write_bytes(encode(pixels, numbers))
    return planes, labels


def assert_cifar(loaded, planes, labels):
    images = planes.reshape(6, ROWS, 3, 32, 32).transpose(0, 1, 3, 4, 2)
    assert np.array_equal(loaded.train.images, images[:5].reshape(-1, 32, 32, 3))
    assert np.array_equal(loaded.test.images, images[5])
    assert np.array_equal(loaded.train.labels, labels[:5].ravel())
    assert np.array_equal(loaded.test.labels, labels[5])
    assert loaded.train.images.dtype == np.uint8 and loaded.train.images.flags.c_contiguous
    assert loaded.train.labels.dtype == np.int64 and loaded.val is None


# --- static properties and the bundled digits


def test_specs_hold_the_published_constants():
    assert SETS["MNIST"].mean == (0.1307,) and SETS["MNIST"].std == (0.3081,)
    assert SETS["FashionMNIST"].mean == (0.2860,) and SETS["FashionMNIST"].std == (0.3530,)
    assert SETS["CIFAR10"].mean == (0.491, 0.482, 0.447) and SETS["CIFAR10"].std == (0.247, 0.243, 0.262)
    assert SETS["CIFAR10"].in_shape == (3, 32, 32) and SETS["MNIST"].in_shape == (1, 28, 28)


def test_error_for_an_unknown_set_lists_all_sets():
    with pytest.raises(ValueError, match=r"'cifar' is unknown.*CIFAR10"):
        load("cifar", ".")


def test_importing_data_does_not_import_torch():
    code = "import data, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_digits_are_split_as_documented(tmp_path):
    digits = load("digits", tmp_path)
    assert digits.train.images.shape == (1437, 8, 8, 1) and digits.test.images.shape == (360, 8, 8, 1)
    assert digits.train.images.max() == 255 and len(np.unique(digits.train.images)) == 17
    assert np.bincount(digits.test.labels).tolist() == [36, 36, 36, 37, 36, 36, 36, 36, 35, 36]
    with np.load(DIGITS_FILE) as file:
        assert np.array_equal(stratified(file["labels"].astype(np.int64), 360, seed=1998), file["test"])
        held = np.sort(np.concatenate([digits.train.labels, digits.test.labels]))
        assert np.array_equal(held, np.sort(file["labels"]))
    assert DIGITS_FILE.stat().st_size < 100_000


def test_digits_mean_and_std_equal_those_of_the_training_split(tmp_path):
    pixels = load("digits", tmp_path).train.images / 255
    assert SETS["digits"].mean[0] == pytest.approx(pixels.mean(), abs=1e-5)
    assert SETS["digits"].std[0] == pytest.approx(pixels.std(), abs=1e-5)


# --- MNIST and FashionMNIST


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("folder", ["{0}/raw", "{1}/{0}/raw", "{1}"])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_idx_set_is_read_from_every_folder(tmp_path, name, folder, compress):
    written = write_mnist(tmp_path / folder.format(name, name.lower()), compress=compress)
    loaded = load(name, str(tmp_path))
    read = (loaded.train.images[..., 0], loaded.train.labels, loaded.test.images[..., 0], loaded.test.labels)
    for found, expected in zip(read, written, strict=True):
        assert np.array_equal(found, expected)
    assert loaded.train.images.shape == (7, 28, 28, 1) and loaded.train.labels.dtype == np.int64


LABELS = [0, 1, 2, 3, 4, 5, 9]
IDX_FAULTS = {
    "truncated images": (0, idx(np.zeros((7, 28, 28)))[:-1], "declares 5488 bytes of data, the file holds only 5487"),
    "too long": (0, idx(np.zeros((7, 28, 28))) + b"x", "the file holds more"),
    "labels where images belong": (0, idx(LABELS), "starts with 00000801, but idx3 files with 00000803"),
    "floats": (0, idx(np.zeros((7, 28, 28)), magic=0x0D03), "starts with 00000d03"),
    "another size": (0, idx(np.zeros((7, 28, 27))), "images of 28x27, 28x28 expected"),
    "no images": (0, idx(np.zeros((0, 28, 28))), "holds no data"),
    "header cut off": (0, idx(np.zeros((7, 28, 28)))[:9], "holds no data: its header ends early"),
    "empty file": (0, b"", "starts with"),
    "absurd count": (0, struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28), "cannot be read|declares"),
    "largest counts": (
        0,
        struct.pack(">4I", 0x0803, *[2**32 - 1] * 3) + b"x" * 99,
        "declares 79,228,162,458,924,105,385,300,197,375",
    ),
    "more than memory": (0, struct.pack(">4I", 0x0803, 2**20, 2**12, 2**12) + b"x" * 99, "declares 17,592,186,044,416"),
    "largest count of labels": (1, struct.pack(">2I", 0x0801, 2**32 - 1) + b"x" * 99, "declares 4,294,967,295"),
    "label out of range": (1, idx([0, 1, 2, 10, 4, 5, 6]), "label 10 is out of range, 0 to 9"),
    "fewer labels": (1, idx([0, 1, 2]), "holds 7 images, but .* holds 3 labels"),
    "test part truncated": (2, idx(np.zeros((3, 28, 28)))[:100], "declares 2352 bytes"),
}


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_error_for_a_faulty_idx_file_names_the_file(tmp_path, fault, compress):
    which, content, message = IDX_FAULTS[fault]
    write_mnist(tmp_path / "MNIST/raw", compress=compress)
    path = tmp_path / "MNIST/raw" / f"{IDX_FILES[which]}{'.gz' if compress else ''}"
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(UsageError, match=message) as caught:
        load("MNIST", tmp_path)
    assert str(path) in str(caught.value)


def broken_gzips():
    whole = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (7, 28, 28))))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    return {
        "cut": whole[:-200],
        "no gzip": b"<html>404</html>",
        "crc": whole[:-6] + b"abcdef",
        "flip": bytes(flipped),
        "deflate": whole[:10] + b"\xff" * 50,
    }


@pytest.mark.parametrize("fault", broken_gzips())
def test_error_for_a_corrupt_gzip_file_names_the_file(tmp_path, fault):
    write_mnist(tmp_path / "MNIST/raw", compress=True)
    path = tmp_path / "MNIST/raw" / f"{IDX_FILES[0]}.gz"
    path.write_bytes(broken_gzips()[fault])
    with pytest.raises(UsageError, match=r"cannot be read|starts with|declares") as caught:
        load("MNIST", tmp_path)
    assert str(path) in str(caught.value)


# --- CIFAR-10


@pytest.mark.parametrize("folder", ["", "cifar10"])
@pytest.mark.parametrize("write", [write_cifar_bin, write_cifar_py])
def test_cifar10_is_read_from_every_folder_and_archive_format(tmp_path, write, folder):
    written = write(tmp_path / folder)
    assert_cifar(load("CIFAR10", tmp_path), *written)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_batches_repickled_by_python3_are_read(tmp_path, protocol):
    written = write_cifar_py(tmp_path, lambda pixels, labels: python3_pickle(pixels, labels, protocol))
    assert_cifar(load("CIFAR10", tmp_path), *written)


@pytest.mark.filterwarnings("ignore")
def test_the_python2_pickle_of_these_tests_is_valid():
    planes, labels = cifar_arrays()
    batch = pickle.loads(python2_pickle(planes[0], labels[0]), encoding="bytes")
    assert np.array_equal(batch[b"data"], planes[0]) and batch[b"labels"] == labels[0].tolist()


@pytest.mark.parametrize("change", [-1, 1, 3073])
def test_cifar_binary_file_of_another_size_is_refused(tmp_path, change):
    write_cifar_bin(tmp_path)
    path = tmp_path / "cifar-10-batches-bin/data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(UsageError, match=f"data_batch_3.bin: {ROWS * 3073 + change} bytes, {ROWS * 3073} expected"):
        load("CIFAR10", tmp_path)


def test_cifar_binary_label_out_of_range_is_refused(tmp_path):
    write_cifar_bin(tmp_path)
    path = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073] = 10
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"test_batch.bin: label 10 is out of range, 0 to 9"):
        load("CIFAR10", tmp_path)


PIXELS, NUMBERS = np.zeros((ROWS, 3072), np.uint8), [1] * ROWS
WRONG_WIDTH = python2_pickle(PIXELS[:, :3000], NUMBERS).replace(struct.pack("<i", 3000), struct.pack("<i", 3072))
PICKLE_FAULTS = {
    "truncated": (python2_pickle(PIXELS, NUMBERS)[:-500], "not a CIFAR10 file"),
    "empty": (b"", "not a CIFAR10 file"),
    "html": (b"<html>404</html>", "not a CIFAR10 file"),
    "a list": (pickle.dumps([1, 2]), "holds a list, a dict expected"),
    "no labels": (pickle.dumps({b"data": PIXELS}, protocol=2), "list 'labels' of integers expected"),
    "words as labels": (pickle.dumps({b"data": PIXELS, b"labels": ["a"] * ROWS}, protocol=2), "of integers expected"),
    "bytes as data": (pickle.dumps({b"data": b"\0", b"labels": NUMBERS}, protocol=2), "an array 'data'"),
    "fewer labels": (python2_pickle(PIXELS, NUMBERS[1:]), f"{ROWS - 1} labels and an array"),
    "fewer images": (python2_pickle(PIXELS[1:], NUMBERS), rf"shape \({ROWS - 1}, 3072\)"),
    "floats": (python3_pickle(PIXELS.astype(np.float32), NUMBERS), "dtype f4"),
    "fewer bytes than the shape says": (WRONG_WIDTH, f"; {ROWS} labels and shape .* expected"),
    "signed bytes": (python3_pickle(PIXELS.astype(np.int8), NUMBERS), "dtype i1"),
    "another shape": (python3_pickle(PIXELS.reshape(3072, ROWS), NUMBERS), rf"shape \(3072, {ROWS}\)"),
    "columns first": (python3_pickle(np.asfortranarray(PIXELS), NUMBERS), f"; {ROWS} labels and shape .* expected"),
    "label 10": (python2_pickle(PIXELS, [10, *NUMBERS[1:]]), "label 10 is out of range"),
    "label -1": (python2_pickle(PIXELS, [-1, *NUMBERS[1:]]), "label -1 is out of range"),
    "fine-grained keys": (pickle.dumps({b"data": PIXELS, b"fine_labels": NUMBERS}, protocol=2), "'labels'"),
}


@pytest.mark.parametrize("fault", PICKLE_FAULTS)
def test_error_for_a_faulty_cifar_pickle_names_the_file(tmp_path, fault):
    content, message = PICKLE_FAULTS[fault]
    write_cifar_py(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load("CIFAR10", tmp_path)
    assert str(path) in str(caught.value)


class Call:
    """Object whose pickle calls function(*arguments) when loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def hostile_pickles(marker):
    import _codecs

    touch = f"open({str(marker)!r}, 'w')"
    return {
        "system": pickle.dumps(Call(os.system, f"touch {marker}"), protocol=2),
        "exec": pickle.dumps(Call(exec, touch), protocol=2),
        "eval in the labels": pickle.dumps({b"data": PIXELS, b"labels": Call(eval, touch)}, protocol=2),
        "subprocess": pickle.dumps(Call(subprocess.getoutput, f"touch {marker}"), protocol=4),
        "numpy load": pickle.dumps(Call(np.fromfile, str(marker)), protocol=2),
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "path": pickle.dumps(Path("x"), protocol=2),
        "another codec": pickle.dumps(Call(_codecs.encode, "x", "zlib_codec"), protocol=2),
    }


@pytest.mark.parametrize("attack", hostile_pickles(""))
def test_hostile_pickle_is_refused_and_runs_no_code(tmp_path, attack):
    marker = tmp_path / "marker"
    write_cifar_py(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_1"
    path.write_bytes(hostile_pickles(marker)[attack])
    with pytest.raises(UsageError) as caught:
        load("CIFAR10", tmp_path)
    file, _, reason = str(caught.value).partition(": ")
    assert file == str(path) and ("nothing was run" in reason or "codec 'zlib_codec' refused" in reason)
    assert not marker.exists()


def test_hostile_pickle_runs_code_in_the_standard_unpickler(tmp_path):
    pickle.loads(hostile_pickles(tmp_path / "marker")["exec"])
    assert (tmp_path / "marker").exists()


# --- missing sets, incomplete sets, folders in place of files


def test_error_for_a_missing_set_names_folders_files_and_download(tmp_path):
    with pytest.raises(UsageError) as caught:
        load("MNIST", tmp_path)
    for word in ("MNIST/raw", "mnist/MNIST/raw", *IDX_FILES, "--download"):
        assert word in str(caught.value)
    with pytest.raises(UsageError) as caught:
        load("CIFAR10", tmp_path / "nowhere")
    for word in ("cifar10/cifar-10-batches-py", "cifar-10-batches-bin", "data_batch_5.bin", "test_batch", "--download"):
        assert word in str(caught.value)


def test_error_for_an_incomplete_set_names_the_missing_file(tmp_path):
    write_cifar_bin(tmp_path)
    (tmp_path / "cifar-10-batches-bin/data_batch_4.bin").unlink()
    with pytest.raises(UsageError, match=r"cifar-10-batches-bin is not complete: data_batch_4.bin not found"):
        load("CIFAR10", tmp_path)
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / IDX_FILES[1]).unlink()
    with pytest.raises(UsageError, match=f"mnist is not complete: {IDX_FILES[1]} not found"):
        load("MNIST", tmp_path)


def test_a_complete_archive_format_is_preferred_to_an_incomplete_one(tmp_path):
    write_cifar_bin(tmp_path)
    (tmp_path / "cifar-10-batches-bin/test_batch.bin").unlink()
    written = write_cifar_py(tmp_path / "cifar10")
    assert_cifar(load("CIFAR10", tmp_path), *written)


def test_error_names_a_folder_in_place_of_a_file(tmp_path):
    write_cifar_bin(tmp_path)
    write_cifar_py(tmp_path / "python")
    write_mnist(tmp_path / "MNIST/raw")
    folders = {
        ("CIFAR10", tmp_path): tmp_path / "cifar-10-batches-bin/data_batch_2.bin",
        ("CIFAR10", tmp_path / "python"): tmp_path / "python/cifar-10-batches-py/test_batch",
        ("MNIST", tmp_path): tmp_path / "MNIST/raw" / IDX_FILES[3],
    }
    for (name, root), path in folders.items():
        path.unlink()
        path.mkdir()
        with pytest.raises(UsageError, match="cannot be read: Is a directory") as caught:
            load(name, root)
        assert str(path) in str(caught.value)


# --- download


def fake_torchvision(monkeypatch, download):
    """Replace torchvision. Every data set class calls download(root). Return the list of the roots."""
    calls = []

    def construct(root, train, download):
        assert download and not train
        calls.append(root)
        fetch(Path(root))

    fetch = download
    module = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=construct, MNIST=construct, FashionMNIST=construct))
    monkeypatch.setattr("utils.torch_compat.import_torchvision", lambda: module)
    return calls


def test_a_set_is_downloaded_only_if_missing(tmp_path, monkeypatch):
    calls = fake_torchvision(monkeypatch, lambda root: write_cifar_py(root))
    first = load("CIFAR10", tmp_path, download=True)
    assert_cifar(first, *cifar_arrays())
    load("CIFAR10", tmp_path, download=True)
    assert calls == [str(tmp_path)]


@pytest.mark.parametrize(
    "failure",
    [OSError("no\n route"), RuntimeError("Error downloading\n x"), ImportError("No module named 'torchvision'")],
)
def test_error_of_a_failed_download_is_one_line(tmp_path, monkeypatch, failure):
    def fail(root):
        raise failure

    fake_torchvision(monkeypatch, fail)
    with pytest.raises(UsageError, match=r"FashionMNIST: the download into .* failed: ") as caught:
        load("FashionMNIST", tmp_path, download=True)
    assert "\n" not in str(caught.value)


def test_a_download_without_files_is_an_error(tmp_path, monkeypatch):
    fake_torchvision(monkeypatch, lambda root: None)
    with pytest.raises(UsageError, match="was not found"):
        load("MNIST", tmp_path, download=True)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_imports_with_or_without_its_operators():
    from utils.torch_compat import import_torchvision

    assert import_torchvision().datasets.CIFAR10.base_folder == "cifar-10-batches-py"


# --- full size and real sets


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_reading_a_full_size_cifar10_takes_less_than_300_MB(tmp_path):
    """Reading, holding out and batching the 184 MB of CIFAR-10 take less than 300 MB at the peak.

    ru_maxrss would not do: on Linux a child inherits the peak of its parent, here of the test process.
    """
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = np.full((10_000, 3073), 9, np.uint8)
    for name in CIFAR_NAMES:
        rows.tofile(folder / f"{name}.bin")
    code = """
        import itertools, pathlib, re, sys, torch, data
        from data.device_batches import DeviceBatches
        def kilobytes(field):
            return int(re.search(field + ":[^0-9]*([0-9]+)", pathlib.Path("/proc/self/status").read_text())[1])
        before = kilobytes("VmRSS")
        images = data.load("CIFAR10", sys.argv[1], val_split=0.1)
        batches = DeviceBatches(images.train, images.spec, device="cpu", batch_size=128, seed=0, train=True)
        assert sum(len(labels) for _, labels in itertools.islice(batches.epoch(0), 20)) == 2560
        print((kilobytes("VmHWM") - before) * 1024 / 1e6)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 184 < float(done.stdout) < 300


REAL = os.environ.get("FEATHERWEIGHT_DATA")
FIRST_LABELS = {"MNIST": (5, 7), "FashionMNIST": (9, 9), "CIFAR10": (6, 3)}


@pytest.mark.skipif(not REAL, reason="FEATHERWEIGHT_DATA names no folder with the real sets")
@pytest.mark.parametrize("name", FIRST_LABELS)
def test_real_set_has_the_published_sizes_labels_and_pixel_statistics(name, monkeypatch):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", 10_000)
    loaded = data.load(name, REAL)
    assert len(loaded.train) == (50_000 if name == "CIFAR10" else 60_000) and len(loaded.test) == 10_000
    assert (loaded.train.labels[0], loaded.test.labels[0]) == FIRST_LABELS[name]
    assert np.bincount(loaded.test.labels).min() > 890
    pixels = loaded.train.images[::7] / 255  # an odd step, because MNIST alternates between two groups of writers
    assert pixels.mean((0, 1, 2)) == pytest.approx(loaded.spec.mean, abs=5e-3)
    assert pixels.std((0, 1, 2)) == pytest.approx(loaded.spec.std, abs=5e-3)
