"""Locks, atomic writes, checkpoints and results tables under concurrent processes and crashes."""

import csv
import errno
import multiprocessing
import os
import signal
import time

import pytest

from scripts.parts.sweep_cells import rows
from tests.recorded import started
from utils.errors import RunFailed, UsageError
from utils.files import locked, try_lock, write_atomic, write_text
from utils.records import results
from utils.records.checkpoints import load, newest, save
from utils.records.metrics_log import MetricsCsv
from utils.run_paths import RunPaths
from utils.stop_signal import StopRequest, raise_on_interrupt, restored_handlers


def row(number):
    return dict.fromkeys(results.COLUMNS, "") | {"Name": f"a, {number}", "Run ID": f"id-{number}-"}


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path, number):
    results.append(path, row(number))


def test_rows_appended_by_concurrent_processes_are_all_kept(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append, args=(path, number)) for number in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(r["Name"] for r in read(path)) == sorted(f"a, {n}" for n in range(16))
    assert path.read_text().count("Date Finished") == 1


def test_appending_the_row_of_a_run_again_adds_no_row(tmp_path):
    path = tmp_path / "results.csv"
    append(path, 1)
    append(path, 1)
    append(path, 11)
    assert [r["Run ID"] for r in read(path)] == ["id-1-", "id-11-"]


def test_a_row_after_a_torn_last_line_is_kept(tmp_path):
    path = tmp_path / "results.csv"
    append(path, 1)
    with path.open("a") as file:
        file.write("torn,by,a")
    append(path, 2)
    assert read(path)[-1]["Run ID"] == "id-2-"


@pytest.mark.parametrize("content", ["Name\n", "\n1,2\n"])
def test_a_results_file_of_another_program_is_refused(tmp_path, content):
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match="other columns"):
        results.check(path)
    assert path.read_text() == content and [file.name for file in tmp_path.iterdir()] == ["other.csv"]


