"""Charts: labels are drawn literally, and a chart that cannot be drawn causes a warning."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.figure
import pytest

from scripts import report
from trainers.methods.default import Default
from trainers.registry import TRAINERS
from utils.records import plots
from utils.records.epoch_tables import Table
from utils.records.plots import Line, line_chart, line_page

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"
CURVE = Table([{"on": 0.0, "acc@1": 1.0}, {"on": 1.0, "acc@1": 2.0}], x="on", y="acc@1")
TEXTS = {  # label -> text that is drawn
    r"a$\bad{$b": r"a$\bad{$b",
    "cost $5_$": "cost $5_$",
    "$x^2$": "$x^2$",
    "_hidden": "_hidden",
    "__": "__",
    r"\alpha & 50% #1 {x}": r"\alpha & 50% #1 {x}",
    "<b>&amp;": "<b>&amp;",
    "0.5 ± 0.1 × α": "0.5 ± 0.1 × α",
    "a\x1b[31m\nb\u202e": "a\\x1b[31m\\nb\\u202e",
    "\udcff": "\\udcff",
    "\U000f0000": "\\U000f0000",
    "": "",
}


@pytest.fixture
def drawn(monkeypatch):
    """List of the figures that the test draws."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k))
    )
    return figures


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_labels_are_drawn_literally(tmp_path, drawn, capsys, text):
    lines = [Line(text, [0, 1], [1, 2]), Line("_other", [0, 1], [2, 3])]
    assert line_chart(tmp_path / "a.png", lines, text, text, text)
    (axes,) = drawn[0].axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [TEXTS[text], "_other"]
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
    assert [t.get_text() for t in texts] == [TEXTS[text]] * 3
    everything = [*texts, *axes.get_legend().get_texts(), *axes.get_xticklabels(), *axes.get_yticklabels()]
    assert not any(t.get_parse_math() or t.get_usetex() for t in everything)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG) and capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_characters_without_a_glyph_are_escaped_without_a_warning(tmp_path, drawn, monkeypatch, capsys):
    monkeypatch.setattr(plots, "FONTS", ["DejaVu Sans"])
    names = ["实验一", "实验二", "\U0001faa8"]
    assert line_chart(tmp_path / "a.png", [Line(name, [0, 1], [1, 2]) for name in names], "x", "y")
    texts = [t.get_text() for t in drawn[0].axes[0].get_legend().get_texts()]
    assert texts == [r"\u5b9e\u9a8c\u4e00", r"\u5b9e\u9a8c\u4e8c", r"\U0001faa8"] and capsys.readouterr() == ("", "")


def test_long_labels_are_cut_in_the_middle(tmp_path, drawn):
    long = "first " + "x" * 300 + " last"
    assert line_chart(tmp_path / "a.png", [Line(long, [0], [0])] * 2, "x", "y", long)
    title = drawn[0].axes[0].title.get_text()
    assert title.startswith("first ") and title.endswith(" last") and "..." in title and len(title) <= 100


@pytest.mark.parametrize("values", [[float("nan")] * 2, [float("inf"), 1], [1e308, -1e308], []], ids=str)
def test_values_that_cannot_be_drawn_raise_no_error(tmp_path, capsys, values):
    drawn = line_chart(tmp_path / "a.png", [Line("a", [0.0, 1.0][: len(values)], values)], "x", "y")
    err = capsys.readouterr().err
    assert drawn == (tmp_path / "a.png").exists() and err.count("\n") == (not drawn) and "Traceback" not in err


