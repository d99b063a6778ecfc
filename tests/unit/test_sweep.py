"""The sweep: its grid, its finished cells, its table, and its child processes with a stand-in for main.py."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from args import parse
from scripts import sweep
from scripts.parts import sweep_cells, sweep_children
from scripts.parts.sweep_cells import Cell, file_warnings, finished, table
from utils.errors import UsageError
from utils.files import try_lock
from utils.records import results
from utils.tables import mean_of_runs

ROOT = Path(__file__).parents[2]


def grid(*argv):
    return sweep.checked([str(token) for token in argv])[1]


def run_of(cell, path, *, accuracy=90.0, epochs=None, run_id="a1", picked="test", **changes):
    """Write the directory and the results row of a finished run of the cell, as main.py does."""
    precision = cell.options.run.precision.replace("auto", "bf16")
    options = cell.options.replace(seed=cell.options.run.seed or 7, precision=precision, resume=None, **changes)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(options.flat()))
    (path / "status.json").write_text(json.dumps({"status": "done", "id": run_id}))
    epochs = epochs or options.optim.epochs
    facts = {"Epochs": epochs, "Run Directory": path, "Run ID": f"{run_id}-{epochs}", "Best Picked On": picked}
    facts |= {"Last Epoch Test Top 1": f"{accuracy:.2f}", "Set": "digits", "Precision": "bf16"}
    results.append(cell.results, {name: facts.get(name, "x") for name in results.COLUMNS})


@pytest.fixture
def one_cell(config, tmp_path, monkeypatch):
    """Return a function that makes the only cell of a command line, in a new folder with an empty runs/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    path = config(seed=None, precision=None)

    def make(*argv):
        (cell,) = grid("--config", path, *argv)
        return cell

    return make


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--config a.yml --seed 1 2", ["--config a.yml --seed 1", "--config a.yml --seed 2"]),
        ("--seed 1 2 --lr .1 .2", [f"--seed {s} --lr {r}" for s in (1, 2) for r in (".1", ".2")]),
        ("--prune_rate 0.5 -b 8 16", ["--prune-rate 0.5 -b 8", "--prune-rate 0.5 -b 16"]),
        ("--seed 1 2 --wd 0 --seed 3 --weight-decay 1e-4", ["--seed 3 --weight-decay 1e-4"]),
        ("--nesterov --no-nesterov --seed=4", ["--nesterov --seed 4", "--no-nesterov --seed 4"]),
        ("--nesterov true false", ["--nesterov true", "--nesterov false"]),
        ("--plugin a --plugin b", ["--plugin a --plugin b"]),
        ("--plugin a b --plugin c", ["--plugin a --plugin c", "--plugin b --plugin c"]),
        ("--bn-bias-init -1 -.5", ["--bn-bias-init=-1", "--bn-bias-init=-.5"]),
        ("--name=-odd --hidden 30,10 20", ["--name=-odd --hidden 30,10", "--name=-odd --hidden 20"]),
        ("--jobs 3 --seed 1 --only 0 --dry-run --table", ["--seed 1"]),
        ("stray --seed 1 --new 2 3", ["stray --seed 1 --new 2", "stray --seed 1 --new 3"]),
    ],
)
def test_the_grid_is_the_product_of_the_axes_and_the_first_varies_slowest(typed, expected):
    commands = [shlex.join(sweep.main_argv(chosen)) for chosen in sweep.combinations(typed.split())]
    assert commands == [f"{e} --resume auto" for e in expected]


