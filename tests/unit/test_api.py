"""The Python API trains as main.py does, opens what was trained, and leaves its caller's process as it was."""

import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import featherweight as fw
from tests.conftest import TICKET
from tests.originals import original, write
from trainers.build import batches, load_set
from trainers.load_trained import load_trained
from trainers.loop import evaluate, forward
from utils.distributed.runtime import ALONE
from utils.run_paths import RunPaths

ROOT = Path(__file__).parents[2]
QUIET = {"verbose": False}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, in which the runs of a test are stored."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder):
    """A finished run of two epochs."""
    return fw.train(**TICKET, **QUIET)


def state_of(path):
    return torch.load(RunPaths(Path(path)).last, weights_only=True)["model"]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_importing_the_api_imports_neither_torch_nor_numpy():
    code = "import sys, featherweight; print([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_published_name_exists():
    assert {"train", "load", "runs", "constrain", "bake", "Constraint", "Method", "build", "UsageError"} <= {
        *fw.__all__
    }
    assert all(getattr(fw, name) for name in fw.__all__) and {*fw.__all__} <= {*dir(fw)}
    with pytest.raises(AttributeError, match="module 'featherweight' has no attribute 'trian'"):
        fw.trian  # noqa: B018


def test_a_call_trains_to_the_bits_of_the_command(program, config, folder):
    path = config(save_every=1)
    assert program("--config", path, "--prune-rate", 0.3, "--name", "typed")[0] == 0
    called = fw.train(path, prune_rate=0.3, name="called", **QUIET)
    again = fw.train(Path(path), prune_rate=0.3, name="again", **QUIET)
    assert called.path == Path("runs/ticket/prune-rate=0.3/called")
    typed = state_of("runs/ticket/prune-rate=0.3/typed")
    assert same(typed, state_of(called.path)) and same(typed, state_of(again.path))
    assert same(typed, called.model.state_dict())


def test_without_a_file_a_run_is_named_by_its_arch_and_set(run):
    assert run.path == Path("runs/FC-digits/prune-rate=0.5/FC-digits")
    assert fw.train(**TICKET, name="mine", **QUIET).path == Path("runs/mine/prune-rate=0.5/mine")
    assert (run.options["config"], run.options["name"], run.options["epochs"]) == (None, "FC-digits", 2)


def test_nothing_is_printed_unless_asked_for(folder, capfd):
    fw.train(**TICKET, tune_batchnorm=True, verbose=False)
    assert capfd.readouterr() == ("", "")
    fw.train(**TICKET, tune_batchnorm=True)
    out, err = capfd.readouterr()
    assert "test accuracy" in out and err.startswith("warning: tune_batchnorm: true in the call has no effect without")


def test_the_process_of_the_caller_stays_as_it_was(folder):
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    before = [torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()]
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    handlers = [signal.getsignal(number) for number in taken]
    run = fw.train(**TICKET, deterministic=True, **QUIET)
    fw.load(run.path)
    assert [torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()] == before
    assert [signal.getsignal(number) for number in taken] == handlers
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_thread_may_train(folder):
    found = []
    thread = threading.Thread(target=lambda: found.append(fw.train(**TICKET, **QUIET)))
    thread.start()
    thread.join()
    assert same(found[0].model.state_dict(), fw.train(**TICKET, **QUIET).model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_rte": 0.5}, "prune_rte: unknown option in the call (did you mean 'prune_rate'?); see --help"),
        ({"lr": "fast"}, "lr: 'fast' in the call, but it must be a float > 0 and <= 1e6"),
        ({"epochs": 2.5}, "epochs: 2.5 in the call, but it must be an int >= 1 and <= 1e6"),
        ({"freeze_weights": 1}, "freeze_weights: 1 in the call, but it must be true or false"),
        ({"arch": None}, "arch: null in the call, but it must be one of"),
        ({"prune_rate": None}, "prune_rate: null in the call, but it must be given"),
        ({"set": "in_memory"}, "set: in_memory has no files; pass its images in Python"),
        ({"check": True}, "check: it trains nothing; leave it out"),
        ({"evaluate": True, "pretrained": "x"}, "evaluate: it trains nothing; use featherweight.load(PATH).test()"),
        ({"multigpu": [0, 1], "device": "auto"}, "multigpu: a call trains on one GPU"),
        ({"data": 3}, "data: a int given; a folder or a pair of Datasets (train, test) expected"),
        ({"resume": "gone"}, "resume: gone does not exist"),
    ],
)
def test_wrong_options_are_usage_errors_of_one_line(folder, options, message):
    with pytest.raises(fw.UsageError, match=re.escape(message)) as caught:
        fw.train(**TICKET | options, **QUIET)
    assert "\n" not in str(caught.value) and not any(folder.rglob("config.yaml"))


