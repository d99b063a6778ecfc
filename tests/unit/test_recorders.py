"""The list of recorders of a run, its guards, and what recorders of tracking packages send."""

import random

import numpy as np
import pytest
import torch

import args
from tests.recorded import recorded_run, started
from utils.config.plugins import register_recorder
from utils.errors import UsageError
from utils.records.epoch_tables import Table
from utils.records.recorder import Recorder
from utils.records.recorder_list import RecorderList
from utils.records.registry import RECORDERS, RecorderRow, check_installed
from utils.records.run import place_of
from utils.records.trackers import Tracker

PLAIN = {"set": "digits", "arch": "FC"}
METRICS = {"train": {"loss": 0.5}, "weights": {"density_fc": 0.25}}


class Notes(Recorder):
    """Recorder that notes every call."""

    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append(("start", run.epoch))

    def table(self, name, epoch, table):
        self.calls.append(("table", name, epoch, table.rows))

    def metrics(self, epoch, metrics):
        self.calls.append(("metrics", epoch, metrics))

    def histograms(self, epoch, tensors):
        self.calls.append(("histograms", epoch, [(name, tensor.tolist()) for name, tensor in tensors]))

    def flush(self):
        self.calls.append(("flush",))

    def close(self, final):
        self.calls.append(("close", final))


@pytest.fixture
def chosen(monkeypatch):
    """Return a function that makes --tracker NAME choose a recorder."""

    def choose(name, recorder):
        monkeypatch.setitem(RECORDERS, name, RecorderRow(lambda: recorder))

    return choose


def tell_all(recorders):
    recorders.table("sweep", 3, Table([{"on": 1}]))
    recorders.metrics(3, METRICS)
    recorders.histograms(3, [("fc.weight", torch.ones(2))])
    recorders.flush()
    recorders.close({"test/acc@1": 50.0})


def test_every_recorder_is_told_the_same_in_the_same_order(chosen, tmp_path):
    files, first, second = Notes(), Notes(), Notes()
    chosen("first", first)
    chosen("second", second)
    recorders = RecorderList([files], ["first", "second", "first"])
    recorders.start(recorded_run(tmp_path, 2))
    tell_all(recorders)
    assert files.calls == [
        ("start", 2),
        ("table", "sweep", 3, [{"on": 1}]),
        ("metrics", 3, METRICS),
        ("histograms", 3, [("fc.weight", [1, 1])]),
        ("flush",),
        ("close", {"test/acc@1": 50.0}),
    ]
    assert first.calls == second.calls == files.calls


@pytest.mark.parametrize("hook", ["table", "metrics", "histograms", "flush", "close"])
def test_a_recorder_that_fails_is_dropped_with_one_warning(chosen, tmp_path, capsys, hook):
    def fail(*_arguments):
        raise OSError("no space left\nmore")

    bad, good = Notes(), Notes()
    setattr(bad, hook, fail)
    chosen("bad", bad)
    chosen("good", good)
    recorders = RecorderList([], ["bad", "good"])
    recorders.start(recorded_run(tmp_path))
    tell_all(recorders)
    warning = "warning: tracker: bad records no longer: OSError: no space left; the training continues without it\n"
    assert capsys.readouterr().err == warning
    names = [call[0] for call in good.calls]
    assert names == ["start", "table", "metrics", "histograms", "flush", "close"]
    assert [call[0] for call in bad.calls] == names[: names.index(hook)]


def test_an_error_of_a_recorder_of_the_program_ends_the_run(tmp_path):
    def fail(*_arguments):
        raise OSError("no space left")

    bad = Notes()
    bad.metrics = fail
    recorders = RecorderList([bad])
    recorders.start(recorded_run(tmp_path))
    with pytest.raises(OSError, match="no space left"):
        recorders.metrics(1, METRICS)


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("no key\nhelp"), "ValueError: no key"), (UsageError("no key"), "no key")]
)
def test_a_recorder_that_cannot_start_ends_the_run_and_closes_the_others(chosen, tmp_path, error, reason):
    def fail(run):
        raise error

    bad, good = Notes(), Notes()
    bad.start = fail
    chosen("bad", bad)
    chosen("good", good)
    with pytest.raises(UsageError) as raised:
        RecorderList([], ["good", "bad"]).start(recorded_run(tmp_path))
    assert str(raised.value) == f"tracker: bad cannot start: {reason}"
    assert good.calls == [("start", 0), ("close", {})] and bad.calls == []


def test_a_recorder_cannot_change_tensors_metrics_or_random_numbers(chosen, tmp_path):
    class Meddler(Recorder):
        def start(self, run):
            torch.rand(3), np.random.rand(3), random.random()

        def metrics(self, epoch, metrics):
            metrics["train"]["loss"] = -1.0
            self.start(None)

        def histograms(self, epoch, tensors):
            for _, tensor in tensors:
                tensor.zero_()
            self.start(None)

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    chosen("meddler", Meddler())
    weight, metrics = torch.nn.Parameter(torch.ones(2)), {"train": {"loss": 0.5}}
    recorders = RecorderList([], ["meddler"])
    drawn = []
    for meddles in (False, True):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        if meddles:
            recorders.start(recorded_run(tmp_path))
            recorders.metrics(1, metrics)
            recorders.histograms(1, [("weight", weight)])
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert weight.tolist() == [1, 1] and metrics == {"train": {"loss": 0.5}}


