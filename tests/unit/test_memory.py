"""Out of memory ends a program with exit code 1 and one line that names the option to reduce."""

import errno
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from data.image_views import decode
from scripts import export, prune
from trainers import experiment, loop
from trainers.checkpoint_sources import read_network
from utils import exit_codes, out_of_memory
from utils.errors import RunFailed
from utils.records import checkpoints

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds after which a test fails instead of hanging the suite
OF_TORCH = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "83886080 bytes. Error code 12 (Cannot allocate memory)\nframe #0: more"
)
OF_NUMPY = np._core._exceptions._ArrayMemoryError((40_000_000,), np.dtype("float64"))
ERRORS = [
    (OF_TORCH, "out of memory: 80.0 MiB more were not free"),
    (OF_NUMPY, "out of memory: Unable to allocate 305. MiB for an array with shape (40000000,) and data type float64"),
    (MemoryError(), "out of memory"),
    (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc"),
    (RuntimeError("could not create a primitive"), "out of memory: could not create a primitive"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: [Errno 12] Cannot allocate memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "CUDA out of memory. Tried to "),
    (ImportError("x.so: failed to map segment from shared object"), "out of memory: x.so: failed to map"),
    (RuntimeError("can't start new thread"), "out of memory, or of the threads that a user may start: can't start"),
]


@pytest.mark.parametrize(("error", "line"), ERRORS, ids=[line for _, line in ERRORS])
def test_every_out_of_memory_error_ends_with_one_line_and_exit_code_1(error, line, capsys):
    def work():
        raise error

    assert exit_codes.run_program(work) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"failed: {line}") and printed.count("\n") == 1 and "enforce" not in printed


@pytest.mark.parametrize(
    "error", [RuntimeError("could not create a primitive descriptor for a convolution"), ImportError("no name x")]
)
def test_similar_errors_of_the_program_are_re_raised(error):
    def work():
        raise error

    assert not out_of_memory.is_out_of_memory(error)
    with pytest.raises(type(error)):
        exit_codes.run_program(work)


def fails(*_args, **_more):
    raise OF_TORCH


def one_line(result):
    code, _, err = result
    assert code == 1 and err.count("\n") == 1, err
    return err


def test_out_of_memory_in_training_names_batch_size(program, config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", fails)
    err = one_line(program("--config", config()))
    assert err.startswith("failed: out of memory: 80.0 MiB more were not free, in epoch 1/2; use a smaller batch_size")
    assert "image_size" in err
    status = json.loads((tmp_path / "runs/ticket/prune-rate=0.5/ticket/status.json").read_text())
    assert status["status"] == "failed" and "batch_size" in status["reason"]


def test_out_of_memory_in_an_evaluation_names_test_batch_size(program, config, monkeypatch):
    monkeypatch.setattr(loop, "train_one_epoch", lambda *_: True)
    monkeypatch.setattr(torch.nn.Linear, "forward", fails)
    monkeypatch.setattr(loop, "metrics_of", lambda sums: loop.Metrics(*sums[:3]))
    err = one_line(program("--config", config(conv_type="DenseConv", freeze_weights=None, prune_rate=None)))
    assert ", in an evaluation; use a smaller test_batch_size, " in err and "image_size" in err


@pytest.mark.parametrize("error", [OF_TORCH, OF_NUMPY, MemoryError()], ids=["torch", "numpy", "python"])
@pytest.mark.parametrize("name", ["load_set", "assemble"])
def test_out_of_memory_in_preparation_starts_no_run(program, config, tmp_path, monkeypatch, name, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(experiment, name, fail)
    assert one_line(program("--config", config())).startswith("failed: out of memory")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("error", [OF_TORCH, MemoryError()], ids=["torch", "python"])
def test_out_of_memory_while_a_checkpoint_is_read_ends_with_one_line(
    program, config, tmp_path, monkeypatch, capsys, error
):
    program("--config", config(), "--epochs", 1)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"

    def fail(*_args, **_more):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    one_line(program("--config", config(), "--pretrained", run))
    assert "last.pt cannot be read: out of memory" in one_line(program("--resume", run, "--evaluate"))
    for main, words in ((prune.main, [str(run)]), (export.main, ["shift", str(run), "out"])):
        capsys.readouterr()
        assert main(words) == 1 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RunFailed, match="out of memory"):
        read_network(str(run))
    with pytest.raises(RunFailed, match="out of memory"):
        checkpoints.load(run / "checkpoints/last.pt")


CAPPED = """
    import resource, sys
    import main
    from trainers import experiment

    def fit(*given, real=experiment.fit):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limit = used + int(sys.argv[1]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return real(*given)

    experiment.fit = fit
    sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("left", [0, *(pytest.param(mebibytes, marks=pytest.mark.slow) for mebibytes in (4, 8, 16))])
def test_a_full_address_space_ends_with_one_line(config, tmp_path, left):
    path = config(arch="Conv4", batch_size=1400, epochs=1)
    words = ["--config", path, "--log-dir", tmp_path / "runs", "--results", tmp_path / "results.csv"]
    command = [sys.executable, "-c", textwrap.dedent(CAPPED), str(left), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr.count("\n")) in ([(1, 1)] if left == 0 else [(1, 1), (0, 0)]), done.stderr
    assert done.returncode == 0 or done.stderr.startswith("failed: out of memory")


@pytest.mark.parametrize("error", [OF_TORCH, OF_NUMPY, MemoryError()], ids=["torch", "numpy", "python"])
def test_out_of_memory_while_a_network_is_built_or_a_set_is_read_ends_with_one_line(
    program, config, monkeypatch, error
):
    def fail(*_args, **_more):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("models.initial.initial_scores", fail)
        patched.setattr("models.constraints.subnet.initial_scores", fail)
        assert one_line(program("--config", config())).startswith("failed: out of memory")
    monkeypatch.setattr(np, "setdiff1d", fail)
    assert one_line(program("--config", config())).startswith("failed: out of memory")


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError()], ids=repr)
def test_an_out_of_memory_error_in_image_decoding_is_re_raised(monkeypatch, tmp_path, error):
    (tmp_path / "a.png").write_bytes(b"")

    def fail(_):
        raise error

    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(type(error)) as caught:
        decode(str(tmp_path / "a.png"))
    assert caught.value is error
