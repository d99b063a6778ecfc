"""Paths: equal expansion in flags, YAML and scripts. A folder that the user chose is never replaced."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import args
from args import Options
from data.registry import SETS
from scripts import convert, export, prune, report, sweep
from utils.config.biprop import holds_sets
from utils.errors import UsageError
from utils.paths import expanded, stem

DENSE = {"set": "digits", "arch": "Conv2"}
HOME = os.path.expanduser("~root")  # noqa: PTH111


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)

    def parse_(content: dict[str, object], *words: str) -> Options:
        Path("c.yml").write_text(yaml.safe_dump(content))
        return args.parse(["--config", "c.yml", *words])

    return parse_


NEW = ("data", "results")
OLD = ("resume", "pretrained")


@pytest.mark.parametrize("name", [*NEW, *OLD])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x/", "{home}/x/"),
        ("~root/x", HOME + "/x"),
        ("$SCRATCH/job", "/scratch/me/job"),
        ("${SCRATCH}_2/job", "/scratch/me_2/job"),
        ("~/a$5 b/~", "{home}/a$5 b/~"),
        ("./~x", "./~x"),
        ("cost$", "cost$"),
    ],
)
def test_a_path_is_expanded_alike_in_the_file_and_on_the_command_line(
    parse: Any, tmp_path: Path, name: str, written: str, meant: str
) -> None:
    meant = meant.format(home=tmp_path / "home")
    assert parse({**DENSE, name: written}).flat()[name] == meant
    assert parse(DENSE, f"--{name}={written}").flat()[name] == meant


WRONG = [
    ("~nobody-of-this-name/x", "there is no user 'nobody-of-this-name'"),
    ("$NOWHERE/job", r"the variable \$NOWHERE is not set"),
    ("${NOWHERE}/job", r"the variable \$\{NOWHERE\} is not set"),
    ("a/" + "b" * 256, "at most 4095 bytes, 255 in each"),
    ("é" * 128, "at most 4095 bytes, 255 in each"),
    ("a/" * 2048, "at most 4095 bytes"),
    ("a\nb", "control characters"),
    ("a\0b", "control characters"),
    (" ", "it must be a path"),
    ("None", "None is text"),
]


@pytest.mark.parametrize("name", [*NEW, *OLD, "log_dir"])
@pytest.mark.parametrize(("written", "reason"), WRONG, ids=[row[0][:9] for row in WRONG])
def test_an_impossible_path_is_refused_in_one_line(parse: Any, name: str, written: str, reason: str) -> None:
    for content, words in (({**DENSE, name: written}, []), (DENSE, [f"--{name}={written}"])):
        with pytest.raises(UsageError, match=rf"\A{name}: [^\n]*{reason}[^\n]*\Z"):
            parse(content, *words)


@pytest.mark.parametrize(("written", "reason"), WRONG[:-1], ids=[row[0][:9] for row in WRONG[:-1]])
def test_config_and_scripts_refuse_impossible_paths_in_one_line(
    parse: Any, written: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=rf"\Aconfig: [^\n]*{reason}[^\n]*\Z"):
        args.parse([f"--config={written}"])
    for main, argv in (
        (sweep.main, [f"--config={written}", "--seed", "1"]),
        (report.main, [written]),
        (report.main, ["run", f"--out={written}"]),
        (prune.main, [written]),
        (prune.main, ["run", f"--data={written}"]),
        (export.main, ["shift", written, "out"]),
        (export.main, ["check", written]),
        (convert.main, ["biprop", "old", written]),
    ):
        assert main(argv) == 2, argv
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and reason.replace("\\", "") in said, said


def test_files_in_the_home_folder_are_found(parse: Any, tmp_path: Path) -> None:
    (tmp_path / "home" / "run").mkdir(parents=True)
    for file in ("x.yml", "run/config.yaml"):
        (tmp_path / "home" / file).write_text("set: digits\narch: Conv2\n")
    assert args.parse(["--config=~/x.yml"]).run.config == f"{tmp_path}/home/x.yml"
    assert args.parse(["--resume=~/run"]).run.resume == f"{tmp_path}/home/run"
    assert args.parse(["--resume", "$HOME/run/"]).run.resume == f"{tmp_path}/home/run/"


def test_an_existing_path_that_cannot_be_expanded_can_be_read_but_not_written(parse: Any) -> None:
    for folder in ("a$NOWHERE", "~x", "$SCRATCH"):
        Path(folder).mkdir()
    assert [expanded(name, existing=True) for name in ("a$NOWHERE", "~x")] == ["a$NOWHERE", "~x"]
    assert parse(DENSE, "--data=$SCRATCH").data.data == "/scratch/me"
    with pytest.raises(UsageError, match="NOWHERE is not set"):
        parse(DENSE, "--results=a$NOWHERE/results.csv")


@pytest.mark.parametrize("text", ["${HOME/x", "a/${", "$(pwd)/x", "x$(hostname)"])
def test_other_shell_syntax_in_a_path_is_refused(parse: Any, text: str) -> None:
    for name in ("data", "results", "pretrained"):
        with pytest.raises(UsageError, match=f"{name}: .* is not a variable"):
            parse({**DENSE, name: text})
    assert parse({**DENSE, "data": "cost$5 $/a$"}).data.data == "cost$5 $/a$"


def test_a_bare_tilde_is_refused_in_yaml_and_means_home_on_the_command_line(parse: Any, tmp_path: Path) -> None:
    Path("t.yml").write_text("set: digits\narch: Conv2\npretrained: ~\n")
    with pytest.raises(UsageError, match=r"pretrained: ~ in t.yml, line 3, but YAML reads ~ as null; write null"):
        args.parse(["--config", "t.yml"])
    Path("t.yml").write_text("set: digits\narch: Conv2\ndata: ~\n")
    with pytest.raises(UsageError, match=r"data: ~ in t.yml, line 3, but YAML reads ~ as null; leave it out, or write"):
        args.parse(["--config", "t.yml"])
    assert parse(DENSE, "--pretrained=~").run.pretrained == str(tmp_path / "home")
    assert parse({**DENSE, "pretrained": None}).run.pretrained is None


# names of runs


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a/quickstart.yml", "quickstart"),
        ("..yml", "config"),
        ("...yml", "config"),
        ("a/..", "config"),
        ("", ""),
        (".hidden.yml", "hidden"),
        ("..a.b.yml", "a.b"),
        ("é" * 100 + ".yml", "é" * 75),
        ("x" * 120 + ".yml", "x" * 99),
        (" .yml", "config"),
        ("None.yml", "config"),
    ],
)
def test_the_stem_of_a_config_is_a_valid_folder_name(file: str, expected: str) -> None:
    assert stem(file) == expected


@pytest.mark.parametrize("file", ["..yml", "...yml", ".yml", "x" * 250 + ".yml", "None.yml", " .yml"])
def test_every_config_name_gives_a_run_directory_inside_log_dir(parse: Any, tmp_path: Path, file: str) -> None:
    from utils.records import run as runs

    (tmp_path / file).write_text(yaml.safe_dump({**DENSE, "log_dir": "logs", "dry_run": 1}))
    options = args.parse(["--config", file])
    assert args.from_flat(options.flat()).flat() == options.flat()  # the stored options can be read again
    made = runs.create(options).path.resolve()
    assert (tmp_path / "logs").resolve() in made.parents and "None" not in made.name
    assert all(part not in ("", ".", "..") and not part.startswith(".") for part in runs.base_directory(options).parts)


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a/b", "x" * 100, "é" * 101, "实" * 67, "~/x"])
def test_a_run_name_that_is_not_a_valid_folder_name_is_refused(parse: Any, name: str) -> None:
    for content, words in (({**DENSE, "name": name}, []), (DENSE, [f"--name={name}"])):
        with pytest.raises(UsageError, match=r"\Aname: [^\n]*one path component of at most 99 characters[^\n]*\Z"):
            parse(content, *words)


@pytest.mark.parametrize("path", ["c/checkpoints", "c/checkpoints/0", "c/checkpoints/0/checkpoints/last.pt"])
def test_a_run_named_checkpoints_is_found(parse: Any, path: str) -> None:
    for run in ("c/checkpoints", "c/checkpoints/0"):
        Path(run, "checkpoints").mkdir(parents=True)
        Path(run, "config.yaml").write_text(f"set: digits\narch: Conv2\nseed: {len(run)}\n")
    assert args.parse(["--resume", path]).run.seed == len(path.removesuffix("/checkpoints/last.pt"))


# folders


def test_folders_of_the_command_line_are_used_without_a_warning_about_the_file(parse: Any, tmp_path: Path) -> None:
    options = parse(
        {**DENSE, "set": "MNIST", "data": "/mnt/nowhere", "log_dir": "/dev/null/x"},
        "--data=/no/where",
        f"--log-dir={tmp_path}/a/b",
    )
    assert (options.data.data, options.run.log_dir, options.warnings) == ("/no/where", f"{tmp_path}/a/b", ())


@pytest.mark.parametrize("held", [*SETS, "cifar-100-python", "tiny-imagenet-200", "fashion-mnist", "train", "training"])
def test_a_published_folder_with_a_set_in_it_can_be_used(tmp_path: Path, held: str) -> None:
    assert not holds_sets(str(tmp_path / "missing"))
    (tmp_path / held).mkdir()
    assert holds_sets(str(tmp_path)) is (held not in ("training", "in_memory"))


@pytest.mark.parametrize("held", ["MNIST", "train_32x32.mat"])
def test_existing_and_relative_folders_of_the_file_are_kept(parse: Any, tmp_path: Path, held: str) -> None:
    (tmp_path / held).mkdir()
    for folder in (str(tmp_path), "not/yet/there"):
        options = parse({**DENSE, "data": folder, "log_dir": folder})
        assert (options.data.data, options.run.log_dir, options.warnings) == (folder, folder, ())


@pytest.mark.parametrize("folder", ["/no/such/folder", "", "/mnt/mine", "/mnt/disk2/datasets"])
def test_a_folder_of_the_user_is_never_replaced_by_the_default(parse: Any, tmp_path: Path, folder: str) -> None:
    folder = folder or str(tmp_path)
    options = parse({**DENSE, "data": folder})
    assert (options.data.data, options.warnings) == (folder, ())
    with pytest.raises(
        UsageError, match=r"log_dir: '/dev/null/x' in c.yml, line 2, but it must be a folder that you can"
    ):
        parse({**DENSE, "log_dir": "/dev/null/x"})


THEIRS = "/mnt/disk1/datasets"  # in 87 of BIPROP's files


@pytest.mark.parametrize("folder", [THEIRS, f"{THEIRS}/", "/mnt"])
def test_an_unusable_folder_of_biprops_authors_is_replaced_by_the_default(
    parse: Any, monkeypatch: Any, folder: str
) -> None:
    monkeypatch.setitem(args.FOLDERS, "data", (args.FOLDERS["data"][0], lambda path: False))
    options = parse({**DENSE, "data": folder})
    warning = f"data: {folder!r} in c.yml cannot be used here; using ./datasets"
    assert (options.data.data, options.warnings) == ("./datasets", (warning,))
    assert parse({**DENSE, "data": folder}, "--data", folder).data.data == folder
    log = "/home/vivekr/prod/hidden-networks/runs/baseline"
    monkeypatch.setitem(args.FOLDERS, "log_dir", (args.FOLDERS["log_dir"][0], lambda path: False))
    assert parse({**DENSE, "log_dir": log}).run.log_dir is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"download": True}, ()),
        ({"set": "CIFAR10"}, ("--download",)),
        ({"set": "ImageFolder"}, ()),
        ({}, ("--set", "ImageFolder")),
    ],
)
def test_the_data_folder_of_a_download_or_an_image_folder_is_never_replaced(
    parse: Any, monkeypatch: Any, content: dict[str, object], words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(args.FOLDERS, "data", (args.FOLDERS["data"][0], lambda path: False))
    options = parse({**DENSE, "data": THEIRS, **content}, *words)
    assert (options.data.data, options.warnings) == (THEIRS, ())


def test_error_names_the_file_that_blocks_the_run_directory(program, config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/ticket").write_text("")
    code, _, err = program(
        "--config", config(conv_type="DenseConv", freeze_weights=None, trainer=None, prune_rate=None)
    )
    told = "cannot make runs/ticket/ticket: runs/ticket is not a directory; pass another folder with --log-dir"
    assert (code, err) == (2, f"error: log_dir: {told}\n")
