"""Options: declarations, combination of default, file and command line, and lossless round trips."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import args
from args import FIELDS, Options
from utils.config.yaml_loader import load_yaml
from utils.errors import UsageError
from utils.text import nearest

ROOT = Path(args.__file__).parent
DENSE = {"set": "digits", "arch": "Conv2"}
WITH_DENSITY = "conv_type SubnetConv, GlobalSubnetConv, FixedSubnetConv, RGConv or SparseConv"
SUBNET = {**DENSE, "conv_type": "SubnetConv", "prune_rate": 0.5, "freeze_weights": True}


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def parse_(content: dict[str, object] | str, *words: str) -> Options:
        Path("c.yml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return args.parse(["--config", "c.yml", *words])

    return parse_


def value(options: Options, name: str) -> object:
    return options.flat()[name]


def flags(name: str) -> list[str]:
    """Return the expected flags of an option. The last one switches a boolean off."""
    stem = name.replace("_", "-")
    off = [f"--{stem.removeprefix('no-')}" if stem.startswith("no-") else f"--no-{stem}"]
    return [*FIELDS[name].metadata["flags"], f"--{stem}", *(off if FIELDS[name].type is bool else [])]


# declarations


def test_every_option_has_a_help_text_and_a_valid_default() -> None:
    for name, option in FIELDS.items():
        assert option.metadata["text"], name
        if option.default is not dataclasses.MISSING:
            expected = [*option.default] if isinstance(option.default, tuple) else option.default
            assert value(args.from_flat({**DENSE, name: option.default}), name) == expected, name


def test_every_flag_belongs_to_one_option() -> None:
    spellings = [flag for name in FIELDS for flag in flags(name)]
    assert len(spellings) == len(set(spellings))


def test_options_that_do_not_affect_training_are_marked() -> None:
    same = {name for name, option in FIELDS.items() if not option.metadata["maths"]}
    assert same == {
        *("data", "download", "workers", "epochs", "config", "name", "log_dir", "results", "resume", "evaluate"),
        *("pretrained", "save_every", "histograms", "print_freq", "check", "device", "multigpu", "deterministic"),
        *("save_minutes", "init_timeout"),
        *("detect_anomaly", "sweep_on", "sweep_every"),
    }


def test_help_lists_every_option_once_with_type_default_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        args.parse(["--lr", "-5", "--help"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert end.value.code == 0
    listed = [line[2:].partition("  ")[0].split(", ") for line in text.splitlines() if line.startswith("  -")]
    assert listed == [flags(name) for name in FIELDS]
    assert "[an int >= 1 and <= 1e7; default: 256]" in words
    assert "[a float >= 0 and < 1; default: 0.9; needs optimizer sgd]" in words
    assert "[one of digits, MNIST, FashionMNIST, CIFAR10, " in words
    assert "fraction of the weights that is KEPT" in words
    assert "it acts on scores too, as in BIPROP" in words and "needs optimizer sgd or adamw]" in words
    for code in (
        "0 success",
        "1 the run failed",
        "2 bad input",
        "75 stopped by SIGTERM, SIGUSR2, SIGHUP or Ctrl-C",
    ):
        assert code in words
    assert max(len(line) for line in text.splitlines()) <= 120


def test_args_imports_only_the_standard_library_yaml_and_utils() -> None:
    nodes = [*ast.walk(ast.parse((ROOT / "args.py").read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "yaml", "utils"}


def test_importing_args_does_not_parse_the_command_line() -> None:
    code = "import sys; sys.argv = ['x', '--help']; import args; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n"


# the three sources


def test_the_command_line_overrides_the_file_and_the_file_overrides_the_default(parse: Any) -> None:
    options = parse({**DENSE, "lr": 0.2, "momentum": 0.5}, "--lr", "0.3")
    assert (options.optim.lr, options.optim.momentum, options.optim.epochs) == (0.3, 0.5, 90)


def test_the_last_of_repeated_flags_applies(parse: Any) -> None:
    options = parse(DENSE, "--epochs=5", "--epochs", "7", "--nesterov", "--no-nesterov")
    assert (options.optim.epochs, options.optim.nesterov) == (7, False)


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--batch-size", "8"], "batch_size", 8),
        (["--batch_size", "8"], "batch_size", 8),
        (["--batch_size=8"], "batch_size", 8),
        (["-b", "8"], "batch_size", 8),
        (["-b8"], "batch_size", 8),
        (["-j", "0"], "workers", 0),
        (["-p", "3"], "print_freq", 3),
        (["-a", "Conv4"], "arch", "Conv4"),
        (["--learning-rate", "2"], "lr", 2.0),
        (["--learning_rate", "2"], "lr", 2.0),
        (["--wd", "1e-3"], "weight_decay", 1e-3),
        (["--weight_decay", "0"], "weight_decay", 0.0),
        (["--save_every", "-1"], "save_every", -1),
        (["--save-every=-1"], "save_every", -1),
        (["--bn-bias-init", "-1e-4"], "bn_bias_init", -1e-4),
        (["--bn-bias-init", "-.5"], "bn_bias_init", -0.5),
        (["--nesterov"], "nesterov", True),
        (["--no_bn_decay"], "no_bn_decay", True),
        (["--no-bn-decay", "--bn-decay"], "no_bn_decay", False),
        (["--multigpu", "0"], "multigpu", [0]),
        (["--label-smoothing", "null"], "label_smoothing", None),
        (["--seed", "9223372036854775807"], "seed", 2**63 - 1),
        (["--name", "a b"], "name", "a b"),
        (["--results", "a=b_c.csv"], "results", "a=b_c.csv"),
    ],
)
def test_every_spelling_of_a_flag_sets_its_option(parse: Any, words: list[str], name: str, expected: object) -> None:
    got = value(parse(DENSE, *words), name)
    assert (got, type(got)) == (expected, type(expected))


def test_the_command_line_can_switch_off_a_flag_of_the_file(parse: Any) -> None:
    assert not parse({**DENSE, "grad_clip": True}, "--no-grad-clip").optim.grad_clip
    assert not parse({**DENSE, "no_bn_decay": True}, "--bn-decay").optim.no_bn_decay


@pytest.mark.parametrize("written", ["0.3", "-1"])
def test_prune_rate_with_an_underscore_is_the_fraction_kept(parse: Any, written: str) -> None:
    assert parse({**SUBNET, "prune_rate": float(written)}, "--prune_rate", "0.25").constraint.density == 0.25


# casting


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("lr: 1e-4", "lr", 1e-4),
        ("lr: 1", "lr", 1.0),
        ("lr: '0.5'", "lr", 0.5),
        ("epochs: '7'", "epochs", 7),
        ("nesterov: yes", "nesterov", True),
        ("nesterov: off", "nesterov", False),
        ("label_smoothing: null", "label_smoothing", None),
        ("label-smoothing: 0", "label_smoothing", 0.0),
        ("name: '7'", "name", "7"),
        ("multigpu: 0", "multigpu", [0]),
        ("sweep_on: 0:4:0.1", "sweep_on", "0:4:0.1"),
        ("sweep_on: 0:4:1", "sweep_on", "0:4:1"),
        ("sweep_on: '0:4:0.1'", "sweep_on", "0:4:0.1"),
        ("multigpu: [0]", "multigpu", [0]),
        ("arch: MLP\nhidden: 300,100", "hidden", [300, 100]),
        ("arch: MLP\nhidden: 300, 100", "hidden", [300, 100]),
        ("arch: MLP\nhidden: [300, 100]", "hidden", [300, 100]),
        ("arch: MLP\nhidden: 300", "hidden", [300]),
        ("arch: MLP\nnorm: none", "norm", "none"),
    ],
)
def test_a_yaml_value_is_converted_to_the_type_of_its_option(
    parse: Any, line: str, name: str, expected: object
) -> None:
    head = "set: digits\n" if "arch" in line else "set: digits\narch: Conv2\n"
    got = value(parse(head + line), name)
    assert (got, type(got)) == (expected, type(expected))


SMALL = ["1e-9", "1000"], ["0", "1000.1"]
COUNT = ["1", "1000000"], ["0", "1000001"]
STEP = ["1", "1000000000"], ["0", "1000000001"]
ANY = ["-1e6", "0", "1e6"], ["-1000001", "1e7"]
SHARE = ["0", "1"], ["-1e-9", "1.01"]
PART = ["1e-9", "1"], ["0", "1.01"]
EDGES = [
    # (option, smallest and largest valid values, nearest invalid values)
    ("val_split", ["0", "0.99"], ["-0.01", "1"]),
    ("batch_size", ["1", "10000000"], ["0", "10000001"]),
    ("test_batch_size", ["1", "10000000"], ["0", "10000001"]),
    ("workers", ["0", "256"], ["-1", "257"]),
    ("num_classes", *COUNT),
    ("width_mult", ["1e-9", "100"], ["0", "100.1"]),
    ("lr", ["1e-9", "1e6"], ["0", "1000001"]),
    ("lr_adjust", *COUNT),
    ("lr_gamma", *SMALL),
    ("warmup_length", ["0", "1000000"], ["-1", "1000001"]),
    ("momentum", ["0", "0.99"], ["-0.01", "1"]),
    ("weight_decay", ["0", "1000"], ["-1e-9", "1000.1"]),
    ("label_smoothing", ["0", "0.99"], ["-0.01", "1"]),
    ("epochs", *COUNT),
    ("start_epoch", ["0", "89"], ["-1", "90", "1000001"]),
    ("seed", ["0", str(2**63 - 1)], ["-1", str(2**63)]),
    ("save_every", ["-1", "0", "1000000"], ["-2", "1000001"]),
    ("save_minutes", ["0", "0.01", "1e6"], ["-1", "1000001"]),
    ("init_timeout", ["1", "1e6"], ["0", "1000001"]),
    ("print_freq", *STEP),
    ("dry_run", *STEP),
    ("multigpu", ["0", "1023"], ["-1", "1024"]),
    ("prune_rate", ["1e-9", "1"], ["0", "1.01", "-0.5"]),
    ("prune_rate_epoch", ["0", "1000000"], ["-1", "1000001"]),
    ("score_init_constant", *ANY),
    ("bn_weight_init", *ANY),
    ("bn_bias_init", *ANY),
    ("image_size", ["8", "4096"], ["7", "4097"]),
    ("low_data", *PART),
    ("std_gauss", *SMALL),
    ("p_clean", *SHARE),
    ("mixture_width", ["1", "100"], ["0", "101"]),
    ("mixture_depth", ["-1", "0", "100"], ["-2", "101"]),
    ("aug_severity", ["1", "10"], ["0", "11"]),
    ("dense_epochs", *COUNT),
    ("score_l1", ["0", "1e6"], ["-1e-9", "1000001"]),
    ("weight_bits", ["2", "8"], ["1", "9"]),
    ("bn_momentum", *PART),
    *((name, *SMALL) for name in ("bn_eps", "optimizer_eps")),
    ("activation_bits", ["2,0", "25,7", "16,16"], ["-1,1", "1,5", "26,0", "17,16", "16", "1,2,3", "33,0"]),
    ("shift_depth", ["1", "1000"], ["0", "1001"]),
    ("initial_ones", *SHARE),
    ("epsilon", *SHARE),
    ("random_mag", ["0", "1e6"], ["-1e-9", "1000001"]),
    ("sweep_every", *COUNT),
    ("update_interval", *STEP),
    ("progress_interval", *STEP),
    *((name, *PART) for name in ("progress_until", "drop_fraction", "keep_share", "live_share")),
]


@pytest.mark.parametrize(("name", "right", "wrong"), EDGES, ids=[edge[0] for edge in EDGES])
def test_limits_of_every_range_are_enforced(parse: Any, name: str, right: list[str], wrong: list[str]) -> None:
    content = {**SUBNET, "conv_type": "SampleSubnetConv"} if name == "score_init_constant" else SUBNET
    for text in right:
        parse(content, f"--{name}={text}")
    for text in wrong:
        with pytest.raises(UsageError, match=rf"\A{name}: "):
            parse(content, f"--{name}={text}")


def test_limits_of_every_option_with_a_range_are_tested() -> None:
    allowed = {name: option.metadata["allowed"] for name, option in FIELDS.items()}
    limited = {name for name, text in allowed.items() if text and isinstance(text, str)}
    assert limited - {edge[0] for edge in EDGES} == {"hidden", "dropout"}


def test_limits_of_dropout_are_enforced(parse: Any) -> None:
    for text in ("0", "0.99"):
        assert parse({**DENSE, "arch": "MLP"}, f"--dropout={text}").model.dropout == float(text)
    for text in ("-1e-9", "1"):
        with pytest.raises(UsageError, match=r"\Adropout: "):
            parse({**DENSE, "arch": "MLP"}, f"--dropout={text}")


# command lines and files of BIPROP


DEAD = [
    "--world-size 2",
    "--world_size 2",
    "--rank -1",
    "--rank",
    "--multistep-lr-adjust 3",
    "--multistep-lr-gamma 0.5",
]
DEAD += ["--random-subnet", "--random-subnet --random-subnet"]


@pytest.mark.parametrize("words", DEAD)
def test_an_obsolete_option_is_accepted_with_one_warning(parse: Any, words: str) -> None:
    options = parse(DENSE, *words.split())
    assert len(options.warnings) == 1
    assert "has no effect here" in options.warnings[0]


def test_an_obsolete_option_in_the_file_causes_a_warning(parse: Any) -> None:
    assert len(parse({**DENSE, "world_size": 1, "rank": 0}, "--rank", "0").warnings) == 2


@pytest.mark.parametrize("rate", [None, -1, 0, 0.0, 1])
def test_dense_networks_accept_biprops_values_for_no_pruning_without_a_warning(parse: Any, rate: float | None) -> None:
    options = parse({**DENSE, "prune_rate": rate})
    assert (options.constraint.prune_rate, options.constraint.density, options.warnings) == (None, 1.0, ())


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (
            {**DENSE, "prune_rate": 0.3},
            f"prune_rate: 0.3 in c.yml has no effect without {WITH_DENSITY}",
        ),
        (
            {**DENSE, "scale_fan": True},
            f"scale_fan: true in c.yml has no effect without {WITH_DENSITY}",
        ),
        ({**DENSE, "learn_batchnorm": True}, "learn_batchnorm: true in c.yml has no effect without freeze_weights"),
        ({**DENSE, "tune_batchnorm": True}, "tune_batchnorm: true in c.yml has no effect without freeze_weights"),
        ({**DENSE, "bn_bias_only": True}, "bn_bias_only: true in c.yml has no effect without freeze_weights"),
        (
            {**SUBNET, "arch": "VGG_Small", "tune_batchnorm": True},
            "tune_batchnorm: true in c.yml has no effect without learn_batchnorm or bn_bias_only",
        ),
    ],
)
def test_an_option_without_effect_in_the_file_is_ignored_with_one_warning(
    parse: Any, content: dict[str, object], warning: str
) -> None:
    options = parse(content)
    assert options.warnings == (warning,)
    ignored = {"prune_rate": None, "scale_fan": False}
    if warning.partition(":")[0] in ignored:
        assert value(options, warning.partition(":")[0]) == ignored[warning.partition(":")[0]]


@pytest.mark.parametrize("more", [{"learn_batchnorm": True}, {"bn_bias_only": True}])
def test_tune_batchnorm_with_a_trained_batch_norm_parameter_causes_no_warning(
    parse: Any, more: dict[str, bool]
) -> None:
    assert parse({**SUBNET, "arch": "VGG_Small", "tune_batchnorm": True, **more}).warnings == ()


# config file and name of the run


def test_stem_and_default_name_of_a_run_come_from_the_config_file_name(parse: Any) -> None:
    options = parse(DENSE)
    assert (options.run.config, options.run.stem, options.run.name) == ("c.yml", "c", "c")
    assert parse(DENSE, "--name", "mine").run.name == "mine"


def test_a_stored_configuration_keeps_the_stem_of_its_original_file(parse: Any) -> None:
    options = parse({**DENSE, "config": "configs/quickstart.yml"})
    assert (options.run.config, options.run.stem) == ("configs/quickstart.yml", "quickstart")
    assert parse({**DENSE, "config": None}).run.config == "c.yml"


@pytest.mark.parametrize("path", ["run", "run/checkpoints/last.pt", "run/"])
def test_resume_without_config_reads_the_configuration_of_the_run(parse: Any, path: str) -> None:
    stored = parse(SUBNET, "--pretrained", "old.pt", "--start-epoch", "3", "--lr=0.5")
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/config.yaml").write_text(yaml.safe_dump(stored.flat()))
    options = args.parse(["--resume", path, "--epochs", "120"])
    assert (options.run.resume, options.run.stem, options.optim.lr, options.optim.epochs) == (path, "c", 0.5, 120)
    assert (options.run.pretrained, options.optim.start_epoch) == (None, 3)


def test_resume_auto_needs_the_config(parse: Any) -> None:
    assert parse(DENSE, "--resume", "auto").run.resume == "auto"
    Path("auto").mkdir()
    Path("auto/config.yaml").write_text("set: digits\narch: Conv2\n")
    with pytest.raises(UsageError, match="config: no YAML file"):
        args.parse(["--resume", "auto"])
    with pytest.raises(UsageError, match=r"resume: nosuch does not exist; pass a directory with config\.yaml"):
        args.parse(["--resume", "nosuch"])
    Path("theirs.pth").write_text("")
    with pytest.raises(UsageError, match=r"resume: theirs\.pth is neither .*; --pretrained takes any checkpoint file"):
        args.parse(["--resume", "theirs.pth"])


@pytest.mark.parametrize("words", [["--resume", "auto"], ["--pretrained", "a.pt"]])
def test_evaluate_accepts_resume_or_pretrained(parse: Any, words: list[str]) -> None:
    assert parse(DENSE, "-e", *words).run.evaluate


def test_load_yaml_supports_merge_keys_and_nested_mappings(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("a-b: &x {k: 1}\nc: {<<: *x, k: 2}\n")
    assert load_yaml(tmp_path / "c.yml") == {"a_b": {"k": "1"}, "c": {"k": "2"}}


# round trips and comparisons

NOT_NAMES = ("null", "Null", "NULL", "~", "None")

changes = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-12, 1e6),
        "weight_decay": st.floats(0, 1),
        "epochs": st.integers(1, 10**6),
        "seed": st.none() | st.integers(0, 2**63 - 1),
        "label_smoothing": st.none() | st.floats(0, 0.999),
        "prune_rate": st.floats(1e-12, 1),
        "grad_clip": st.booleans(),
        "optimizer": st.sampled_from(["sgd", "adam"]),
        "name": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
            lambda text: (
                text.isprintable() and text.strip() and text[0] != "." and "/" not in text and text not in NOT_NAMES
            )
        ),
        "multigpu": st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=1),
    },
)


@given(changes)
def test_from_flat_inverts_flat_directly_and_through_yaml(values: dict[str, Any]) -> None:
    options = args.from_flat({**SUBNET, **values})
    assert {name: options.flat()[name] for name in values} == values
    assert args.from_flat(options.flat()) == options
    assert args.from_flat(yaml.safe_load(yaml.safe_dump(options.flat()))) == options


def test_from_flat_refuses_invalid_and_missing_values() -> None:
    with pytest.raises(UsageError, match="epochs: 0 in the stored configuration, but it must be an int >= 1"):
        args.from_flat({**DENSE, "epochs": 0})
    with pytest.raises(UsageError, match="arch: no value"):
        args.from_flat({"set": "digits"})


def test_flat_returns_every_option_as_a_plain_value() -> None:
    flat = args.from_flat({**DENSE, "multigpu": [0]}).flat()
    assert [*flat] == [*FIELDS]
    assert flat["multigpu"] == [0]


def test_replace_returns_new_options_and_refuses_unknown_names() -> None:
    old = args.from_flat(SUBNET)
    new = old.replace(seed=5, lr=0.2, prune_rate=0.25)
    assert (new.run.seed, new.optim.lr, new.constraint.density) == (5, 0.2, 0.25)
    assert (old.run.seed, old.optim.lr, old.constraint.density) == (None, 0.1, 0.5)
    with pytest.raises(TypeError, match="sede"):
        old.replace(sede=5)


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.from_flat(DENSE).optim.lr = 1.0  # type: ignore[misc]


def test_training_changes_lists_old_and_new_values() -> None:
    old = args.from_flat(SUBNET)
    assert args.training_changes(old, old.replace(epochs=7, name="other", device="cpu", histograms=True)) == []
    assert args.training_changes(old, old.replace(lr=0.2, seed=1)) == [
        "lr: 0.1 in the run, 0.2 now",
        "seed: null in the run, 1 now",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("prun_rate", " (did you mean 'prune_rate'?)"), ("PRUNE_RATE", " (did you mean 'prune_rate'?)"), ("zzz", "")],
)
def test_nearest_suggests_the_most_similar_name(name: str, expected: str) -> None:
    assert nearest(name, ["lr", "prune_rate"]) == expected
    assert nearest(name, []) == ""


def test_width_mult_is_ignored_with_a_warning_if_biprop_ignored_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vgg_small_bn_BinAct.yml").write_text("arch: VGG_Small_bn_BinAct\nset: CIFAR10\nwidth_mult: 10\n")
    options = args.parse(["--config", "vgg_small_bn_BinAct.yml"])
    assert options.model.width_mult == 1.0
    (warning,) = options.warnings
    assert "width_mult: 10" in warning and "no effect" in warning and "Wide" in warning
    assert args.parse(["--config", "vgg_small_bn_BinAct.yml", "--arch", "Conv4Wide"]).model.width_mult == 10
