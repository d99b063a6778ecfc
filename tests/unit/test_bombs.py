"""Files that declare more data than they hold are refused before memory is allocated."""

import gzip
import pickle
import re
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scipy.io
import torch

import data
from data.image_views import decode
from data.readers import cifar
from models.pruning import compact
from scripts.parts import export_packed
from tests.folders import write_set
from tests.unit.test_data_sources import idx, write_mnist
from utils.errors import RunFailed, UsageError
from utils.records import checkpoints

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
ZEROS = {"model": {"a": torch.zeros(32 * MIB)}, "epoch": 1, "step": 0}  # 128 MiB


def deflated(path, content):
    """Write a compressed checkpoint, a thousandth of its usual size."""
    torch.save(content, path.with_name("plain.pt"))
    with zipfile.ZipFile(path.with_name("plain.pt")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in plain.infolist():
            file.writestr(entry.filename, plain.read(entry))
    path.with_name("plain.pt").unlink()


def overlapping(path, content):
    """Write a checkpoint whose zip directory lists one block of bytes many times."""
    torch.save(content, path)
    with zipfile.ZipFile(path, "a") as file:
        (block,) = (entry for entry in file.infolist() if entry.filename.endswith("/data/0"))
        for i in range(1, 200):
            again = zipfile.ZipInfo(f"{block.filename[:-1]}{i}")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, name, getattr(block, name))
            file.filelist.append(again)
        file._didModify = True


def legacy(path, numel):
    """Write a checkpoint in torch's older format that declares a storage of `numel` numbers without data."""
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    at = whole.index(b"K\x03N", whole.index(b"storage"))
    path.write_bytes(whole[:at] + b"\x8a\x08" + struct.pack("<q", numel) + whole[at + 2 :])


BOMBS = {
    "compressed": (lambda path: deflated(path, ZEROS), "is compressed, which torch.save never does"),
    "overlapping": (lambda path: overlapping(path, {"a": torch.ones(MIB)}), "declares .* bytes of data"),
    "older format": (lambda path: legacy(path, 10**13), "declares 10,000,000,000,... bytes of data, but has only"),
    "older format, small": (lambda path: legacy(path, 10**6), "declares 1,000,0.. bytes of data, but has only"),
    "repeated": (
        lambda path: torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path),
        "tensor of 1,000,000,000,000 ",
    ),
    "repeated, older format": (
        lambda path: torch.save({"a": [torch.ones(1).expand(10**9)]}, path, _use_new_zipfile_serialization=False),
        "tensor of 1,000,000,000 numbers",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_checkpoint_that_declares_too_much_data_is_refused(tmp_path, bomb):
    make, message = BOMBS[bomb]
    path = tmp_path / "net.pt"
    make(path)
    for read in (checkpoints.read, compact.load_compact, export_packed.read):
        with pytest.raises(UsageError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("bomb", ["compressed", "overlapping", "repeated"])
def test_a_checkpoint_of_a_run_that_declares_too_much_data_is_refused(tmp_path, bomb):
    make, message = BOMBS[bomb]
    make(tmp_path / "last.pt")
    with pytest.raises(UsageError, match=message):
        checkpoints.load(tmp_path / "last.pt")


def test_regular_checkpoints_are_read(tmp_path):
    shared = torch.ones(100)
    content = {"a": shared, "b": shared[:50], "c": shared.view(10, 10).t(), "d": [shared] * 3, "e": torch.empty(0)}
    loop = []
    content["f"] = [loop, loop]
    for new in (True, False):
        torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=new)
        assert torch.equal(checkpoints.read(tmp_path / "net.pt")["c"], content["c"])


def test_a_compact_network_with_an_absurd_layer_size_is_refused(tmp_path):
    path = tmp_path / "small.pt"
    build = {"name": "MLP", "num_classes": 10, "in_shape": (1, 8, 8), "hidden": [10**12]}
    torch.save({"kind": compact.KIND, "build": build, "state": {}, "norms": {}}, path)
    with pytest.raises(UsageError, match="is not a compact network"):
        compact.load_compact(path)


def test_packed_weights_with_too_few_codes_are_refused():
    packed = export_packed.pack_powers(torch.ones(4), 4, zero_code=True)
    with pytest.raises(ValueError, match="1,000,000,000,000 weights of 4 bits have 2 bytes"):
        export_packed.values(packed | {"shape": [10**6, 10**6]}, 4)


# --- data sets


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (10**6, 28, 28), (2**31, 28, 28)], ids=str)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_an_idx_file_whose_header_declares_too_much_data_is_refused(tmp_path, shape, compress):
    write_mnist(tmp_path, compress=compress)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if compress else ''}"
    content = struct.pack(">4I", 0x0803, *shape) + bytes(1000)
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(UsageError, match=r"declares .* bytes of data") as caught:
        data.load("MNIST", tmp_path)
    assert str(path) in str(caught.value)


