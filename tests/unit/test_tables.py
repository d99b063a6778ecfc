"""Tables by epoch with their charts and TensorBoard curves, also after a resumption."""

import csv

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.recorded import started
from trainers.methods.default import Default
from trainers.registry import TRAINERS, Trainer
from utils.records.epoch_tables import Table, record_table
from utils.records.plots import Line, line_chart
from utils.records.tensorboard import TensorBoard, event_sizes

CURVES = ([-0.5, 0, 2.5], [5, 10, 20]), ([-0.5, 0, 9], [6, 11, 21])
PNG = b"\x89PNG\r\n\x1a\n"


def curve(*ys):
    return Table([{"on": i / 10, "acc@1": y} for i, y in enumerate(ys)], x="on", y="acc@1")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_table_has_the_epoch_as_first_column(tmp_path):
    assert (
        record_table(tmp_path, "statistics", 3, Table([{"tensor": "a", "mean": 0.5}, {"tensor": "b", "mean": 1}])) == []
    )
    assert rows(tmp_path / "statistics.csv") == [["epoch", "tensor", "mean"], ["3", "a", "0.5"], ["3", "b", "1"]]
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.csv"]


def test_a_curve_has_one_line_per_epoch_and_a_chart(tmp_path):
    record_table(tmp_path, "sweep", 10, curve(50, 60))
    lines = record_table(tmp_path, "sweep", 20, curve(70, 80))
    assert lines == [Line("epoch 10", [0, 0.1], [50, 60]), Line("epoch 20", [0, 0.1], [70, 80])]
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG)


def test_a_chart_of_many_epochs_shows_ten_including_first_and_last(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.records.epoch_tables.line_chart", lambda _path, lines, *_, **__: drawn.append([*lines]))
    for epoch in range(1, 41):
        lines = record_table(tmp_path, "shifts", epoch, curve(epoch))
    assert len(lines) == 40
    assert [len(these) for these in drawn] == [*range(1, 11), *[10] * 30]
    assert all((these[0].label, these[-1].label) == ("epoch 1", f"epoch {i}") for i, these in enumerate(drawn, 1))


def test_rows_of_later_epochs_from_an_interrupted_process_are_replaced(tmp_path):
    for epoch in (10, 20, 30):
        record_table(tmp_path, "sweep", epoch, curve(epoch))
    lines = record_table(tmp_path, "sweep", 20, curve(99))
    assert [(line.label, line.ys) for line in lines] == [("epoch 10", [10]), ("epoch 20", [99])]


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n",
        b"epoch,a\nlast,2\n",
        b"epoch,on\n1,2\n",
        b"epoch,on,acc@1\n1,2\n",
        b"epoch\n\xff\n",
        b"x" * 200_000,
    ],
    ids=range(6),
)
def test_a_file_that_is_not_a_valid_table_is_renamed_with_a_warning(tmp_path, capsys, content):
    (tmp_path / "sweep.csv").write_bytes(content)
    lines = record_table(tmp_path, "sweep", 3, curve(1))
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'sweep.csv'} is damaged: it was renamed to sweep.csv.damaged")
    assert err.count("\n") == 1 and (tmp_path / "sweep.csv.damaged").read_bytes() == content
    assert [line.label for line in lines] == ["epoch 3"] and rows(tmp_path / "sweep.csv")[1:] == [["3", "0.0", "1"]]


def test_a_table_that_cannot_be_written_causes_a_warning(tmp_path, capsys):
    assert record_table(tmp_path / "gone", "sweep", 3, curve(1)) == []
    message = "No such file or directory; the table of epoch 3 is left out"
    assert capsys.readouterr().err == f"warning: cannot write {tmp_path / 'gone/sweep.csv'}: {message}\n"


def scalars(directory):
    board = EventAccumulator(str(directory)).Reload()
    return {tag: sorted((s.step, s.value) for s in board.Scalars(tag)) for tag in board.Tags()["scalars"]}


