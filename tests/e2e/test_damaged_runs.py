"""A run with damaged files is refused in one line, without a traceback, and nothing is changed."""

import json

import pytest
import torch

from scripts import prune, report, sweep

BRACKETS = 100_000


@pytest.fixture
def run(program, config, tmp_path):
    """A run of two epochs that is not finished."""
    assert program("--config", config())[0] == 0
    made = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    change_status(made, status="running")
    return made


def change_status(run, **changes):
    path = run / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}


def one_line(output, *words):
    """Check that the exit code is 1 or 2 and that the last line is an error with all `words`."""
    code, _, err = output
    lines = err.splitlines()
    assert code in (1, 2) and lines and lines[-1].startswith(("error: ", "failed: ")), (code, err)
    assert all(line.startswith("warning: ") for line in lines[:-1]) and all(word in lines[-1] for word in words), err


@pytest.mark.parametrize(
    "text",
    [
        '{"status": "done", "epochs": null}',
        '{"status": "running", "epoch": "two"}',
        '{"status": "running", "epoch": 1.5}',
        '{"status": "running", "epoch": true}',
        '{"status": "running", "epoch": -1}',
        '{"status": "running", "id": 7}',
        '{"status": ["done"]}',
        '{"status": "gone"}',
        "[1, 2]",
        "null",
        "",
        "text",
        "[" * BRACKETS,
        '{"a": ' * BRACKETS,
        "\x00" * 90,
        "\xff\xfe{}",
    ],
    ids=range(16),
)
def test_a_damaged_status_is_refused_in_one_line(program, run, config, text):
    (run / "status.json").write_text(text, encoding="latin-1")
    before = contents(run)
    one_line(program("--resume", run), "status.json is damaged")
    assert contents(run) == before
    code, out, _ = program("--config", config(), "--resume", "auto")
    assert code == 0 and "--resume auto does not resume " in out and "status.json is damaged" in out


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data + b"3.5" + data.splitlines()[1][1:] + b"\n",
        lambda data: data + b"last" + data.splitlines()[1][1:] + b"\n",
        lambda data: data + b"\xff\xfe\n",
        lambda data: data.replace(b"\n1,", b"\n" + b"9" * 200_000 + b","),
        lambda data: data.replace(b"\n1,", b'\n"' + b"9" * 200_000 + b'",'),
        lambda data: data + b'"torn',
        lambda data: data[: -len(data) // 3],
        lambda data: data + b"\0" * 100,
        lambda data: data.replace(b"epoch", b"time"),
        lambda data: b"\x80",
    ],
    ids=["fraction", "word", "not UTF-8", "digits", "field", "quote", "cut", "NUL", "no epoch", "one byte"],
)
@pytest.mark.parametrize("name", ["metrics.csv", "weight_sweep.csv"])
def test_damaged_metrics_and_tables_are_refused_in_one_line(program, run, name, damage):
    (run / name).write_bytes(damage((run / "metrics.csv").read_bytes()))
    before = contents(run)
    one_line(program("--resume", run), f"{name} is damaged")
    assert contents(run) == before


def test_other_files_beside_metrics_csv_are_ignored(program, run):
    (run / "._metrics.csv").write_bytes(b"\0\x05\x16\x07\xff")
    (run / "pruning.csv").write_text("method,percent\nunit,50\n")
    assert program("--resume", run)[0] == 0


@pytest.mark.parametrize("text", ["", "a: [", "[" * BRACKETS, "\x00", "\xff", "seed: 1\nseed: 2", "lr: fast", "- 1"])
def test_a_damaged_configuration_is_refused_unchanged(program, run, text):
    (run / "config.yaml").write_text(text, encoding="latin-1")
    before = contents(run)
    code, _, err = program("--resume", run)
    assert code == 2 and "Traceback" not in err and "config" in err
    assert contents(run) == before