def png(width, height):
    """Return a PNG file that declares this size and holds little data."""
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10_000)))]
    parts = [
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c))
        for kind, c in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(65_000, 65_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)], ids=str)
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "ppm"])
@pytest.mark.filterwarnings("error")
def test_an_image_whose_header_declares_too_many_pixels_is_refused(tmp_path, size, ending):
    path = tmp_path / f"large.{ending}"
    if ending == "png":
        path.write_bytes(png(*size))
    elif ending == "ppm":
        path.write_bytes(b"P6 %d %d 255\n" % size)
    else:
        PIL.Image.new("L", (8, 8)).save(path)
        whole = path.read_bytes()
        if ending == "jpg":
            at, pack = whole.index(b"\xff\xc0") + 5, struct.pack(">2H", *(min(side, 65_535) for side in size))
        else:
            at, pack = 18, struct.pack("<2i", *size)
        path.write_bytes(whole[:at] + pack + whole[at + len(pack) :])
    with pytest.raises(RunFailed, match="cannot be decoded: Image size") as caught:
        decode(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_a_run_names_an_image_that_is_a_decompression_bomb(program, config, tmp_path, workers):
    write_set(tmp_path / "set")
    for part in ("train/bee/000.png", "val/bee/000.png"):
        (tmp_path / "set" / part).write_bytes(png(12_000, 9_000))
    words = ("--set", "ImageFolder", "--data", tmp_path / "set", "--image-size", 8, "--workers", workers)
    code, _, err = program("--config", config(epochs=1, batch_size=4), *words)
    assert code == 1 and err.count("\n") == 1 and "Traceback" not in err
    assert "train/bee/000.png: cannot be decoded: Image size (108000000 pixels) exceeds limit" in err


# --- memory


READING = """
    import re, sys
    from pathlib import Path
    import scipy.io, torch, data
    from utils.errors import UsageError
    from utils.records import checkpoints
    root = Path(sys.argv[1])
    def peak():
        return int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
    for read in (
        lambda: checkpoints.read(root / "net.pt"),
        lambda: checkpoints.load(root / "net.pt"),
        lambda: data.load("MNIST", root),
        lambda: data.load("SVHN", root),
    ):
        before = peak()
        try:
            read()
        except UsageError as error:
            print(round(peak() - before), error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_refused_files_allocate_little_memory(tmp_path):
    """The files are small, but a checkpoint would take 128 MiB, a gz with a wrong header 64 MiB and SVHN 123 MB."""
    deflated(tmp_path / "net.pt", ZEROS)
    write_mnist(tmp_path, compress=True)
    content = gzip.compress(idx(np.zeros((7, 28, 28))) + bytes(64 * MIB))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    for part, count in (("train", 40_000), ("test", 2)):
        held = {"X": np.zeros((32, 32, 3, count), np.uint8), "y": np.ones((2, 1), np.uint8)}
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", held, do_compression=True)
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < MIB
    command = [sys.executable, "-c", textwrap.dedent(READING), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    messages = (
        "is compressed",
        "is compressed",
        "the file holds more",
        "declares .* bytes of data, too many for its size of",
    )
    assert all(re.search(part, line) for part, line in zip(messages, lines, strict=True)), lines
    assert all(int(line.split()[0]) < 20 for line in lines), lines


@pytest.mark.parametrize("read", [checkpoints.read, lambda path: [*cifar.read_pickle(cifar.CIFAR10, path, 1)]])
def test_a_pickle_with_a_high_memo_index_allocates_little_memory(tmp_path, read):
    path = tmp_path / "small"
    path.write_bytes(b"\x80\x02Nr" + struct.pack("<I", 2**25) + b".")  # a pickle of None, stored under memo index 2**25
    tracemalloc.start()
    with pytest.raises(UsageError, match="small"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MIB


def test_a_pickle_inside_a_checkpoint_is_read_as_data(tmp_path):
    """The inner pickle is a string. It is not executed while the sizes of the outer pickle are read."""
    inner = pickle.dumps({"a": 1}, protocol=2)
    torch.save(
        {"a": torch.ones(3), "b": inner.decode("latin1")}, tmp_path / "net.pt", _use_new_zipfile_serialization=False
    )
    assert checkpoints.read(tmp_path / "net.pt")["b"] == inner.decode("latin1")
