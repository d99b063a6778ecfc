"""A FIFO, socket, device, directory or dangling link is refused by name wherever a file is read or written."""

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
    "link": "which does not exist; a regular file is needed",
    "folder": "is a directory; a regular file is needed",
}


@pytest.fixture(params=KINDS)
def irregular_file(request, tmp_path):
    """Return a path that is not a regular file, and the end of the message about it."""
    path = tmp_path / f"strange-{request.param}.pt"
    if request.param == "FIFO":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = Path.cwd()
            os.chdir(tmp_path)  # a socket's path may have 107 characters
            bound.bind(path.name)
            os.chdir(here)
    elif request.param == "link":
        path.symlink_to("nowhere")
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to(f"/dev/{request.param}")
    return path, KINDS[request.param]


def test_regular_files_links_to_them_and_missing_files_are_accepted(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert [irregular(tmp_path / name) for name in ("file", "link", "none", "none/none")] == [""] * 4
    check_regular(tmp_path / "none")
    check_new(tmp_path / "none", force=False)


def one_line(code, err, irregular_file):
    path, message = irregular_file
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert str(path) in err and message in err, err


def test_an_irregular_results_file_is_refused(program, config, tmp_path, irregular_file):
    code, out, err = program("--config", config(), "--results", irregular_file[0])
    one_line(code, err, irregular_file)
    assert err.startswith("error: results: ") and out == "" and not (tmp_path / "runs").exists()


def test_an_irregular_config_is_refused(program, irregular_file):
    one_line(*program("--config", irregular_file[0])[::2], irregular_file)


def test_an_irregular_pretrained_checkpoint_is_refused(program, config, tmp_path, irregular_file):
    if irregular_file[0].is_dir():
        pytest.skip("a directory is a run")
    one_line(*program("--config", config(), "--pretrained", irregular_file[0])[::2], irregular_file)
    assert not (tmp_path / "runs").exists()


def test_an_irregular_checkpoint_to_resume_is_refused(program, config, tmp_path, irregular_file):
    program("--config", config(), "--epochs", 1)
    path = tmp_path / "runs/ticket/prune-rate=0.5/ticket/checkpoints" / irregular_file[0].name
    irregular_file[0].rename(path)
    for more in (["--epochs", 2], ["--evaluate"]):
        code, _, err = program("--resume", path, *more)
        assert code == 2 and err.splitlines()[-1].startswith("error: ") and str(path) in err.splitlines()[-1]


def test_irregular_metrics_or_status_of_a_run_are_refused(program, config, tmp_path, irregular_file):
    program("--config", config(), "--epochs", 1)
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    for name in ("metrics.csv", "status.json"):
        (run / name).unlink()
        irregular_file[0].rename(run / name)
        code, _, err = program("--resume", run, "--epochs", 2)
        one_line(code, err, (run / name, irregular_file[1]))
        (run / name).rename(irregular_file[0])
        (run / name).write_text("")


def test_scripts_refuse_irregular_input_and_output(capsys, monkeypatch, tmp_path, irregular_file):
    path, _ = irregular_file
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
    if not path.is_dir():
        calls.append((convert.main, ["biprop", path, "new.pt"]))
    for main, words in calls:
        code = main([str(word) for word in words])
        one_line(code, capsys.readouterr().err, irregular_file)
    one_line(bench.main(["--out", str(path)]), capsys.readouterr().err, irregular_file)
    assert path.is_symlink() or not path.is_file()


def test_a_sweep_refuses_an_irregular_results_file(capsys, monkeypatch, config, tmp_path, irregular_file):
    monkeypatch.chdir(tmp_path)
    code = sweep.main(["--config", config(), "--seed", "1", "2", "--results", str(irregular_file[0])])
    one_line(code, capsys.readouterr().err, irregular_file)


def test_an_irregular_image_is_refused(program, config, tmp_path, irregular_file):
    root = write_set(tmp_path / "set", train=2, val=2)
    image = root / "train/bee/x.png"
    irregular_file[0].rename(image)
    if image.is_dir():
        pytest.skip("a directory in a class folder is looked into")
    with pytest.raises(
        RunFailed, match=f"x.png: cannot be decoded: it {irregular_file[1].split(';')[0].replace('which', '.*')}"
    ):
        decode(str(image))
    path = config(arch="FC", set="ImageFolder", data=str(root), image_size=16)
    one_line(*program("--config", path)[::2], (image, irregular_file[1]))
    assert not (tmp_path / "runs").exists()


def test_links_to_images_are_images(tmp_path):
    root = write_set(tmp_path, train=1, val=1, classes=("a",))
    (root / "train/a/link.png").symlink_to(root / "val/a/000.png")
    assert len(data.load("ImageFolder", root, image_size=8).train) == 2
    assert isinstance(decode(str(root / "train/a/link.png")), PIL.Image.Image)


def test_an_irregular_file_of_a_data_set_is_refused(program, config, tmp_path, irregular_file):
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"")
    image = folder / "train-images-idx3-ubyte"
    irregular_file[0].rename(image)
    code, _, err = program("--config", config(set="MNIST", data=str(tmp_path)))
    assert code == 2 and err.count("\n") == 1 and ("train-images" in err)