def test_checking_a_results_path_creates_its_folder_but_no_results_file(tmp_path):
    results.check(tmp_path / "deep/results.csv")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [".results.csv.lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        results.check(tmp_path / "file/results.csv")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_names_the_file(tmp_path):
    def fail(_):
        raise OSError(errno.EFBIG, "File too large")

    with pytest.raises(OSError, match=r"File too large: '.*/config.yaml'"):
        write_atomic(tmp_path / "config.yaml", fail)


def test_a_lock_is_exclusive_until_it_is_released(tmp_path):
    path = tmp_path / "lock"
    with locked(path):
        assert try_lock(path) is None
    held = try_lock(path)
    assert held is not None and try_lock(path) is None
    held.close()
    again = try_lock(path)
    assert again is not None
    again.close()


def test_a_lock_is_free_once_its_process_is_killed_even_if_child_processes_live_on(tmp_path):
    """The worker processes of a data loader outlive a killed run for some seconds."""
    path, pipe = tmp_path / "lock", os.pipe()
    if not (holder := os.fork()):
        held = try_lock(path)
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        time.sleep(0.5)  # the worker closes its copy of the lock first
        os.write(pipe[1], str(worker.pid).encode())
        time.sleep(60)
        os._exit(held is None)
    child = int(os.read(pipe[0], 20))
    try:
        assert try_lock(path) is None
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(child, 0)
        assert try_lock(path) is not None
    finally:
        os.kill(child, signal.SIGKILL)


def test_saving_under_several_names_writes_independent_copies(tmp_path):
    save({"model": {}, "epoch": 1, "step": 0}, *(tmp_path / f"{name}.pt" for name in ("epoch_1", "best", "last")))
    assert {path.stat().st_nlink for path in tmp_path.iterdir()} == {1}
    assert len({path.stat().st_ino for path in tmp_path.iterdir()}) == 3
    with (tmp_path / "last.pt").open("r+b") as bad_sector:
        bad_sector.write(bytes(64))
    with pytest.raises(UsageError, match=r"last\.pt cannot be read"):
        load(tmp_path / "last.pt")
    assert load(tmp_path / "best.pt") == load(tmp_path / "epoch_1.pt")
    (tmp_path / "epoch_1.pt").unlink()
    save({"model": {}, "epoch": 2, "step": 0}, tmp_path / "last.pt")
    assert (load(tmp_path / "best.pt")["epoch"], load(tmp_path / "last.pt")["epoch"]) == (1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.parametrize("name", ["epoch_1.pt", "best.pt", "last.pt"])
def test_a_failed_copy_of_a_checkpoint_keeps_the_earlier_files(tmp_path, monkeypatch, name):
    paths = [tmp_path / "epoch_1.pt", tmp_path / "best.pt", tmp_path / "last.pt"]
    save({"model": {}, "epoch": 1, "step": 0}, *paths)

    def refuse(path, write):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_atomic(path, write)

    monkeypatch.setattr("utils.records.checkpoints.write_atomic", refuse)
    with pytest.raises(RunFailed, match="No space left on device"):
        save({"model": {}, "epoch": 2, "step": 0}, *paths)
    assert load(tmp_path / name)["epoch"] == load(tmp_path / "last.pt")["epoch"] == 1


def test_the_furthest_readable_checkpoint_is_found(tmp_path, capsys):
    run = RunPaths(tmp_path)
    run.checkpoints.mkdir()
    for epoch, step, path in ((0, 0, run.initial), (2, 0, run.best), (2, 7, run.epoch_checkpoint(9))):
        save({"model": {}, "epoch": epoch, "step": step}, path)
    run.last.write_bytes(b"torn")
    checkpoint, path = newest(run)
    assert (checkpoint["step"], path.name) == (7, "epoch_9.pt")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "last.pt cannot be read" in err and err.endswith("epoch_9.pt is used instead\n")
    assert newest(RunPaths(tmp_path / "nothing")) is None


def test_a_checkpoint_that_cannot_be_written_raises_run_failed(tmp_path):
    with pytest.raises(RunFailed, match="cannot write"):
        save({"model": {}}, tmp_path / "gone" / "last.pt")


def test_a_malicious_or_foreign_checkpoint_is_refused_without_running_its_code(tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": {}, "evil": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (("evil.pt", "is refused"), ("list.pt", "not a checkpoint"), ("gone.pt", "does not exist")):
        with pytest.raises(UsageError, match=message):
            load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_metrics_drop_rows_after_the_resumed_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    first = started(MetricsCsv(), tmp_path)
    for epoch in (1, 2, 3):
        first.metrics(epoch, {"train": {"loss": epoch / 4}, "weights": {"density_conv1": 0.5}})
    again = started(MetricsCsv(), tmp_path, 2)
    again.metrics(3, {"train": {"loss": 9.0}})
    assert [(r["epoch"], r["train/loss"]) for r in read(path)] == [("1", "0.25"), ("2", "0.5"), ("3", "9")]
    assert list(read(path)[0]) == ["epoch", "train/loss"]
    started(MetricsCsv(), tmp_path).metrics(1, {"train": {"loss": 0.0}})
    assert len(read(path)) == 1


def test_a_second_ctrl_c_exits_immediately(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with restored_handlers():
        raise_on_interrupt()  # as main.py does
        stop = StopRequest().listen()
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop and stop.reason == "SIGINT" and left == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == []
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]


def test_a_second_ctrl_c_reaches_the_handler_of_a_notebook():
    with restored_handlers():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop = StopRequest().listen()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored():
    with restored_handlers():
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with restored_handlers():
            StopRequest().listen()
            assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def as_excel_saves_it(path):
    """Return the content as Excel saves it: UTF-8 with a byte-order mark and CR LF line ends."""
    text = path.read_bytes().decode()
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(1)", "'=1", "ünï, 实验", "plain"])
def test_a_results_file_saved_by_excel_can_be_read_and_extended(program, config, tmp_path, name):
    """Names are read back unchanged, and no cell of the file begins a formula."""
    assert program("--config", config(epochs=1), f"--name={name}")[0] == 0
    path = tmp_path / "runs/results.csv"
    stored = read(path)[0]
    assert (stored["Name"] == name) == (name in ("ünï, 实验", "plain")) and stored["Name"][0] not in "=+-@"
    as_excel_saves_it(path)
    results.check(path)
    assert program("--config", config(epochs=1), "--seed", 2, "--name", "second")[0] == 0
    found, lost = rows(path)
    assert ([row["Name"] for row, _ in found], lost) == ([name, "second"], 0)
    assert found[0][0]["Date Finished"] and [options.run.name for _, options in found] == [name, "second"]
    assert program("--config", config(epochs=1), f"--name={name}", "--resume", "auto")[0] == 0


def test_a_run_path_that_looks_like_a_formula_is_stored_as_text(program, config, tmp_path):
    log = tmp_path / "-=x"
    log.mkdir()
    assert program("--config", config(epochs=1), "--log-dir=-=x", "--results", "r.csv")[0] == 0
    assert read(tmp_path / "r.csv")[0]["Run Directory"].startswith("'-=x/")
    assert len(rows(tmp_path / "r.csv")[0]) == 1
