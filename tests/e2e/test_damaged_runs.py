"""A run whose files are damaged or another run's: one line, nothing changed, no traceback."""

import json

import pytest

BRACKETS = 100_000


@pytest.fixture
def run(program, config, tmp_path):
    """A run of two epochs that is to go on."""
    assert program("--config", config())[0] == 0
    made = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    change_status(made, status="running")
    return made


def change_status(run, **changes):
    path = run / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}


def one_line(said, *words):
    """The exit code is 1 or 2, and the last line, which is an error, has the words."""
    code, _, err = said
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
def test_a_damaged_status_is_one_line(program, run, config, text):
    (run / "status.json").write_text(text, encoding="latin-1")
    before = contents(run)
    one_line(program("--resume", run), "status.json is damaged")
    assert contents(run) == before
    code, out, _ = program("--config", config(), "--resume", "auto")
    assert code == 0 and "left alone, another run: " in out and "status.json is damaged" in out


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
def test_damaged_measures_and_tables_are_one_line(program, run, name, damage):
    (run / name).write_bytes(damage((run / "metrics.csv").read_bytes()))
    before = contents(run)
    one_line(program("--resume", run), f"{name} is damaged")
    assert contents(run) == before


@pytest.mark.parametrize("text", ["", "a: [", "[" * BRACKETS, "\x00", "\xff", "seed: 1\nseed: 2", "lr: fast", "- 1"])
def test_a_damaged_configuration_is_one_line(program, run, text):
    (run / "config.yaml").write_text(text, encoding="latin-1")
    before = contents(run)
    code, _, err = program("--resume", run)
    assert code == 2 and "Traceback" not in err and "config" in err
    assert contents(run) == before