def test_a_cell_has_the_options_that_main_parses_from_its_command(config):
    cells = grid("--config", config(), "--prune-rate", 0.3, 0.6, "--seed", 4, 5, "--wd", 0)
    made = [(c.options.constraint.prune_rate, c.options.run.seed, c.options.optim.weight_decay) for c in cells]
    assert made == [(0.3, 4, 0), (0.3, 5, 0), (0.6, 4, 0), (0.6, 5, 0)]
    assert [c.options for c in cells] == [parse(argv) for argv in (c.argv for c in cells)]
    assert cells[2].label == "ticket prune_rate=0.6 seed=4"
    cells += grid("--config", config(), "--pretrained", "a.pt", "b.pt", "--epochs", 8, 9, "--lr", 1)
    assert len({c.key for c in cells}) == len({c.log for c in cells}) == 8
    (same,) = grid("--config", config("copy.yml"), "--seed", 5, "--prune-rate", ".3", "--wd", 0.0, "--workers", 2)
    assert same.key == cells[1].key


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--seed 1 x", "seed: 'x' on the command line, but it must be an int >= 0"),
        ("--sed 1 2", "--sed: unknown option on the command line (did you mean '--seed'?)"),
        ("--prune-rate 0.5 1.5", "prune_rate: '1.5' on the command line, but"),
        ("--jobs 0", "jobs: '0' on the command line, but it must be an int >= 1"),
        ("--jobs 1 2", "'2': unexpected argument"),
        ("--dry-run 5", "dry_run: '5' on the command line, but it must be true or false"),
        ("--workers 1 2", "workers: several values on the command line, but the results do not depend on it"),
        ("--seed 1 2 --only 2", "only: '2' on the command line, but the cells of this grid are 0 to 1"),
        ("--resume runs/a", "resume: cannot be used in a sweep"),
        ("-e --check", "evaluate: cannot be used in a sweep"),
        ("--start-epoch 1", "start_epoch: cannot be used in a sweep"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_starts(config, tmp_path, monkeypatch, capsys, typed, told):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["--config", config(), *typed.split()]) == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ticket.yml"]


@pytest.mark.parametrize("words", [["--nesterov", "true", "NO"], ["--nesterov", "--no-nesterov"]])
def test_a_boolean_option_is_an_axis(config, words, capsys):
    cells = grid("--config", config(), *words)
    assert [cell.options.optim.nesterov for cell in cells] == [True, False] and capsys.readouterr().err == ""
    assert [cell.varied for cell in cells] == [{"nesterov": "true"}, {"nesterov": "false"}]


def test_an_option_that_is_given_twice_causes_a_warning(config, capsys):
    (cell,) = grid("--config", config(), "--lr", 0.1, 0.2, "--learning-rate", 0.3)
    assert cell.options.optim.lr == 0.3
    assert capsys.readouterr().err == "warning: lr is given twice: only --learning-rate 0.3 counts\n"


