"""WorkerBatches: yielded images and labels, and start and end of the worker processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import data
from data import SETS, Augmentation, make_batches, spec, worker_batches
from data import workers as processes
from data.device_batches import DeviceBatches
from data.worker_batches import WorkerBatches
from tests.folders import REAL, pictures, write_set, write_split
from utils.errors import RunFailed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of three classes with 4 training and 2 validation images each. Two classes are PNG, one is JPEG."""
    root = tmp_path_factory.mktemp("set")
    write_set(root)
    for path in (root / "train/bee").iterdir():
        PIL.Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    return root


def batches_of(root, *, image_size=24, train=True, part=None, **changed):
    loaded = data.load("ImageFolder", root, image_size=image_size)
    arguments = {"device": "cpu", "batch_size": 5, "seed": 1, "train": train} | changed
    return make_batches(getattr(loaded, part or ("train" if train else "test")), loaded.spec, **arguments)


def pixels(batches, epoch=0):
    """Return (images in 0..1 (n, height, width, channels), labels) of a whole epoch."""
    images, labels = (torch.cat(parts) for parts in zip(*batches.epoch(epoch), strict=True))
    mean, std = (torch.tensor(v) for v in (batches.spec.mean, batches.spec.std))
    return (images.permute(0, 2, 3, 1) * std + mean).numpy(), labels.numpy()


def workers_of(batches):
    return batches.workers.processes


# --- images and labels


def test_evaluation_resizes_and_crops_the_centre_in_order(folder):
    images, labels = pixels(batches_of(folder, train=False, image_size=28))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    for i, image in enumerate(images):
        whole = PIL.Image.fromarray(pictures()[15 + i]).resize(
            (32, 32), PIL.Image.Resampling.BILINEAR
        )  # 28 x 256 / 224
        assert np.abs(image * 255 - np.asarray(whole)[2:30, 2:30]).max() < 0.01


def test_images_of_any_shape_are_cropped_to_one_size(tmp_path):
    for i, (width, height) in enumerate([(40, 20), (9, 33), (300, 200)]):
        for part in ("train", "val"):
            path = tmp_path / part / "x" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (width, height), (i, 100, 200)).save(path)
    for train in (True, False):
        images, _ = pixels(batches_of(tmp_path, train=train))
        assert images.shape == (3, 24, 24, 3)
        assert sorted(np.round(images[:, 0, 0] * 255).astype(int).tolist()) == [[i, 100, 200] for i in range(3)]


def test_training_crops_and_flips_each_image_at_random_in_each_epoch(tmp_path):
    """The images are a ramp from left to right. Its slope shows the flip, its span the width of the crop."""
    ramp = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    for i in range(60):
        for part in ("train/x", "val/x"):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(ramp).save(tmp_path / part / f"{i:02}.png")
    batches = batches_of(tmp_path, batch_size=60)
    first, second = (pixels(batches, epoch)[0][:, 12, :, 0] for epoch in (0, 1))
    span = np.abs(first[:, -1] - first[:, 0])
    assert span.min() < 0.3 < 0.5 < span.max() < 0.7 and len(np.unique(span.round(3))) > 20
    assert 15 < (first[:, -1] < first[:, 0]).sum() < 45
    assert not np.allclose(np.sort(first.ravel()), np.sort(second.ravel()))


