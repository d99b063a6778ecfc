"""What is no regular file is refused by name, before anything is done, wherever a file is read or made."""

import os
import signal
import socket
from pathlib import Path

import PIL.Image
import pytest

import data
from data.image_views import decode
from scripts import bench, convert, export, prune, report, sweep
from tests.folders import write_set
from utils.errors import RunFailed, UsageError
from utils.files import check_new, check_regular, irregular, writable
from utils.records import results

LIMIT = 60  # seconds after which a test fails instead of hanging the suite: opening a FIFO waits


@pytest.fixture(autouse=True)
def _limited():
    def fail(*_):
        raise SystemExit(f"no end within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


KINDS = {
    "FIFO": "is a FIFO; a regular file is needed",
    "socket": "is a socket; a regular file is needed",
    "null": "is a device; a regular file is needed",
    "full": "is a device; a regular file is needed",
    "link": "which is not there; a regular file is needed",
    "folder": "is a directory; a regular file is needed",
}


@pytest.fixture(params=KINDS)
def strange(request, tmp_path):
    """(a path that is no regular file, what is said of it)"""
    made = tmp_path / f"strange-{request.param}.pt"
    if request.param == "FIFO":
        os.mkfifo(made)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = Path.cwd()
            os.chdir(tmp_path)  # a socket's path may have 107 characters
            bound.bind(made.name)
            os.chdir(here)
    elif request.param == "link":
        made.symlink_to("nowhere")
    elif request.param == "folder":
        made.mkdir()
    else:
        made.symlink_to(f"/dev/{request.param}")
    return made, KINDS[request.param]


def test_regular_files_links_to_them_and_nothing_are_regular(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert [irregular(tmp_path / name) for name in ("file", "link", "none", "none/none")] == [""] * 4
    check_regular(tmp_path / "none")
    check_new(tmp_path / "none", force=False)


def one_line(code, err, strange):
    path, told = strange
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert str(path) in err and told in err, err


def test_as_results(program, config, tmp_path, strange):
    code, out, err = program("--config", config(), "--results", strange[0])
    one_line(code, err, strange)
    assert err.startswith("error: results: ") and out == "" and not (tmp_path / "runs").exists()


def test_as_a_config(program, strange):
    one_line(*program("--config", strange[0])[::2], strange)


def test_as_a_checkpoint_to_begin_from(program, config, tmp_path, strange):
    if strange[0].is_dir():
        pytest.skip("a directory is a run")
    one_line(*program("--config", config(), "--pretrained", strange[0])[::2], strange)
    assert not (tmp_path / "runs").exists()


def test_as_a_checkpoint_to_resume(program, config, tmp_path, strange):
    program("--config", config(), "--epochs", 1)
    path = tmp_path / "runs/ticket/prune-rate=0.5/ticket/checkpoints" / strange[0].name
    strange[0].rename(path)
    for more in (["--epochs", 2], ["--evaluate"]):
        code, _, err = program("--resume", path, *more)
        assert code == 2 and err.splitlines()[-1].startswith("error: ") and str(path) in err.splitlines()[-1]


def test_as_the_measures_or_the_status_of_a_run(program, config, tmp_path, strange):
    program("--config", config(), "--epochs", 1)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    for name in ("metrics.csv", "status.json"):
        (run / name).unlink()
        strange[0].rename(run / name)
        code, _, err = program("--resume", run, "--epochs", 2)
        one_line(code, err, (run / name, strange[1]))
        (run / name).rename(strange[0])
        (run / name).write_text("")


def test_as_input_and_output_of_scripts(capsys, monkeypatch, tmp_path, strange):
    path, _ = strange
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pt").write_bytes(b"\x80")
    calls = [
        (export.main, ["check", path]),
        (export.main, ["shift", "run", path, "--force"]),
        (convert.main, ["biprop", "there.pt", path, "--force"]),
        (prune.main, ["run", "--method", "unit", "--percent", "50", "--compact", path, "--force"]),
        (report.main, ["run", "--out", path]),
        (bench.main, ["--out", path]),
    ]
    calls += [(convert.main, ["biprop", path, "new.pt"])] * (not path.is_dir())
    for main, words in calls:
        code = main([str(word) for word in words])
        one_line(code, capsys.readouterr().err, strange)
    one_line(bench.main(["--out", str(path)]), capsys.readouterr().err, strange)
    assert path.is_symlink() or not path.is_file()


def test_as_results_of_a_sweep(capsys, monkeypatch, config, tmp_path, strange):
    monkeypatch.chdir(tmp_path)
    code = sweep.main(["--config", config(), "--seed", "1", "2", "--results", str(strange[0])])
    one_line(code, capsys.readouterr().err, strange)


def test_as_an_image(program, config, tmp_path, strange):
    root = write_set(tmp_path / "set", train=2, val=2)
    image = root / "train/bee/x.png"
    strange[0].rename(image)
    if image.is_dir():
        pytest.skip("a directory in a class folder is looked into")
    with pytest.raises(
        RunFailed, match=f"x.png: cannot be decoded: it {strange[1].split(';')[0].replace('which', '.*')}"
    ):
        decode(str(image))
    path = config(arch="FC", set="ImageFolder", data=str(root), image_size=16)
    one_line(*program("--config", path)[::2], (image, strange[1]))
    assert not (tmp_path / "runs").exists()


def test_links_to_images_are_images(tmp_path):
    root = write_set(tmp_path, train=1, val=1, classes=("a",))
    (root / "train/a/link.png").symlink_to(root / "val/a/000.png")
    assert len(data.load("ImageFolder", root, image_size=8).train) == 2
    assert isinstance(decode(str(root / "train/a/link.png")), PIL.Image.Image)


def test_as_a_file_of_a_data_set(program, config, tmp_path, strange):
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"")
    image = folder / "train-images-idx3-ubyte"
    strange[0].rename(image)
    code, _, err = program("--config", config(set="MNIST", data=str(tmp_path)))
    assert code == 2 and err.count("\n") == 1 and ("train-images" in err)


@pytest.mark.parametrize("inside", ["", "sub"])
def test_a_link_to_nowhere_is_no_folder_to_write_to(program, config, tmp_path, inside):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    place = tmp_path / "link" / inside
    assert not writable(str(place))
    code, _, err = program("--config", config(), "--log-dir", place)
    assert (code, err.count("\n")) == (2, 1) and "log_dir: " in err and "a folder one can write" in err
    code, _, err = program("--config", config(), "--results", place / "results.csv")
    assert (code, err.count("\n")) == (2, 1) and f"results: cannot write {place}" in err
    assert f"{tmp_path / 'link'} is no directory" in err
    assert not (tmp_path / "nowhere").exists()


def test_what_stands_where_the_directory_of_a_run_would_be_is_named(program, config, tmp_path):
    (tmp_path / "runs").symlink_to("nowhere")
    for words in ((), ("--resume", "auto")):
        code, _, err = program("--config", config(), "--results", tmp_path / "results.csv", *words)
        assert (code, err.count("\n")) == (2, 1) and "log_dir: " in err and "runs is no directory" in err


@pytest.mark.parametrize("file", ["status.json", "metrics.csv", ".lock"])
def test_within_a_run_that_goes_on(program, config, tmp_path, file):
    assert program("--config", config(epochs=1), "--name", "run")[0] == 0
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("status.json"))
    (run / file).unlink()
    os.mkfifo(run / file)
    code, _, err = program("--resume", run, "--epochs", 2)
    assert code == 2 and f"{run / file} is a FIFO; a regular file is needed" in err.splitlines()[-1]


def test_as_the_lock_of_a_table(program, config, tmp_path):
    os.mkfifo(tmp_path / ".table.csv.lock")
    code, _, err = program("--config", config(), "--results", tmp_path / "table.csv")
    assert (code, err.count("\n")) == (2, 1) and ".table.csv.lock is a FIFO; a regular file is needed" in err


def test_as_the_place_of_damaged_rows(tmp_path):
    table = tmp_path / "results.csv"
    table.write_bytes(results.HEADER + b'\n"torn\n')
    os.mkfifo(tmp_path / "results.csv.damaged")
    with pytest.raises(UsageError, match=r"results\.csv\.damaged is a FIFO"):
        results.check(table)