class FakeTracker(Tracker):
    """Tracker whose package is two lists."""

    name = "fake"

    def __init__(self):
        self.opened, self.sent = [], []

    def open(self, run, stored):
        self.opened.append(stored)
        return stored or "id 1"

    def send(self, records):
        self.sent.append(records)

    def end(self, *, finished):
        self.sent.append(finished)


def tracker(path, epoch, **changes):
    (path / "logs").mkdir(exist_ok=True)
    return started(FakeTracker(), path, epoch, **changes)


def test_a_tracker_gets_all_records_of_an_epoch_at_once(tmp_path):
    fake, table = tracker(tmp_path, 0), Table([{"on": 1}])
    fake.flush()  # a checkpoint before the first epoch is over
    fake.table("sweep", 1, table)
    fake.flush()
    fake.metrics(1, METRICS)
    fake.histograms(1, [("grad", torch.tensor([0.0, 1.0, float("nan"), float("inf")], dtype=torch.bfloat16))])
    assert fake.sent == []
    fake.flush()
    (sent,) = fake.sent
    assert sent.epoch == 1 and sent.metrics == {"train/loss": 0.5, "weights/density_fc": 0.25}
    assert sent.tables == {"sweep": table}
    counts, edges = sent.histograms["grad"]
    assert counts.sum() == 2 and (edges[0], edges[-1]) == (0, 1)
    fake.metrics(2, METRICS)
    fake.flush()
    assert fake.sent[1].tables == fake.sent[1].histograms == {}


def test_a_tracker_of_a_resumed_run_continues_and_sends_no_epoch_twice(tmp_path):
    first = tracker(tmp_path, 0)
    for epoch in (1, 2):
        first.metrics(epoch, METRICS)
        first.flush()
    resumed = tracker(tmp_path, 1)  # killed before the checkpoint of epoch 2
    for epoch in (2, 3):
        resumed.metrics(epoch, METRICS)
        resumed.flush()
    resumed.close({"test/acc@1": 60.0})
    assert (first.opened, resumed.opened) == ([None], ["id 1"])
    assert [records.epoch for records in first.sent] == [1, 2]
    assert [getattr(records, "epoch", records) for records in resumed.sent] == [3, True]


def test_final_metrics_are_sent_once_and_only_if_the_last_epoch_lacks_them(tmp_path):
    final = {"test/acc@1": 60.0, "val/acc@1": 1.0}
    for _ in range(2):
        fake = tracker(tmp_path, 3, held_out="val")
        fake.close(final)
    assert fake.sent == [True]
    longer = tracker(tmp_path, 3, held_out="val")
    longer.metrics(4, METRICS)
    longer.flush()
    longer.close(final)
    assert [getattr(r, "metrics", r) for r in longer.sent[1:]] == [{"test/acc@1": 60.0}, True]
    stopped = tracker(tmp_path, 4, held_out="val")
    stopped.close({})
    assert stopped.sent == [False]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "7"])
def test_a_damaged_state_of_a_tracker_is_refused(tmp_path, content):
    tracker(tmp_path, 0)
    (tmp_path / "logs/fake.json").write_text(content)
    with pytest.raises(UsageError, match=r"logs/fake\.json is damaged: .*; move it away to begin a new record"):
        tracker(tmp_path, 0)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(RECORDERS, "far", RecorderRow("nowhere:Far", "no-such-package"))
    check_installed([])
    message = "tracker: far needs a package that is not installed: pip install no-such-package"
    with pytest.raises(UsageError, match=f"^{message}$"):
        check_installed(["far"])


def test_every_row_names_a_recorder():
    assert all(issubclass(row.load(), Recorder) for row in RECORDERS.values())
    assert [name for name, row in RECORDERS.items() if row.package] == ["wandb", "trackio", "mlflow"]


def test_a_registered_recorder_is_a_value_of_the_option(monkeypatch):
    monkeypatch.setattr("utils.config.plugins._origins", {})
    try:
        assert register_recorder("notes", package="torch")(Notes) is Notes
        assert args.from_flat(PLAIN | {"tracker": ["notes", "wandb"]}).run.tracker == ("notes", "wandb")
        assert RECORDERS["notes"] == RecorderRow(Notes, "torch")
        with pytest.raises(UsageError, match="tracker: wandb exists already, in this program; choose another name"):
            register_recorder("wandb")(Notes)
    finally:
        RECORDERS.pop("notes", None)
    with pytest.raises(
        UsageError, match="tracker: 'note' in the stored configuration, but it must be one of wandb, trackio, mlflow"
    ):
        args.from_flat(PLAIN | {"tracker": "note"})


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ("ticket/prune-rate=0.5/ticket", "prune-rate=0.5/ticket"),
        ("ticket/prune-rate=0.5/ticket/12", "prune-rate=0.5/ticket/12"),
    ],
)
def test_a_run_is_named_after_its_directory_wherever_it_is(tmp_path, parts, name):
    options = args.from_flat(
        PLAIN | {"config": "ticket.yml", "conv_type": "SubnetConv", "prune_rate": 0.5, "log_dir": "elsewhere"}
    )
    assert place_of(tmp_path / parts, options) == (tmp_path, "ticket", name)