def test_missing_options_are_named(folder, config):
    with pytest.raises(
        fw.UsageError, match=r"^2 problems:\nset: no value in the call, but .*\narch: no value in the c"
    ):
        fw.train(**QUIET)
    with pytest.raises(fw.UsageError, match=r"^arch: no value in the YAML file and in the call, but"):
        fw.train(config(arch=None), **QUIET)
    with pytest.raises(fw.UsageError, match=r"gone\.yml"):
        fw.train("gone.yml", **QUIET)


def test_options_are_python_values(folder):
    run = fw.train(
        arch="MLP",
        set="digits",
        hidden=[9, 8],
        epochs=np.int64(1),
        lr=np.float32(0.5),
        log_dir=folder / "x",
        seed=1,
        **QUIET,
    )
    assert (run.options["hidden"], run.options["epochs"], run.options["lr"]) == ([9, 8], 1, 0.5)
    assert run.path == folder / "x/MLP-digits/MLP-digits"


def test_the_data_folder_may_be_given_by_a_path(folder):
    with pytest.raises(fw.UsageError, match="MNIST was not found under elsewhere"):
        fw.train(arch="FC", set="MNIST", data=Path("elsewhere"), **QUIET)


def test_a_failed_call_leaves_the_run_free_to_resume(run):
    with pytest.raises(fw.UsageError, match=r"resume: .* has other options: lr: 0.1 in the run, 0.2 now") as kept:
        fw.train(resume=run.path, lr=0.2, **QUIET)
    longer = fw.train(resume=str(run.path), epochs=3, **QUIET)
    assert (longer.epoch, longer.path) == (3, run.path) and kept.traceback
    assert fw.train(resume=run.path, **QUIET).epoch == 3  # finished already


def test_a_run_that_fails_is_not_held_by_its_exception(folder):
    kept = []
    for options in (TICKET | {"lr": 1e6}, *[{"resume": "runs/FC-digits/prune-rate=0.5/FC-digits"}] * 2):
        with pytest.raises(fw.RunFailed, match=r"^diverged: ") as failure:
            fw.train(**options, **QUIET)
        kept.append(failure)


def test_a_run_opens_with_its_best_or_newest_checkpoint(run):
    shutil.copy(RunPaths(run.path).initial, RunPaths(run.path).best)
    newest, best = fw.load(run.path), fw.load(str(run.path), best=True)
    assert newest.epoch == 2 and same(newest.model.state_dict(), state_of(run.path))
    assert best.epoch == 0 and not best.model.training
    checkpoint = fw.load(RunPaths(run.path).initial)
    assert (checkpoint.path, checkpoint.epoch) == (run.path, 0)
    assert newest.classes == [*"0123456789"] and newest.options["prune_rate"] == 0.5
    assert [row["epoch"] for row in newest.metrics] == [1, 2] and isinstance(newest.metrics[0]["test/acc@1"], float)
    assert newest.metrics.columns[:2] == ["epoch", "train/loss"]
    text = repr(newest)
    assert text.startswith("<TrainedRun runs/FC-digits/prune-rate=0.5/FC-digits: FC on digits, SubnetConv, ")
    assert "50.00 % pruned, epoch 2, test accuracy" in text


def test_a_file_of_biprop_opens_with_its_data_set(run, folder):
    path = write(original(run.model, arch="FC", prune_rate=0.5), folder / "model_best.pth")
    opened = fw.load(path, set="digits")
    assert (opened.epoch, opened.path, opened.metrics, opened.classes) == (7, path, [], [*"0123456789"])
    assert opened.test() == pytest.approx(run.test(), abs=0.6)  # bfloat16 on some processors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "gone"}, "gone does not exist"),
        ({"path": "."}, ". is not a run: it has no readable checkpoint"),
        ({"dta": "x"}, "dta: unknown option in the call (did you mean 'data'?)"),
        ({"workers": -1}, "workers: -1 in the call, but it must be an int >= 0"),
        ({"prune_rate": 0.3}, "has other options: prune_rate: 0.5 in the run, 0.3 now"),
        ({"device": "gpu"}, "device: 'gpu' given; cpu, cuda, cuda:0 or auto expected"),
        ({"device": "cuda:99"}, "device: cuda:99 is not available here"),
        ({"device": "meta"}, "device: meta is not available here"),
    ],
)
def test_what_cannot_be_opened_is_a_usage_error(run, arguments, message):
    with pytest.raises(fw.UsageError, match=re.escape(message)):
        fw.load(**{"path": run.path} | arguments)


