"""`featherweight.train` on Datasets of the user: bits, resumption, signals, and what a checkpoint says of the data."""

import gc
import os
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import featherweight as fw
from data.readers.digits import read_digits
from data.worker_batches import WorkerBatches
from utils.run_paths import RunPaths

TRAIN, TEST = read_digits(Path(), False)
DATA = tuple([*zip(split.images, split.labels.tolist(), strict=True)] for split in (TRAIN, TEST))
FC = {"arch": "FC", "epochs": 2, "seed": 1, "batch_size": 64, "precision": "fp32", "verbose": False}


class Shifted:
    """The digits, shifted at random when they are read. At reading `stop_at`, the process gets a Ctrl-C."""

    classes = [f"digit {n}" for n in range(10)]  # noqa: RUF012 (torchvision's Datasets have a list too)

    def __init__(self, split, stop_at=None):
        self.split, self.stop_at, self.read = split, stop_at, 0
        self.targets = split.labels.tolist()

    def __len__(self):
        return len(self.split)

    def __getitem__(self, row):
        self.read += 1
        if self.read == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        image = np.roll(self.split.images[row], random.randrange(2), axis=1)
        return torch.from_numpy(image).permute(2, 0, 1) / 255, self.targets[row]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def equal(first, second):
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_passed_images_train_to_the_bits_of_the_same_images_of_a_set():
    named = fw.train(**FC, set="digits")
    passed = fw.train(**FC, set="digits", data=DATA)
    assert equal(named, passed) and passed.options["set"] == "in_memory"
    assert passed.test(DATA) == passed.test(data=DATA[1]) == named.test()
    assert passed.classes == [*"0123456789"]
    measured = fw.train(**FC, data=DATA)
    assert measured.classes is None and not equal(named, measured)
    assert measured.path == Path("runs/FC-in_memory/FC-in_memory")


def test_a_run_opens_without_its_images():
    trained = fw.train(**FC, data=(Shifted(TRAIN), DATA[1]), workers=0)
    run = fw.load(trained.path)
    assert run.classes[3] == "digit 3" and run.predict(TEST.images[:1]).labels[0] in Shifted.classes
    assert torch.equal(run.predict(TEST.images).probabilities, trained.predict(TEST.images).probabilities)
    assert run.test(DATA[1]) == pytest.approx(run.metrics[-1]["test/acc@1"])
    with pytest.raises(fw.UsageError, match=r"^data: the images of the run were passed in Python; .*: test\(data\)$"):
        run.test()
    with pytest.raises(fw.UsageError, match=r"^data: item 0 of the test .* label 10; the network has 10 classes"):
        run.test([(TEST.images[0], 10)])


def test_ctrl_c_saves_and_a_call_resumes_to_the_same_bits(capfd):
    uninterrupted = fw.train(**FC, data=(Shifted(TRAIN), DATA[1]), workers=0)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupted = Shifted(TRAIN, stop_at=4 * len(TRAIN) // 2)
    with pytest.raises(fw.Stopped) as kept:
        fw.train(**FC, data=(interrupted, DATA[1]), workers=0)
    path = "runs/FC-in_memory/FC-in_memory/0"
    advice = f"stopped by SIGINT and saved; resume with: featherweight.train(resume='{path}', data=…)"
    assert (str(kept.value), kept.value.run) == (advice, path) and len(kept.traceback) == 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    gc.collect()
    assert WorkerBatches not in map(type, gc.get_objects())  # a notebook keeps the exception
    assert fw.runs()[1]["status"] == "stopped"
    resumed = fw.train(resume=path, data=(Shifted(TRAIN), DATA[1]), workers=0, verbose=False)
    assert equal(resumed, uninterrupted) and resumed.epoch == 2
    assert capfd.readouterr() == ("", "")


def test_a_run_resumes_with_its_own_images_only():
    run = fw.train(**FC, data=DATA)
    with pytest.raises(fw.UsageError, match=r"^set: in_memory has no files; pass its images in Python") as kept:
        fw.train(resume=run.path, epochs=3, verbose=False)
    other = [*DATA[0][:-1], (np.zeros((8, 8, 1), np.uint8), 0)]
    with pytest.raises(fw.UsageError, match=r"^data: the images differ from those .* mean: \(0\.30.*same data"):
        fw.train(resume=run.path, epochs=3, data=(other, DATA[1]), verbose=False)
    with pytest.raises(fw.UsageError, match=r"^data: the images differ from those of the run: mean: "):
        fw.train(resume=run.path, epochs=3, set="digits", data=DATA, verbose=False)
    assert fw.train(resume=run.path, epochs=3, data=DATA, verbose=False).epoch == 3 and kept.traceback


def test_worker_processes_read_what_this_process_reads():
    first, second = (fw.train(**FC, data=(Shifted(TRAIN), DATA[1]), workers=count) for count in (0, 2))
    assert equal(first, second)


def test_options_of_the_data_apply_to_passed_images():
    options = {"image_size": 16, "val_split": 0.2, "low_data": 0.5, "pixels": "unit", "lr": 0.01, "workers": 0}
    run = fw.train(**FC | {"arch": "Conv2"} | options, data=DATA)
    spec = torch.load(RunPaths(run.path).last, weights_only=True)["data"]
    assert (spec["image_size"], spec["mean"], spec["std"], spec["margin"]) == ([16, 16], [0.0], [1.0], 256 / 224)
    assert run.predict(TEST.images[:2]).probabilities.shape == (2, 10) and "val/acc@1" in run.metrics.columns
    assert ",validation," in RunPaths(run.path).result.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": DATA[:1]}, "data: a tuple given; a folder or a pair of Datasets (train, test) expected"),
        ({"data": (DATA[0], [])}, "data: the test Dataset has no items"),
        ({"data": DATA, "set": "CIFAR10"}, "set: CIFAR10 has 3 channels, the images passed have 1; leave out set"),
        ({"data": DATA, "num_classes": 5}, "num_classes: 5 given, but in_memory has 10"),
        ({"data": DATA, "set": "digts"}, "set: 'digts' in the call (did you mean 'digits'?), but it must be one of"),
    ],
)
def test_wrong_data_is_a_usage_error_and_leaves_no_run(options, message):
    with pytest.raises(fw.UsageError, match=re.escape(message)):
        fw.train(**FC | options)
    assert not list(Path().rglob("config.yaml"))


def test_the_command_line_names_the_call_that_a_run_needs(program):
    run = fw.train(**FC, data=DATA)
    for arguments in (("--resume", run.path, "--epochs", 3), ("--resume", run.path, "--evaluate")):
        code, _, err = program(*arguments)
        message = "set: in_memory has no files; pass its images in Python: featherweight.train(data=(train, test))"
        assert code == 2 and err.splitlines()[-1] == f"error: {message}"


def test_warnings_about_workers_know_that_passed_images_may_need_them(capfd):
    fw.train(**FC | {"verbose": True}, data=(Shifted(TRAIN), DATA[1]), workers=1)
    assert "warning" not in capfd.readouterr().err
