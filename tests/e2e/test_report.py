"""Curves of several runs in one chart."""

import csv

import pytest

from scripts import report

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def runs(program, config, tmp_path):
    """Two seeds of a ticket and a third run with another density."""
    for words in (("--seed", 1), ("--seed", 2), ("--seed", 1, "--prune-rate", 0.2, "--epochs", 3)):
        assert program("--config", config(), *words)[0] == 0
    return [str(p.parent) for p in sorted((tmp_path / "runs").rglob("metrics.csv"))]


def column(run, name):
    with (report.Path(run) / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_labels_hold_the_differing_options_and_seeds_are_averaged(runs, tmp_path, capsys):
    sparse, second, first = sorted(runs, key=lambda run: ("0.5" in run, run.endswith("ticket")))
    assert report.main([*runs, "--out", str(tmp_path / "curves.png")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["epochs", "last", "test/acc@1", "(%)", "largest", "test/acc@1", "(%)"]
    assert any(line.startswith("prune_rate 0.5") and line.endswith("(2)") and "±" in line for line in out)
    (alone,) = (line for line in out if line.startswith("prune_rate 0.2"))
    last = column(sparse, "test/acc@1")
    assert alone.removeprefix("prune_rate 0.2, epochs 3").split() == [
        "3",
        f"{last[-1]:.2f}",
        "(1)",
        f"{max(last):.2f}",
        "(1)",
    ]
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    curves = report.gather([report.Path(run) for run in (first, second)], "train/loss")
    line = report.mean_line(*next(iter(curves.items())))
    means = [(a + b) / 2 for a, b in zip(column(first, "train/loss"), column(second, "train/loss"), strict=True)]
    assert line.label == "arch FC (2 runs)" and line.xs == [1, 2] and line.ys == pytest.approx(means)


def test_each_seed_has_a_curve_of_its_own_if_asked(runs, tmp_path, capsys):
    of_seeds = [run for run in runs if "0.5" in run]
    assert report.main([*of_seeds, "--each", "--out", str(tmp_path / "seeds.png")]) == 0
    lines = sorted(capsys.readouterr().out.splitlines()[1:3])
    assert [line.split()[:2] for line in lines] == [["seed", "1"], ["seed", "2"]]


def test_runs_of_different_lengths_have_separate_curves(program, config, tmp_path):
    for seed, epochs in ((1, 2), (2, 2), (3, 3)):
        program("--config", config(epochs=epochs), "--seed", seed)
    paths = [tmp_path / f"runs/ticket/prune-rate=0.5/ticket{tail}" for tail in ("", "/0", "/1")]
    curves = report.gather(paths, "test/acc@1")
    assert {label: len(of) for label, of in curves.items()} == {"epochs 2": 2, "epochs 3": 1}
    text = (paths[1] / "metrics.csv").read_text().splitlines(True)
    (paths[1] / "metrics.csv").write_text("".join(text[:2]))  # not yet done
    curves = report.gather(paths[:2], "test/acc@1")
    (of,) = curves.values()
    assert report.table(curves, "test/acc@1").splitlines()[1].split()[2:4] == ["1", f"{(of[0][1] + of[1][1]) / 2:.2f}"]


def test_runs_that_differ_in_many_options_are_labelled_with_their_directories(program, config, tmp_path):
    for name, changes in (("a", {}), ("b", {"lr": 0.2, "batch_size": 32, "momentum": 0.5, "epochs": 1})):
        program("--config", config(**changes), "--name", name)
    paths = [tmp_path / f"runs/ticket/prune-rate=0.5/{name}" for name in "ab"]
    assert [*report.gather(paths, "test/acc@1")] == [str(path) for path in paths]


def test_bad_input_is_reported_in_one_line(runs, tmp_path, capsys):
    out = str(tmp_path / "curves.png")
    for words, parts in (
        ([str(tmp_path)], ["is not a run directory", "config.yaml"]),
        ([runs[0], "--measure", "test/ac@1"], ["--measure", "'test/ac@1'", "did you mean 'test/acc@1'"]),
    ):
        assert report.main([*words, "--out", out]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and all(part in err for part in parts), err
    assert report.main([runs[0], "--out", str(tmp_path / "nowhere" / "a.png")]) == 2
    assert "nowhere is not a directory" in capsys.readouterr().err
    assert report.main([runs[0], "--out", "/proc/a.png"]) == 2
    assert capsys.readouterr() == ("", "error: --out: /proc cannot be written to\n")
    for name in ("a.svg", "a.html", "a.pdf"):
        assert report.main([runs[0], "--out", str(tmp_path / name)]) == 2
        assert "the picture is a PNG file; its name must end in .png" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert not (tmp_path / "curves.png").exists()


def test_a_measure_has_its_unit():
    names = ["test/acc@1", "test/loss", "train/elapsed_seconds"]
    assert [*map(report.with_unit, names)] == ["test/acc@1 (%)", "test/loss", "train/elapsed_seconds (s)"]


def test_curves_have_the_epochs_of_metrics_csv(program, config, tmp_path):
    program("--config", config(epochs=4), "--start-epoch", 1)
    program("--config", config(epochs=3), "--lr", 0.2)
    late, whole = (
        report.gather([tmp_path / f"runs/ticket/prune-rate=0.5/ticket{tail}"], "test/acc@1") for tail in ("", "/0")
    )
    (late,), (whole,) = *late.values(), *whole.values()
    assert ([*late], [*whole]) == ([2, 3, 4], [1, 2, 3])
    line = report.mean_line("both", [late, whole])
    assert line.xs == [2, 3] and line.ys == [(late[e] + whole[e]) / 2 for e in (2, 3)]