def failures(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def broken(*_, **__):
        raise ZeroDivisionError("of a library\nin two lines")

    return {
        "matplotlib is missing": lambda: monkeypatch.setitem(sys.modules, "matplotlib", None),
        "the disk is full": lambda: monkeypatch.setattr(plots, "write_atomic", full),
        "a fault of matplotlib": lambda: monkeypatch.setattr(matplotlib.figure.Figure, "savefig", broken),
        "memory": lambda: monkeypatch.setattr(plots, "_png", lambda *_: bytes(2**62)),
    }


@pytest.mark.parametrize("failure", failures(None))
def test_a_failed_chart_warns_once(tmp_path, monkeypatch, capsys, failure):
    monkeypatch.delitem(sys.modules, "matplotlib.style", raising=False)
    failures(monkeypatch)[failure]()
    for _ in range(3):
        assert not line_chart(tmp_path / "a.png", [Line("a", [0], [0])], "x", "y")
    err = capsys.readouterr().err
    assert err.startswith(f"warning: cannot write {tmp_path / 'a.png'}: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_escapes_html_and_a_failed_page_causes_a_warning(tmp_path, monkeypatch, capsys):
    text = "<a href='x'>a</a></script> $x$ &amp; \udcff"
    assert line_page(tmp_path / "a.html", [Line(text, [0, 1], [1, 2], "C0--")], "x", "y", text)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    shown = r"&lt;a href='x'&gt;a&lt;\u002fa&gt;&lt;\u002fscript&gt; $x$ &amp;amp; \\udcff"
    assert page.count(shown) == 2 and text[:-1] not in page
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert not line_page(tmp_path / "b.html", [], "x", "y")
    assert re.fullmatch(r"warning: cannot write \S+b\.html: .*plotly.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("env", ["backend", "matplotlibrc", "no home"])
def test_the_users_environment_does_not_affect_charts(tmp_path, env):
    (tmp_path / "rc").write_text("text.usetex: True\nfont.family: Nothing\naxes.formatter.use_mathtext: True\n")
    variables = {
        "backend": {"MPLBACKEND": "nonsense"},
        "matplotlibrc": {"MATPLOTLIBRC": str(tmp_path / "rc")},
        "no home": {"HOME": "/nonexistent", "MPLCONFIGDIR": "/proc/nowhere"},
    }[env]
    text = "import sys; from pathlib import Path; from utils.records.plots import Line, line_chart\n"
    text += "lines = [Line('a', [0, 1], [1, 2e9])]\n"
    text += "sys.exit(not line_chart(Path(sys.argv[1]), lines, 'x', 'y', 'cost $5_$'))"
    command = [sys.executable, "-c", text, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and (tmp_path / "a.png").exists()


@pytest.fixture
def writes_curve(monkeypatch):
    """Make the trainer `default` write a table that is drawn as a curve."""
    monkeypatch.setitem(TRAINERS, "default", replace(TRAINERS["default"], tables=("sweep",)))
    monkeypatch.setattr(Default, "tables", lambda *_: {"sweep": CURVE})


@pytest.mark.usefixtures("writes_curve")
@pytest.mark.parametrize("name", [r"a$\bad{$b", "_实验 $5_$", "=1+1"])
def test_runs_with_special_characters_in_their_name_draw_charts(program, config, tmp_path, name):
    dense = config("dense.yml", conv_type=None, freeze_weights=None, prune_rate=None, epochs=1)
    code, _, err = program("--config", dense, f"--name={name}", "--log-dir", tmp_path / "cost $5_$")
    assert (code, err) == (0, "")
    assert (tmp_path / "cost $5_$/dense" / name / "sweep.png").read_bytes().startswith(PNG)


@pytest.mark.usefixtures("writes_curve")
def test_a_run_completes_if_its_charts_fail(program, config, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_png", lambda *_: 1 / 0)
    dense = config("dense.yml", conv_type=None, freeze_weights=None, prune_rate=None, epochs=2)
    code, out, err = program("--config", dense)
    run = Path("runs/dense/dense")
    assert (code, err) == (
        0,
        f"warning: cannot write {run / 'sweep.png'}: division by zero\n",
    ) and "test accuracy" in out
    assert (tmp_path / run / "sweep.csv").read_text().count("\n") == 5


def test_a_report_prints_its_table_even_if_the_chart_fails(program, config, tmp_path, monkeypatch, capsys):
    for name in ("_a", r"$\bad{"):
        assert program("--config", config(epochs=1), "--name", name, "--lr", 0.1 * len(name))[0] == 0
    runs = [str(tmp_path / "runs/ticket/prune-rate=0.5" / name) for name in ("_a", r"$\bad{")]
    assert report.main([*runs, "--title", "cost $5_$", "--out", str(tmp_path / "a.png")]) == 0
    table = capsys.readouterr().out
    monkeypatch.setattr(plots, "_png", lambda *_: 1 / 0)
    assert report.main([*runs, "--out", str(tmp_path / "b.png")]) == 1
    output = capsys.readouterr()
    assert output.out == "\n".join(table.splitlines()[:-1]) + "\n" and output.err.startswith("failed: cannot write ")