@pytest.mark.usefixtures("registries")
def test_a_boolean_option_of_a_plug_in_is_an_axis(config, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("""
import featherweight as fw

@fw.register_constraint("Halved")
class Halved(fw.Constraint):
    def __init__(self, weight, *, twice: bool = False):
        super().__init__()
""")
    dense = config(conv_type="Halved", prune_rate=None, freeze_weights=None, plugins=[str(plugin)])
    cells = grid("--config", dense, "--twice", "--no-twice")
    assert [cell.varied for cell in cells] == [{"twice": "true"}, {"twice": "false"}]


def test_all_problems_are_reported_together_and_each_once(config, capsys):
    argv = ["--config", config(), "none.yml", "--seed", "1", "2", "x", "--lr", "0", "--jobs", "no"]
    assert sweep.main(argv) == 2
    first, *problems = capsys.readouterr().err.splitlines()
    assert first == "error: 4 problems:"
    assert [problem.split(":")[0] for problem in problems] == ["jobs", "lr", "seed", "config"]


def test_dry_run_prints_one_shell_command_per_cell(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    odd = config("it's odd.yml")
    assert sweep.main(["--config", odd, "--seed", "1", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = [sys.executable, str(ROOT / "main.py"), "--config", odd]
    assert [shlex.split(line) for line in lines] == [[*start, "--seed", s, "--resume", "auto"] for s in "12"]
    sweep.main(["--config", odd, "--seed", "1", "2", "--dry-run", "--only", "1"])
    assert capsys.readouterr().out.splitlines() == lines[1:]
    assert not (tmp_path / "runs").exists()


def test_help_lists_the_sweeps_own_options_without_loading_torch(capsys):
    assert sweep.main(["--seed", "1", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "main.py's --dry-run N cannot be used in a sweep" in told and all(
        f"--{name}" in told for name in ("jobs", "only")
    )
    code = "import sys, scripts.sweep; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_warning_of_several_cells_is_printed_once(config, capsys):
    dense = config(conv_type=None, prune_rate=None, freeze_weights=None)
    assert sweep.main(["--config", dense, "--prune-rate", "0.5", "--seed", "1", "2", "--dry-run"]) == 0
    assert capsys.readouterr().err.count("prune_rate: '0.5' on the command line has no effect") == 1


def test_a_finished_cell_is_recognised_by_its_configuration(one_cell, tmp_path):
    assert finished([one_cell()]) == [None]
    cell = one_cell("--seed", 3)
    run_of(cell, tmp_path / "r", name="another", log_dir="elsewhere", device="cpu")
    assert finished([cell])[0]["Last Epoch Test Top 1"] == "90.00"
    assert finished([one_cell()])[0]  # a cell without a seed matches a run with any seed
    assert finished([one_cell("--seed", 3, "--precision", "bf16")])[0]
    others = ("--seed 4", "--seed 3 --lr 0.2", "--seed 3 --epochs 3", "--seed 3 --precision fp32")
    others += ("--seed 3 --pretrained x.pt", "--seed 3 --results other.csv")
    assert finished([one_cell(*typed.split()) for typed in others]) == [None] * len(others)


def test_the_newest_row_of_a_cell_counts(one_cell, tmp_path):
    for number, accuracy in enumerate((91.0, 92.0)):
        run_of(one_cell(), tmp_path / str(number), accuracy=accuracy, run_id=f"a{number}")
    assert finished([one_cell()])[0]["Last Epoch Test Top 1"] == "92.00"


def test_an_extended_run_counts_for_its_first_length_only(one_cell, tmp_path):
    short, long = one_cell("--epochs", 2), one_cell("--epochs", 5)
    run_of(short, tmp_path / "r")
    run_of(long, tmp_path / "r")
    assert [row and row["Epochs"] for row in finished([short, long])] == ["2", None]
    assert file_warnings([short, long]) == []


@pytest.mark.parametrize("loss", ["gone", "another", "unreadable"])
def test_rows_whose_run_is_gone_are_ignored_with_a_warning(one_cell, tmp_path, loss):
    run_of(one_cell(), tmp_path / "r")
    run_of(one_cell(), tmp_path / "other", run_id="b2", lr=0.7)
    if loss == "gone":
        (tmp_path / "r/config.yaml").unlink()
    elif loss == "another":
        (tmp_path / "r/status.json").write_text('{"id": "c3"}')
    else:
        (tmp_path / "r/config.yaml").write_text("arch: [")
        sweep_cells._read.cache_clear()
    assert finished([one_cell()]) == [None]
    assert file_warnings([one_cell(), one_cell()]) == [
        "runs/results.csv: rows ignored because their run directory is gone or holds another run: 1"
    ]


@pytest.mark.parametrize("accuracy", ["", "n/a", "nan", "9e9", "'=1+1"])
def test_a_row_whose_accuracy_is_not_a_percentage_is_ignored_with_a_warning(one_cell, tmp_path, accuracy):
    run_of(one_cell(), tmp_path / "r", accuracy=87.5)
    path = tmp_path / "runs/results.csv"
    path.write_text(path.read_text().replace("87.50", accuracy))
    assert finished([one_cell()]) == [None]
    assert file_warnings([one_cell()]) == [
        "runs/results.csv: rows ignored because their accuracy is not a percentage: 1"
    ]


def test_a_truncated_row_is_skipped_and_a_foreign_table_is_refused(one_cell, tmp_path):
    run_of(one_cell(), tmp_path / "r")
    path = tmp_path / "runs/results.csv"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1][:40])
    assert finished([one_cell()])[0]
    damaged = "runs/results.csv: damaged lines: 1; scripts/results.py rebuild restores their rows"
    assert file_warnings([one_cell()]) == [damaged]
    path.write_text("Name,Acc\na,1\n")
    with pytest.raises(UsageError, match=r"runs/results.csv has other columns than main.py writes"):
        finished([one_cell()])


def row(accuracy, picked="test", precision="bf16", **facts):
    told = {"Last Epoch Test Top 1": str(accuracy), "Best Picked On": picked, "Precision": precision}
    return told | {"Set": "digits", "Epochs": "2"} | facts


def lines_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([61.5], "61.50 (1)"), ([60.0, 61.0, 62.0], "61.00 ± 1.00 (3)")]
)
def test_the_mean_of_runs_has_the_sample_deviation_and_the_count(values, text):
    assert mean_of_runs(values) == text


def test_the_table_has_one_line_per_density_and_one_column_per_config(config):
    cells = grid("--config", config("a.yml"), config("b.yml"), "--prune-rate", 0.8, 0.07, "--seed", 1, 2)
    found = [row(90), row(92), row(70), None, None, None, row(50, "validation", "fp32"), row(60)]
    text = table(cells, found)
    assert lines_of(text) == [
        ["kept", "a", "b"],
        ["----", "----------------", "----------------"],
        ["80 %", "91.00 ± 1.41 (2)", "-"],
        ["7 %", "70.00 (1)", "55.00 ± 7.07 (2)"],
    ]
    assert text.endswith(
        "set digits; epochs 2; precision bf16, fp32\n"
        "No epoch was selected; the best epochs in the results file were picked on: test and validation"
    )
    assert "no cell is finished yet" in table(cells, [None] * 8)


def test_columns_have_the_shortest_names_that_are_unique(config, tmp_path):
    (tmp_path / "d").mkdir()
    twice, small = config("d/a.yml"), config("small.yml", arch="Conv2")
    names = [lines_of(table(cells, [None] * len(cells)))[0][1:] for cells in (
        grid("--config", config("a.yml"), small),
        grid("--config", config("a.yml"), config("b.yml")),
        grid("--config", config("a.yml"), twice),
    )]  # fmt: skip
    assert names == [["FC", "Conv2"], ["a", "b"], [config("a.yml"), twice]]
    cells = grid("--config", small, "--arch", "Conv2", "Conv4")
    assert lines_of(table(cells, [row(1), row(2)])) == [
        ["kept", "arch", "small"],
        ["----", "-----", "--------"],
        ["50 %", "Conv2", "1.00 (1)"],
        ["50 %", "Conv4", "2.00 (1)"],
    ]


def test_a_dense_config_has_one_row_for_all_prune_rates(config):
    dense = config("dense.yml", conv_type=None, prune_rate=None, freeze_weights=None)
    cells = grid("--config", config(), dense, "--prune-rate", 0.5, 0.2)
    assert len({cell.key for cell in cells}) == 3
    assert lines_of(table(cells, [row(1), row(2), row(3), row(3)]))[2:] == [
        ["50 %", "1.00 (1)", "-"],
        ["20 %", "2.00 (1)", "-"],
        ["100 %", "-", "3.00 (1)"],
    ]


STAND_IN = """
import os, signal, sys, time
from pathlib import Path
what = sys.argv[sys.argv.index("--lr") + 1]
print("threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
if what == "1":
    sys.exit("failed: as it was told to")
if what == "2":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "3":
    sys.exit(75)
if what in "56":
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: (asked.append(1), print("asked", flush=True)))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    Path("ready").touch()
    while not asked or what == "6":
        time.sleep(0.01)
    sys.exit(75)
"""


@pytest.fixture
def children(config, tmp_path, monkeypatch):
    """Return a function that runs one cell per learning rate. The learning rate selects what the program does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_children, "POLL_SECONDS", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS")
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)

    def run(*rates, jobs=1, stop=None):
        cells = grid("--config", config(), "--lr", *rates)
        failed = sweep_children.run(cells, jobs, stop or sweep_children.Stop(), program)
        return cells, [(cells.index(cell), reason.split(" (runs")[0]) for cell, reason in failed]

    return run


def test_a_failed_cell_is_reported_with_its_last_line_and_the_others_run(children, capsys):
    cells, failed = children(1, 2, 4)
    assert failed == [
        (0, "failed: as it was told to"),
        (1, "killed by SIGKILL; last line of its output: threads None"),
        (2, "ended without a row in runs/results.csv; last line of its output: threads None"),
    ]
    assert cells[0].log.read_text().startswith(f"$ {sys.executable} ")
    assert "ticket lr=1: failed after 0 s: failed: as it was told to; 2 left, about 0 s" in capsys.readouterr().out


def test_the_reported_last_line_comes_from_the_current_attempt(children):
    cells, _ = children(1)
    log = cells[0].log
    log.write_text("from last time\n")
    cell = Cell(cells[0].argv, {}, cells[0].options)
    child = sweep_children.start(cell, Path("/nowhere/silent.py"), {})
    child.process.wait()
    log.write_text("from last time\n")
    assert "no output" in sweep_children.end(child, "", sweep_children.Stop())


def test_a_child_that_fails_after_it_wrote_its_row_counts_as_failed(children, tmp_path):
    (cell,), _ = children(1)
    child = sweep_children.start(cell, tmp_path / "stand_in.py", {})
    child.process.wait()
    run_of(cell, tmp_path / "r")
    assert "as it was told to" in sweep_children.end(child, "", sweep_children.Stop())


def test_a_signal_to_a_child_stops_the_sweep(children, capsys):
    stop = sweep_children.Stop()
    cells, failed = children(3, 1, stop=stop)
    assert failed == [] and stop.reason == "SIGTERM"
    assert cells[0].log.exists() and not cells[1].log.exists()
    assert "ticket lr=3: stopped after 0 s" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_signal_is_forwarded_as_sigterm_and_a_second_ctrl_c_as_sigint(children, tmp_path, asked, capsys):
    stop = sweep_children.Stop()

    def ask():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        stop.requests.extend(asked)

    asking = threading.Thread(target=ask)
    asking.start()
    cells, failed = children(4 + len(asked), 4, stop=stop)  # child 6 ignores the first signal
    asking.join()
    assert failed == [] and not cells[1].log.exists()
    assert f"{signal.Signals(asked[0]).name}: the running cells save and stop" in capsys.readouterr().out
    if len(asked) == 1:
        assert "asked" in cells[0].log.read_text()


def test_stop_records_signals_that_are_not_ignored():
    code = (
        "import os, signal, sys; from scripts.parts.sweep_children import Stop\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); stop = Stop().listen()\n"
        "for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), number)\n"
        "sys.exit([signal.Signals(n).name for n in stop.requests] != ['SIGUSR2', 'SIGINT', 'SIGTERM'])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_children_share_the_threads_unless_the_user_sets_their_number(children, monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cells, _ = children(1, 4, jobs=2)
    assert f"threads {max(1, cores // 2)}\n" in cells[0].log.read_text()
    assert sweep_children.threads(10**6) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "threads 7\n" in children(1, 4, jobs=2)[0][1].log.read_text()


def test_a_cell_that_another_sweep_runs_or_has_finished_is_skipped(children, tmp_path, capsys):
    cells, _ = children(1, 4)
    before = cells[0].log.read_text()
    with try_lock(cells[0].log):
        _, failed = children(1, 4)
    run_of(cells[0], tmp_path / "r")
    _, again = children(1)
    assert [index for index, _ in failed] == [1] and again == []
    told = capsys.readouterr().out
    assert "lr=1: skipped, another sweep is running it" in told and "skipped, another sweep has finished it" in told
    assert cells[0].log.read_text() == before


@pytest.mark.parametrize(
    ("asked", "failing", "left", "code"),
    [
        ((), 0, 0, 0),
        ((), 1, 0, 1),
        ((), 0, 2, 75),
        ((15,), 0, 1, 75),
        ((15,), 1, 1, 75),
        ((15,), 0, 0, 0),
        ((), 1, 1, 1),
    ],
)
def test_the_exit_code_distinguishes_failed_and_unfinished_cells(config, capsys, asked, failing, left, code):
    stop = sweep_children.Stop()
    stop.requests.extend(asked)
    failed = [(cell, "why") for cell in grid("--config", config())][:failing]
    assert sweep.outcome(stop, failed, left) == code
    said = capsys.readouterr()
    assert ("failed: ticket: why" in said.err) == bool(failing)
    assert ("run the same command to continue" in said.out) == bool(left)


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_printed_in_seconds_minutes_or_hours(seconds, text):
    assert sweep_children.duration(seconds) == text
