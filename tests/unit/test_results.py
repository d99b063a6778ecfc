"""results.csv after crashes: damaged lines are moved with a warning, intact rows are kept, lost rows are rebuilt."""

import csv
import errno
import os

import pytest

from scripts import results as program_of_results
from scripts import sweep
from utils.errors import UsageError
from utils.records import results
from utils.records.results import COLUMNS

DEVICE = "cpu (Xeon, 2.1 GHz, 1 threads)"


def row(number, epochs=6):
    facts = {"Name": f'a "{number}" × b', "Device": DEVICE, "Epochs": str(epochs), "Run ID": f"{number:032x}-{epochs}"}
    return dict.fromkeys(COLUMNS, "x") | facts


def rows_with(path):
    """Return the numbers of the rows, read as any other program reads CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return [int(row["Run ID"].partition("-")[0], 16) for row in csv.DictReader(file, strict=True)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "results.csv"
    results.append(path, row(1))
    results.append(path, row(2))
    return path


def line(number):
    return results._as_csv([row(number)], header=False).encode().rstrip(b"\n")


CUT = line(7)[: line(7).index(b"Xeon") + 3]  # within the escaped name of the device
DAMAGES = {
    "within quotes": CUT,
    "within quotes, ended": CUT + b"\n",
    "within UTF-8": line(7)[: line(7).index("×".encode()) + 1],
    "within the last value": line(7)[:-12],
    "within the last number": results._as_csv([row(7, 60)], header=False).encode()[:-2],
    "few fields": b"a,b,c\n",
    "many fields": line(7) + b",more\n",
    "NUL": b"\0" * 512,
    "NUL, ended": b"\0" * 512 + b"\n",
    "bytes": b"\xff\xfe\x00\n",
    "two": CUT + b"\n" + b"a,b" + b"\n",
    "a row within NUL": b"\0" * 9 + line(7) + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_moved_to_another_file_and_other_rows_are_kept(file, capsys, damage):
    with file.open("ab") as there:
        there.write(DAMAGES[damage])
    assert len(results.read(file)[0]) == 2 and results.read(file)[1] == 1 + (damage == "two")
    results.append(file, row(3))
    results.append(file, row(4))
    output = capsys.readouterr().err
    assert rows_with(file) == [1, 2, 3, 4] and results.read(file)[1] == 0
    assert output.count("\n") == 1 and f"damaged lines moved to {file}.damaged: {1 + (damage == 'two')}" in output
    apart = file.with_name("results.csv.damaged").read_bytes()
    assert apart.rstrip(b"\n") == DAMAGES[damage].rstrip(b"\n")


def test_a_row_that_an_earlier_version_appended_to_a_torn_line_is_found(file):
    """The earlier version ended the torn line first, but a CSV reader joins both lines to one row."""
    with file.open("ab") as there:
        there.write(CUT + b"\n" + line(8) + b"\n")
    assert [r["Run ID"][31] for r in results.read(file)[0]] == ["1", "2", "8"]
    results.check(file)
    assert rows_with(file) == [1, 2, 8]


@pytest.mark.parametrize("content", [b"Date Finished,Base Con", b"Date", b"\0" * 100, b""])
def test_a_torn_header_is_replaced(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    results.append(path, row(1))
    assert rows_with(path) == [1]
    path.write_bytes(content + b"\n" + line(5) + b"\n" if content else b"")
    results.append(path, row(1))
    assert rows_with(path) == ([5, 1] if content else [1])


@pytest.mark.parametrize("lost", ["all", "torn", "BOM", "blank", "NUL"])
def test_rows_below_a_damaged_header_are_found(file, lost):
    header, rest = file.read_bytes().split(b"\n", 1)
    before = {
        "all": b"",
        "torn": header[40:] + b"\n",
        "BOM": b"\xef\xbb\xbf",
        "blank": b"\n\r\n",
        "NUL": b"\0" * 64 + b"\n",
    }
    file.write_bytes(before[lost] + rest)
    assert len(results.read(file)[0]) == 2
    results.append(file, row(3))
    assert rows_with(file) == [1, 2, 3] and results.read(file)[1] == 0


def test_concatenated_files_keep_their_rows_and_lose_extra_headers(file, capsys):
    whole = file.read_bytes()
    file.write_bytes(whole + b"\xef\xbb\xbf" + whole.partition(b"\n")[0] + b"\r\n" + line(3) + b"\n")
    results.append(file, row(4))
    assert [r["Run ID"][31] for r in results.read(file)[0]] == ["1", "2", "3", "4"] and not capsys.readouterr().err


def test_a_line_joined_from_two_rows_is_damaged(file):
    first, second = line(5), results._as_csv([row(6, 60)], header=False).encode().rstrip(b"\n")
    with file.open("ab") as there:
        there.write(first[: first.index(b"6,x")] + second[second.index(b"60,x") :] + b"\n")
        there.write(first.rpartition(b",")[0] + b"," + second.rpartition(b",")[2] + b"\n")
    results.append(file, row(3))
    assert [r["Run ID"][31] for r in results.read(file)[0]] == ["1", "2", "6", "3"]


@pytest.mark.parametrize("content", [b"\n", b"\n\r\n\n", b"  \n", b"\xef\xbb\xbf\n"])
def test_a_blank_file_counts_as_empty(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    results.append(path, row(1))
    assert rows_with(path) == [1]


def test_write_own_moves_damaged_lines_to_another_file(file):
    with file.open("ab") as there:
        there.write(CUT)
    results.write_own(file, row(3))
    assert rows_with(file) == [1, 2, 3] and file.with_name("results.csv.damaged").read_bytes() == CUT + b"\n"


def test_a_last_row_without_a_line_end_is_valid(file):
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    results.append(file, row(3))
    assert rows_with(file) == [1, 2, 3] and not file.with_name("results.csv.damaged").exists()


def test_a_file_with_byte_order_mark_and_crlf_can_be_read_and_extended(file):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    results.check(file)
    results.append(file, row(2))
    results.append(file, row(3))
    assert [r["Run ID"][31] for r in results.read(file)[0]] == ["1", "2", "3"] and results.read(file)[1] == 0


def test_a_run_id_inside_a_torn_line_does_not_block_its_row(file):
    with file.open("ab") as there:
        there.write(b"torn," + row(3)["Run ID"].encode())
    results.append(file, row(3))
    results.append(file, row(3))
    assert rows_with(file) == [1, 2, 3]


def test_a_row_is_removed_if_its_write_fails(file, monkeypatch):
    before = file.read_bytes()

    def refuse(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        results.append(file, row(3))
    assert file.read_bytes() == before


def test_a_sweep_table_uses_all_valid_rows_and_warns_about_damaged_lines(program, config, tmp_path, capsys):
    path = config(epochs=1)
    for seed in (1, 2):
        assert program("--config", path, "--seed", seed)[0] == 0
    file = tmp_path / "runs/results.csv"
    header, first, second = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([header, first[: first.index(b'"') + 4], second]) + b"\n")
    argv = ["--config", path, "--seed", "1", "2", "--table"]
    assert sweep.main(argv) == 0
    output = capsys.readouterr()
    assert "(1) |" in output.out and output.err == (
        "warning: runs/results.csv: damaged lines: 1; scripts/results.py rebuild restores their rows\n"
    )
    assert program_of_results.main(["rebuild", "runs"]) == 0
    assert "runs/results.csv: rows added: 1, there before: 1" in capsys.readouterr().out
    assert sweep.main(argv) == 0
    output = capsys.readouterr()
    assert "(2) |" in output.out and not output.err
    assert sorted(file.read_bytes().splitlines()) == sorted([header, first, second])


def test_rebuild_restores_a_lost_results_file_with_current_run_directories(program, config, tmp_path, capsys):
    path = config(epochs=1)
    program("--config", path)
    program("--config", path)
    program("--resume", tmp_path / "runs/ticket/prune-rate=0.5/ticket", "--epochs", 2)
    program("--config", path, "--dry-run", 1)
    program("--config", path, "--dry-run", 1)  # in the numbered sub-directory of the first
    file = tmp_path / "runs/results.csv"
    before = [row | {"Run Directory": str(tmp_path / row["Run Directory"])} for row in results.read(file)[0]]
    file.unlink()
    assert program_of_results.main(["rebuild", str(tmp_path / "runs")]) == 0
    assert "rows added: 3, there before: 0" in capsys.readouterr().out
    rebuilt, damaged = results.read(file)
    # two runs may end within the same second
    assert sorted(map(str, rebuilt)) == sorted(map(str, before)) and damaged == 0
    (tmp_path / "runs/ticket").rename(tmp_path / "runs/moved")
    (tmp_path / "runs/moved/prune-rate=0.5/ticket/0/result.csv").unlink()
    assert program_of_results.main(["rebuild", str(tmp_path / "runs"), "--results", str(tmp_path / "new.csv")]) == 0
    output = capsys.readouterr()
    assert (
        "rows added: 2" in output.out
        and "finished runs without result.csv, made by an earlier version: 1" in output.err
    )
    assert all("runs/moved/prune-rate=0.5" in row["Run Directory"] for row in results.read(tmp_path / "new.csv")[0])


def test_rebuild_reports_bad_input_in_one_line(tmp_path, capsys):
    assert program_of_results.main(["rebuild", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nowhere is not a directory\n"
    (tmp_path / "results.csv").write_text("Name\na\n")
    assert program_of_results.main(["rebuild", str(tmp_path)]) == 2
    assert "other columns" in capsys.readouterr().err
    with pytest.raises(UsageError, match="other columns"):
        results.read(tmp_path / "results.csv")