def test_event_files_are_truncated_to_their_sizes_at_the_checkpoint(tmp_path):
    """This covers negative steps, step 0 and steps above any epoch, which purging by step would miss."""
    first, later = ([{"x": x, "y": y} for x, y in zip(xs, ys, strict=True)] for xs, ys in CURVES)
    board = started(TensorBoard({}), tmp_path)
    board.table("sweep", 1, Table(first, "x", "y"))
    board.metrics(1, {"test": {"loss": 1.0}})
    board.flush()
    sizes = event_sizes(tmp_path / "logs")
    board.table("sweep", 2, Table(later, "x", "y"))
    board.metrics(2, {"test": {"loss": 9.0}})
    board.close({"test/acc@1": 50.0})
    interrupted = started(TensorBoard(None), tmp_path, 1)
    interrupted.metrics(2, {"test": {"loss": 8.0}})
    interrupted.close({})
    board = started(TensorBoard(sizes), tmp_path, 1)
    assert event_sizes(tmp_path / "logs") == sizes
    board.table("sweep", 2, Table(later, "x", "y"))
    board.table("statistics", 2, Table(later))
    board.metrics(2, {"test": {"loss": 2.0}})
    board.close({})
    assert scalars(tmp_path / "logs") == {
        "sweep/epoch_1": [(-50, 5), (0, 10), (250, 20)],
        "sweep/epoch_2": [(-50, 6), (0, 11), (900, 21)],
        "test/loss": [(1, 1.0), (2, 2.0)],
    }


def test_event_files_of_unknown_size_are_kept_and_later_steps_purged_by_the_reader(tmp_path):
    board = started(TensorBoard({}), tmp_path)
    for epoch in (1, 2, 3):
        board.metrics(epoch, {"test": {"loss": epoch}})
    board.close({})
    (first,) = (tmp_path / "logs").iterdir()
    # TensorBoard orders event files by the time in their names
    first.rename(tmp_path / "logs/events.out.tfevents.1.name.1.0")
    sizes = event_sizes(tmp_path / "logs")
    board = started(TensorBoard(None), tmp_path, 1)
    assert event_sizes(tmp_path / "logs") == sizes
    board.metrics(2, {"test": {"loss": 9.0}})
    board.close({})
    assert scalars(tmp_path / "logs") == {"test/loss": [(1, 1.0), (2, 9.0)]}


def test_a_chart_can_have_one_line_or_several(tmp_path):
    for count in (1, 3):
        line_chart(tmp_path / f"{count}.png", [Line(str(i), [0, 1], [i, 2]) for i in range(count)], "x", "y", "title")
        assert (tmp_path / f"{count}.png").read_bytes().startswith(PNG)
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "3.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_tables_of_a_training_method_are_recorded_by_the_run(program, config, tmp_path, monkeypatch):
    """The loop calls `tables` after every evaluation, with the finished epoch and the number of epochs."""
    calls, begun = [], []

    def tables(self, model, held_out, runtime, epoch, epochs):
        calls.append((epoch, epochs, held_out.samples, model.training))
        return {"sweep": curve(epoch, 2 * epoch)} if epoch == epochs else {}

    def begin(self, model, optimizer, steps, epochs, runtime):
        begun.append((type(optimizer).__name__, steps, epochs))

    monkeypatch.setattr(Default, "tables", tables)
    monkeypatch.setitem(TRAINERS, "default", Trainer("trainers.methods.default:Default", tables=("sweep",)))
    monkeypatch.setattr(Default, "before_fit", begin, raising=False)
    dense = config("dense.yml", conv_type=None, freeze_weights=None, prune_rate=None)
    assert program("--config", dense)[0] == 0
    run = tmp_path / "runs/dense/dense"
    assert calls == [(1, 2, 360, False), (2, 2, 360, False)]
    assert begun == [("SGD", 23, 2)]
    assert rows(run / "sweep.csv") == [["epoch", "on", "acc@1"], ["2", "0.0", "2"], ["2", "0.1", "4"]]
    assert (run / "sweep.png").exists()
    assert scalars(run / "logs")["sweep/epoch_2"] == [(0, 2), (10, 4)]
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 2