def test_each_image_keeps_its_label(tmp_path):
    for number, name in enumerate("abc"):
        for part in ("train", "val"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(5):
                PIL.Image.new("RGB", (30, 30), (number * 50,) * 3).save(tmp_path / part / name / f"{i}.png")
    for train in (True, False):
        images, labels = pixels(batches_of(tmp_path, train=train))
        assert np.array_equal(np.round(images[:, 5, 5, 0] * 255).astype(int), labels * 50)
    assert labels.tolist() != pixels(batches_of(tmp_path))[1].tolist()


def test_batches_have_the_layout_of_device_batches(folder):
    for train in (True, False):
        batches = batches_of(folder, train=train, image_size=16)
        sizes = []
        for images, labels in batches.epoch(0):
            assert images.shape == (len(labels), 3, 16, 16) and images.dtype == torch.float32
            assert images.is_contiguous(memory_format=torch.channels_last) and labels.dtype == torch.int64
            sizes.append(len(labels))
        assert sizes == ([5, 5, 2] if train else [5, 1]) and len(batches) == len(sizes)
        assert batches.samples == sum(sizes)


def test_limit_and_one_batch_shorten_the_epoch(folder):
    labels = pixels(batches_of(folder))[1].tolist()
    assert pixels(batches_of(folder, limit=2))[1].tolist() == labels[:10]
    batches = batches_of(folder, one_batch=True)
    first, second = (pixels(batches, epoch) for epoch in (0, 1))
    assert first[1].tolist() == second[1].tolist() == labels[:5] and not np.array_equal(first[0], second[0])


def test_the_global_generator_is_neither_read_nor_advanced(folder):
    before = torch.get_rng_state()
    for workers in (0, 1):
        first = pixels(batches_of(folder, workers=workers))[0]
        assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert np.array_equal(pixels(batches_of(folder))[0], first)


@pytest.mark.parametrize(("name", "kind"), [("CIFAR10", DeviceBatches), ("BigCIFAR10", WorkerBatches)])
def test_an_array_is_batched_on_the_device_unless_images_need_resizing_or_augmix(name, kind):
    split, changed = data.Split(pictures(), np.arange(30)), {"device": "cpu", "batch_size": 4, "seed": 0}
    set_spec = spec(name, ".")
    for train in (True, False):
        assert type(make_batches(split, set_spec, train=train, **changed)) is kind
    mixed = Augmentation(augmix=True)
    assert type(make_batches(split, set_spec, train=True, augmentation=mixed, **changed)) is WorkerBatches
    assert type(make_batches(split, set_spec, train=False, augmentation=mixed, **changed)) is kind
    images, _ = next(make_batches(split, set_spec, train=True, **changed).epoch(0))
    assert images.shape == (4, *SETS[name].in_shape)


# --- files that cannot be decoded


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_broken_image_ends_the_epoch_with_an_error_of_one_line(tmp_path, workers):
    write_split(write_set(tmp_path) / "train", 1, classes=("dog",))
    write_split(tmp_path / "val", 1, classes=("dog",))
    path = tmp_path / "train/dog/000.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunFailed, match="cannot be decoded: ") as caught:
        list(batches_of(tmp_path, workers=workers).epoch(0))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- processes


def test_workers_started_without_fork_yield_the_same_batches(folder, monkeypatch):
    """Such workers import torchvision through utils.torch_compat, also if its compiled operators are missing.

    forkserver pickles the arguments of a worker as spawn does, and is faster.
    """
    monkeypatch.setattr(processes, "START_METHOD", "forkserver")
    changed = {"augmentation": Augmentation(augmix=True, jsd=True)}
    alone, helped = (list(batches_of(folder, workers=w, **changed).epoch(2)) for w in (0, 1))
    for (images, labels), (others, other_labels) in zip(alone, helped, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_workers_persist_over_epochs(folder):
    batches = batches_of(folder, workers=2)
    first, ids = pixels(batches, 0)[0], [w.pid for w in workers_of(batches)]
    second, again = pixels(batches, 1)[0], pixels(batches, 0)[0]
    assert [w.pid for w in workers_of(batches)] == ids and len(set(ids)) == 2
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_an_interrupted_epoch_leaves_the_next_epoch_complete(folder):
    batches = batches_of(folder, workers=2, batch_size=1)
    whole = pixels(batches_of(folder, batch_size=1), 7)
    for _ in range(3):
        for _images, _labels in batches.epoch(3):
            break
    found = pixels(batches, 7)
    assert np.array_equal(found[0], whole[0]) and np.array_equal(found[1], whole[1])


def test_a_worker_uses_one_thread_and_ignores_signals(folder, monkeypatch):
    """The replaced decoder runs in the forked worker and reports through the pixels."""

    def image_of_settings(_path):
        ignored = all(signal.getsignal(getattr(signal, name)) == signal.SIG_IGN for name in processes.IGNORED_SIGNALS)
        return PIL.Image.new("RGB", (24, 24), (torch.get_num_threads(), ignored, 9))

    monkeypatch.setattr(processes, "START_METHOD", "fork")
    monkeypatch.setattr(worker_batches, "decode", image_of_settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        images, _ = pixels(batches_of(folder, train=False, workers=1))
    finally:
        torch.set_num_threads(threads)
    assert np.round(images[:, 0, 0] * 255).astype(int).tolist() == [[1, 1, 9]] * 6


def test_a_killed_worker_ends_the_epoch_with_an_error_of_one_line(folder):
    batches = batches_of(folder, workers=1, batch_size=1)
    epoch = batches.epoch(0)
    next(epoch)
    os.kill(workers_of(batches)[0].pid, signal.SIGKILL)
    with pytest.raises(RunFailed, match="a loader process ended too early: killed by SIGKILL; memory may") as caught:
        list(epoch)
    assert "\n" not in str(caught.value)


def test_the_number_of_workers_is_at_most_the_number_of_batches(folder):
    batches = batches_of(folder, workers=500)
    assert len(pixels(batches)[1]) == 12 and len(workers_of(batches)) == 3


PROGRAM = """
    import signal, sys, time
    import data
    from utils.stop_signal import StopRequest
    stop = StopRequest().listen()
    loaded = data.load("ImageFolder", sys.argv[1], image_size=16)
    options = {"device": "cpu", "batch_size": 1, "seed": 0, "train": True, "workers": 2}
    batches = data.make_batches(loaded.train, loaded.spec, **options)
    for epoch in range(10_000):
        for images, labels in batches.epoch(epoch):
            time.sleep(0.02)
            if stop:
                break
        if epoch == 0:
            print(*(w.pid for w in batches.workers.processes), flush=True)
        if stop:
            print("saved", len(list(batches.epoch(0))), flush=True)
            break
"""


@pytest.fixture
def running(folder):
    """Yield a program in its own process group, in its second epoch or later, and the ids of its two workers."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    ids = [int(word) for word in program.stdout.readline().split()]
    assert len(ids) == 2, program.stderr.read()
    yield program, ids
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


def alive(pid):
    """Return whether the process runs. A zombie does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (OSError, ProcessLookupError):
        return False


def gone_within(seconds, ids):
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in ids) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(alive(pid) for pid in ids)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


@needs_proc
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR2"])
def test_a_signal_to_the_process_group_stops_the_run_but_not_its_workers(running, name):
    """The workers still prepare batches until the run ends, and print nothing."""
    program, ids = running
    os.killpg(program.pid, getattr(signal, name))
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out.strip(), err) == (0, "saved 12", "")
    assert gone_within(1, ids)


@needs_proc
def test_a_killed_run_leaves_no_workers(running):
    program, ids = running
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    assert gone_within(30, ids)


# --- real sets


@pytest.mark.skipif(not REAL, reason="FEATHERWEIGHT_DATA names no folder with the real sets")
def test_bigcifar10_enlarges_the_real_images():
    loaded = data.load("BigCIFAR10", REAL)
    batches = make_batches(loaded.test, loaded.spec, device="cpu", batch_size=20, seed=0, train=False, limit=1)
    images, labels = pixels(batches)
    assert images.shape == (20, 128, 128, 3) and labels[0] == 3
    small = images.reshape(20, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(small * 255 - loaded.test.images[:20]).mean() < 6


EXITS_WITHIN_AN_EPOCH = """
    import sys
    import data
    loaded = data.load("ImageFolder", sys.argv[1], image_size=16)
    options = {"device": "cpu", "batch_size": 1, "seed": 0, "train": True, "workers": 2}
    epoch = data.make_batches(loaded.train, loaded.spec, **options).epoch(0)
    next(epoch)
    sys.held = epoch
"""


def test_a_program_that_exits_within_an_epoch_does_not_hang(folder):
    words = [sys.executable, "-c", textwrap.dedent(EXITS_WITHIN_AN_EPOCH), str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