@pytest.mark.parametrize("folder", ["/proc", "/proc/a/b", "/proc/version", "/proc/version/a"])
def test_a_folder_in_which_no_file_can_be_created_is_not_writable(folder):
    assert not writable(folder)
    with pytest.raises(UsageError, match=r"--out: /proc\S* (cannot be written to|is not a directory)"):
        check_new(Path(folder) / "out.pt", force=True, option="--out: ")


def test_the_check_whether_a_folder_is_writable_leaves_no_file(tmp_path):
    assert writable(tmp_path) and writable(str(tmp_path / "new/er")) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["", "sub"])
def test_a_dangling_link_as_output_folder_is_refused(program, config, tmp_path, inside):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    place = tmp_path / "link" / inside
    assert not writable(str(place))
    code, _, err = program("--config", config(), "--log-dir", place)
    assert (code, err.count("\n")) == (2, 1) and "log_dir: " in err and "a folder that you can write" in err
    code, _, err = program("--config", config(), "--results", place / "results.csv")
    assert (code, err.count("\n")) == (2, 1) and f"results: cannot write {place}" in err
    assert f"{tmp_path / 'link'} is not a directory" in err
    assert not (tmp_path / "nowhere").exists()


def test_error_names_a_dangling_link_in_place_of_the_log_directory(program, config, tmp_path):
    (tmp_path / "runs").symlink_to("nowhere")
    for words in ((), ("--resume", "auto")):
        code, _, err = program("--config", config(), "--results", tmp_path / "results.csv", *words)
        assert (code, err.count("\n")) == (2, 1) and "log_dir: " in err and "runs is not a directory" in err


@pytest.mark.parametrize("file", ["status.json", "metrics.csv", ".lock"])
def test_an_irregular_file_in_a_resumed_run_is_refused(program, config, tmp_path, file):
    assert program("--config", config(epochs=1), "--name", "run")[0] == 0
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("status.json"))
    (run / file).unlink()
    os.mkfifo(run / file)
    code, _, err = program("--resume", run, "--epochs", 2)
    assert code == 2 and f"{run / file} is a FIFO; a regular file is needed" in err.splitlines()[-1]


def test_an_irregular_lock_of_the_results_table_is_refused(program, config, tmp_path):
    os.mkfifo(tmp_path / ".table.csv.lock")
    code, _, err = program("--config", config(), "--results", tmp_path / "table.csv")
    assert (code, err.count("\n")) == (2, 1) and ".table.csv.lock is a FIFO; a regular file is needed" in err


def test_an_irregular_file_for_damaged_rows_is_refused(tmp_path):
    table = tmp_path / "results.csv"
    table.write_bytes(results.HEADER + b'\n"torn\n')
    os.mkfifo(tmp_path / "results.csv.damaged")
    with pytest.raises(UsageError, match=r"results\.csv\.damaged is a FIFO"):
        results.check(table)