CHECKPOINTS = {
    "no state": lambda content: content.pop("state"),
    "no optimizer": lambda content: content.pop("optimizer"),
    "no generators": lambda content: content.pop("rng"),
    "no method": lambda content: content.pop("method"),
    "no options": lambda content: content.pop("options"),
    "epoch": lambda content: content.update(epoch=10**9, state=content["state"] | {"epoch": 10**9}),
    "step": lambda content: content.update(step=10**9, state=content["state"] | {"step": 10**9}),
    "shape": lambda content: content["model"].update({"linear.0.weight": torch.ones(3, 3)}),
    "no tensor of the model": lambda content: content["model"].pop("linear.0.weight"),
    "not a number": lambda content: content["model"]["linear.0.weight"].fill_(float("nan")),
    "other optimizer": lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.ones(1)),
    "other type": lambda content: content.update(model={k: v.half() for k, v in content["model"].items()}),
    "other type of the optimizer": lambda content: content["optimizer"].update(
        state={k: {n: v.double() for n, v in entry.items()} for k, entry in content["optimizer"]["state"].items()}
    ),
    "event files": lambda content: content["events"].update(dict.fromkeys(content["events"], "long")),
    "names of event files": lambda content: content["events"].update({1: 1}),
    "length of event files": lambda content: content["events"].update(dict.fromkeys(content["events"], -5)),
    "one group more": lambda content: content["optimizer"]["param_groups"].append({}),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_in_one_line_and_nothing_changes(program, run, config, damage):
    last = run / "checkpoints/last.pt"
    content = torch.load(last, weights_only=True)
    CHECKPOINTS[damage](content)
    torch.save(content, last)
    before = contents(run)
    for argv in (("--resume", run), ("--config", config(), "--resume", "auto"), ("--resume", run, "--epochs", 3)):
        one_line(program(*argv), "last.pt is damaged")
        assert contents(run) == before


@pytest.mark.parametrize("damage", ["no state", "no options", "epoch", "shape", "no tensor of the model"])
def test_a_damaged_checkpoint_is_neither_tested_nor_pruned(program, run, capsys, damage):
    last = run / "checkpoints/last.pt"
    content = torch.load(last, weights_only=True)
    CHECKPOINTS[damage](content)
    torch.save(content, last)
    one_line(program("--resume", run, "--evaluate"), "last.pt")
    assert prune.main([str(run), "--percent", "50"]) == 2
    fault = "does not hold exactly this network" if damage in ("shape", "no tensor of the model") else "is damaged"
    assert f"last.pt {fault}" in capsys.readouterr().err.splitlines()[-1]


def test_a_report_refuses_damaged_metrics_in_one_line(run, capsys, tmp_path):
    whole = (run / "metrics.csv").read_bytes()
    for damage in (b"\xff" + whole, whole + b"3", whole.replace(b"\n1,", b"\n1.5,"), whole + b"3" + b",x" * 13 + b"\n"):
        (run / "metrics.csv").write_bytes(damage)
        assert report.main([str(run), "--out", str(tmp_path / "out.png")]) == 2
        err = capsys.readouterr().err
        assert "metrics.csv is damaged" in err and err.count("\n") == 1


def test_a_sweep_table_leaves_out_a_run_with_a_damaged_status(program, config, tmp_path, capsys):
    assert program("--config", config())[0] == 0
    (status,) = tmp_path.rglob("status.json")
    for text in ("[" * BRACKETS, '{"epochs": null}', ""):
        status.write_text(text)
        assert sweep.main(["--config", config(), "--table"]) == 0
        output = capsys.readouterr()
        assert "no cell is finished yet" in output.out and "rows ignored because" in output.err


@pytest.mark.parametrize("text", ["", "[" * BRACKETS, "\xff", '{"seed": null}'])
def test_a_damaged_environment_json_is_ignored(program, run, text):
    (run / "environment.json").write_text(text, encoding="latin-1")
    assert program("--resume", run)[0] == 0