def evaluated(run):
    """Return (logits, labels) of evaluation over the test set, batch by batch as `evaluate` computes them."""
    trained = load_trained(run.path)
    image_set = load_set(trained.options)
    runtime = ALONE.at(trained.options.run.precision)
    runtime.put(trained.model)
    test = batches(trained.options, runtime, image_set, image_set.test)
    with torch.no_grad():
        logits = [forward(trained.model, images, runtime) for images, _ in test.epoch(0)]
    assert run.test() == evaluate(trained.model, test, trained.method, runtime).top1
    return torch.cat(logits), image_set.test


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16", "arch": "Conv2", "test_batch_size": 50}, {"pixels": "binary"}]
)
def test_predictions_are_to_the_bit_those_of_evaluation(folder, changes):
    run = fw.train(**TICKET | changes, **QUIET)
    logits, test = evaluated(run)
    labels, probabilities = run.predict(test.images)
    assert torch.equal(probabilities, logits.softmax(1)) and labels == [str(row) for row in logits.argmax(1).tolist()]
    assert probabilities.dtype == torch.float32 and probabilities.device.type == "cpu"
    assert (
        100 * sum(int(name) == label for name, label in zip(labels, test.labels, strict=True)) / len(test) == run.test()
    )
    sizes = []
    run.model.register_forward_hook(lambda _model, inputs, _output: sizes.append(len(inputs[0])))
    assert torch.allclose(
        run.predict(list(test.images[:20]), batch_size=7).probabilities, probabilities[:20], atol=0.02
    )
    assert sizes == [7, 7, 6]


def test_images_of_every_kind_have_the_same_prediction(run, folder):
    pixels = load_set(load_trained(run.path).options).test.images[:2]
    PIL.Image.fromarray(pixels[0, :, :, 0]).save(folder / "digit.png")
    first = run.predict(pixels[0])
    kinds = [
        "digit.png",
        Path("digit.png"),
        PIL.Image.open("digit.png"),
        pixels[0, :, :, 0],
        torch.from_numpy(pixels[0]),
    ]
    kinds += [torch.from_numpy(pixels[:1]).permute(0, 3, 1, 2) / 255]
    for kind in kinds:
        assert torch.equal(run.predict(kind).probabilities, first.probabilities)
    assert run.predict([pixels, kinds]).labels == [*run.predict(pixels).labels, *first.labels * len(kinds)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": []}, "no images given"),
        ({"x": [np.zeros((8, 8), np.uint8), "gone.png"]}, "image 1: gone.png does not exist"),
        ({"x": torch.full((1, 1, 8, 8), 2.0)}, "image 0: a float tensor has values from 2 to 2"),
        ({"x": np.zeros((8, 8), np.uint8), "batch_size": 0}, "batch_size: 0 given, an int >= 1 expected"),
    ],
)
def test_what_cannot_be_predicted_is_a_usage_error(run, arguments, message):
    with pytest.raises(fw.UsageError, match=re.escape(message)):
        run.predict(**arguments)


def test_the_plain_network_has_ordinary_layers_and_equal_outputs(run):
    plain, images = run.plain(), torch.randn(4, 1, 8, 8)
    assert {type(layer) for layer in plain.modules() if hasattr(layer, "weight")} == {torch.nn.Linear}
    with torch.no_grad():
        assert torch.equal(plain(images), run.model(images))


def test_class_names_unknown_to_a_checkpoint_are_ints(run):
    path = RunPaths(run.path).last
    content = torch.load(path, weights_only=True)
    content["data"]["classes"] = None
    torch.save(content, path)
    opened = fw.load(run.path)
    assert opened.classes is None and opened.predict(np.zeros((8, 8), np.uint8)).labels[0] in range(10)
