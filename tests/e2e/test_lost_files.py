"""A run with a missing file or a file of another run is repaired where possible and otherwise refused in one line."""

import csv
import shutil

import pytest
import torch

from scripts import results as program_of_results
from tests.e2e.test_damaged_runs import change_status, contents, one_line


@pytest.fixture
def run(program, config, tmp_path):
    """A run that was stopped after two of its three epochs. The second epoch is the best so far."""
    assert program("--config", config(epochs=3, save_every=1))[0] == 0
    made = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    shutil.copy(made / "checkpoints/epoch_2.pt", made / "checkpoints/last.pt")
    shutil.copy(made / "checkpoints/epoch_2.pt", made / "checkpoints/best.pt")
    change_status(made, status="stopped", epoch=2)
    (made / "result.csv").unlink()
    return made


def change(path, **changes):
    torch.save(torch.load(path, weights_only=True) | changes, path)


@pytest.fixture
def run_led_by_epoch_2(run):
    """The run with an accuracy of 100 % in its second epoch. No later epoch can be better."""
    for name in ("last", "best"):
        path = run / f"checkpoints/{name}.pt"
        state = torch.load(path, weights_only=True)["state"]
        change(path, state=state | {"best": state["last"] | {"acc@1": 100.0, "epoch": 2}})
    return run


@pytest.mark.parametrize("lost", ["gone", "damaged", "of another run"])
def test_a_lost_best_checkpoint_is_restored_from_a_last_one_of_the_same_epoch(program, run_led_by_epoch_2, lost):
    best, last = run_led_by_epoch_2 / "checkpoints/best.pt", run_led_by_epoch_2 / "checkpoints/last.pt"
    whole = torch.load(last, weights_only=True)
    if lost == "of another run":
        change(best, state=whole["state"] | {"best": whole["state"]["last"] | {"epoch": 2, "loss": 7.0}})
    else:
        best.unlink()
    if lost == "damaged":
        best.write_bytes(last.read_bytes()[:-900])
    code, _, err = program("--resume", run_led_by_epoch_2)
    assert code == 0 and err.count("among epoch 2 (saved as best.pt now) and later epochs") == 1
    back = torch.load(best, weights_only=True)
    assert back["epoch"] == 2 and back["state"] == whole["state"]
    assert all(torch.equal(value, back["model"][name]) for name, value in whole["model"].items())


def test_a_best_checkpoint_of_another_run_is_not_used(program, run):
    best, last = run / "checkpoints/best.pt", run / "checkpoints/last.pt"
    state = torch.load(last, weights_only=True)["state"]
    first = state["last"] | {"acc@1": 99.0, "epoch": 1}
    change(last, state=state | {"best": first})
    change(best, epoch=1, state=state | {"best": first | {"loss": 7.0}})
    code, _, err = program("--resume", run)
    assert code == 0 and "not from the best epoch of this run: the best epoch is picked again" in err
    assert torch.load(best, weights_only=True)["epoch"] == 3


def test_a_status_of_another_run_does_not_make_a_run_finished(program, run):
    change_status(run, status="done", epoch=3, epochs=3)
    before = contents(run)
    one_line(program("--resume", run), "last.pt has 2 of 3 epochs trained", "move status.json away")
    assert contents(run) == before
    (run / "status.json").unlink()
    assert program("--resume", run)[0] == 0


@pytest.mark.parametrize("lost", ["gone", "empty", "a row"])
def test_missing_metrics_rows_cause_a_warning(program, run, lost):
    path = run / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join({"gone": [], "empty": [], "a row": [lines[0], *lines[2:]]}[lost]))
    if lost == "gone":
        path.unlink()
    code, _, err = program("--resume", run)
    assert code == 0 and f"epochs without a row: {1 if lost == 'a row' else 2} of 2" in err
    with path.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == (["2", "3"] if lost == "a row" else ["3"])


def test_duplicate_metrics_rows_are_refused(program, run):
    path = run / "metrics.csv"
    path.write_text(path.read_text() + "".join(path.read_text().splitlines(keepends=True)[1:]))
    before = contents(run)
    one_line(program("--resume", run), "metrics.csv is damaged: it has two rows of one epoch")
    assert contents(run) == before


def test_the_users_own_tables_are_ignored(program, run):
    (run / "notes.csv").write_text("a,b\n1,2\n")
    (run / "more.csv").mkdir()
    assert program("--resume", run)[0] == 0 and (run / "notes.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("lost", ["gone", "empty", "cut"])
def test_shortened_event_files_cause_a_warning(program, run, lost):
    (path,) = (run / "logs").iterdir()
    whole = path.read_bytes()
    path.unlink()
    if lost != "gone":
        path.write_bytes(whole[:100] if lost == "cut" else b"")
    code, _, err = program("--resume", run)
    assert code == 0 and err.count(path.name) == 1 and "its curves are incomplete" in err


@pytest.mark.parametrize("name", ["logs", "checkpoints"])
def test_a_file_in_place_of_a_folder_is_refused_in_one_line(program, run, name):
    shutil.rmtree(run / name)
    (run / name).write_text("")
    one_line(program("--resume", run), f"{name} is not a directory; move it away")


def test_rebuild_ignores_copies_of_a_run_and_rows_of_another_run(program, config, tmp_path, capsys):
    assert program("--config", config(epochs=1))[0] == 0
    first = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    shutil.copytree(first, tmp_path / "runs/copy")
    assert program("--config", config(epochs=1, seed=5))[0] == 0
    shutil.copy(first / "result.csv", first / "0/result.csv")
    (tmp_path / "runs/results.csv").unlink()
    assert program_of_results.main(["rebuild", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr()
    assert (
        "rows added: 1, there before: 0" in output.out
        and "0/result.csv: rows of another run, left out: 1" in output.err
    )


def test_a_run_that_was_stopped_in_its_first_epoch_is_resumed_without_a_warning(program, config, tmp_path):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trainers.callbacks.RunRecorder.stop_asked", lambda self: True)
        assert program("--config", config())[0] == 75
    last = torch.load(next((tmp_path / "runs").rglob("last.pt")), weights_only=True)
    assert last["epoch"] == 0 and last["step"] > 0
    code, out, err = program("--config", config(), "--resume", "auto")
    assert (code, err) == (0, "") and "resuming from " in out
