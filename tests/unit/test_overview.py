"""The table of all runs below a folder, and tables as lists of dicts."""

import json
import sys
import types

import pytest

import featherweight as fw
from utils.tables import Rows


@pytest.fixture
def folder(program, config, tmp_path):
    """Two finished runs, of which the second has a validation split, and a dry run."""
    assert program("--config", config())[0] == 0
    assert program("--config", config(epochs=1, val_split=0.2, prune_rate=0.3, seed=2))[0] == 0
    assert program("--config", config(seed=3), "--dry-run", 1)[0] == 0
    return tmp_path / "runs"


def test_every_run_below_a_folder_is_a_row(folder, capsys):
    (folder / "ticket/prune-rate=0.5/ticket/checkpoints/config.yaml").write_text("a copy")
    rows = fw.runs(folder)
    assert [row["path"].removeprefix(f"{folder}/") for row in rows] == [
        "ticket/prune-rate=0.3/ticket",
        "ticket/prune-rate=0.5/ticket",
        "ticket/prune-rate=0.5/ticket,dry-run",
    ]
    assert capsys.readouterr() == ("", "")
    with_val, plain, dry = rows
    assert (plain["status"], plain["epoch"], plain["epochs"], plain["seed"]) == ("done", 2, 2, 1)
    assert (plain["arch"], plain["set"], plain["conv_type"], plain["prune_rate"]) == ("FC", "digits", "SubnetConv", 0.5)
    assert plain["accuracy"] == pytest.approx(fw.load(plain["path"]).test(), abs=0.005) and plain[
        "kept"
    ] == pytest.approx(0.5, abs=0.001)
    assert plain["best_accuracy"] >= plain["accuracy"] and 0 < with_val["accuracy"] <= 100
    assert dry["kept"] is None and dry["accuracy"] > 0


def test_an_unfinished_run_has_the_accuracies_so_far(folder):
    run = folder / "ticket/prune-rate=0.5/ticket"
    finished = fw.runs(run)[0]
    (run / "result.csv").unlink()
    (row,) = fw.runs(run)
    assert row["accuracy"] == pytest.approx(finished["accuracy"], abs=0.005) and row["kept"] is None
    other = folder / "ticket/prune-rate=0.3/ticket"
    (other / "result.csv").unlink()
    assert fw.runs(other)[0]["accuracy"] is None  # its epochs were not tested on the test set


@pytest.mark.parametrize(
    ("file", "content"),
    [("status.json", "{"), ("metrics.csv", "epoch,test/acc@1\n1,abc\n"), ("config.yaml", "arch: [\n")],
)
def test_a_damaged_run_is_left_out_with_a_warning(folder, capsys, file, content):
    run = folder / "ticket/prune-rate=0.5/ticket,dry-run"
    (run / file).write_text(content)
    assert len(fw.runs(folder)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {run} is left out: ") and err.count("\n") == 1


def test_runs_in_a_missing_folder_are_a_usage_error(tmp_path):
    with pytest.raises(fw.UsageError, match="none is not a folder"):
        fw.runs(tmp_path / "none")
    assert fw.runs(tmp_path) == [] and repr(fw.runs(tmp_path)) == "no rows"


def test_rows_print_as_a_table():
    rows = Rows([{"a": 1, "b": 0.123456}, {"a": None, "c": "text"}])
    assert repr(rows).splitlines() == ["a  b        c", "1  0.12346  -", "-  -        text"]
    assert repr(Rows([{"a": 1}] * 120)).endswith("1\nand 20 more rows")
    assert json.dumps(rows)  # plain dicts


def test_rows_become_a_data_frame_where_pandas_is_installed(monkeypatch):
    pandas = types.ModuleType("pandas")
    pandas.DataFrame = lambda rows, columns: (rows, columns)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert Rows([{"a": 1}, {"b": 2}]).to_pandas() == ([{"a": 1}, {"b": 2}], ["a", "b"])


def test_without_pandas_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"^pandas is not installed; run pip install pandas, or use the rows"):
        Rows([{"a": 1}]).to_pandas()
