"""Table of bad inputs: the error for each states the problem, its place and the remedy in one line."""

from pathlib import Path

import pytest

import args
from utils.errors import UsageError

DENSE = "set: digits\narch: Conv2\n"
SUBNET = DENSE + "conv_type: SubnetConv\nfreeze_weights: true\nprune_rate: 0.5\n"
BINARY = "set: digits\narch: CircuitMLP\nconv_type: BinaryConv\n"
GLOBAL = "--conv-type GlobalSubnetConv --prune-rate 0.2"
SPARSE = DENSE + "conv_type: SparseConv\n"
MLP = "set: digits\narch: MLP\n"
HERE, FILE = "on the command line", "in c.yml"

# (YAML, further arguments, parts of the one-line message)
TABLE = [
    # unknown options and unexpected arguments
    (DENSE, "--typo 5", ["--typo", "unknown option", HERE, "--help"]),
    (DENSE, "--prun-rate 0.5", ["--prun-rate", HERE, "did you mean '--prune-rate'"]),
    (DENSE, "--optim adam", ["--optim", HERE, "did you mean '--optimizer'"]),
    (DENSE, "-lr 0.1", ["-lr", HERE, "did you mean '--lr'"]),
    (DENSE, "--typo=5", ["--typo", "unknown option", HERE]),
    (DENSE, "0.1", ["'0.1'", "unexpected argument", HERE, "starts with --"]),
    (DENSE, "--lr 0.1 0.2", ["'0.2'", "unexpected argument", HERE]),
    (DENSE, "EMPTY", ["''", "unexpected argument", HERE]),
    (DENSE, "-", ["'-'", "unexpected argument", HERE]),
    (DENSE + "prunerate: 0.5\n", "", ["prunerate", "unknown option", FILE, "did you mean 'prune_rate'"]),
    (DENSE + "learning_rate: 0.5\n", "", ["learning_rate", FILE, "did you mean 'lr'"]),
    (DENSE + "5: 6\n", "", ["5: unknown option", FILE, "--help"]),
    (DENSE, "--gaussian-aug --p-clean 0.5 --augmix", ["gaussian_aug", HERE, "it contradicts augmix"]),
    (DENSE, "--jsd", ["jsd", HERE, "needs augmix or gaussian_aug"]),
    (DENSE, "--mixture-depth -2", ["mixture_depth", "'-2'", HERE, "an int >= -1"]),
    (DENSE, "--aug-severity 11", ["aug_severity", HERE, "an int >= 1 and <= 10"]),
    (DENSE + "p_clean: 1.5\n", "", ["p_clean", "1.5", FILE, "a float >= 0 and <= 1"]),
    (DENSE + "low_data: 0\n", "", ["low_data", "0", FILE, "a float > 0 and <= 1"]),
    (
        DENSE + "readout: original40\n",
        "",
        ["readout", FILE, "cResNet20, cResNet20_BinAct, cResNet32 or 7 others, not Conv2"],
    ),
    (
        DENSE + "conv_type: ShiftQ\nfirst_layer_type: ShiftPS\n",
        "--shift-depth 1",
        ["first_layer_type", "contradicts shift_depth"],
    ),
    (DENSE + "trainer: lottery\n", "", ["trainer", FILE, "conv_type SubnetConv", "SampleSubnetConv"]),
    (SUBNET + "trainer: lottery\nepochs: 6\n", "", ["dense_epochs: 6 by default, but it must be < epochs (6)"]),
    (
        SUBNET,
        f"{GLOBAL} --trainer lottery --epochs 16",
        ["dense_epochs: 6 by d", "prune_rate_epoch must be < epochs (16)"],
    ),
    (
        SUBNET + "epochs: 10\n",
        GLOBAL,
        ["prune_rate_epoch: 10 by default", "before the run ends", "< epochs (10); 0: no sched"],
    ),
    (
        SUBNET,
        f"{GLOBAL} --prune-rate-epoch 7 --epochs 7",
        ["prune_rate_epoch", "'7'", HERE, "it must be < epochs (7)"],
    ),
    (DENSE + "conv_type: GlobalSubnetConv\n", "", ["prune_rate", "must be given"]),
    (DENSE, "--first-layer-type GlobalSubnetConv", ["prune_rate", "must be given"]),
    (DENSE + "conv_type: RGConv\n", "--prune-rate 0", ["prune_rate", "'0'", HERE, "> 0 and <= 1"]),
    (
        DENSE + "conv_type: FixedSubnetConv\nprune_rate: 0.5\ntrainer: ss\npretrained: a.pt\n",
        "",
        ["trainer", "'ss'", FILE, "conv_type SubnetConv"],
    ),
    (
        DENSE + "conv_type: SubnetConv\nscale_fan: true\nprune_rate: -1\n",
        "",
        ["prune_rate", "-1", FILE, "must be given"],
    ),
    (DENSE, "--score-l1 -1", ["score_l1", "'-1'", HERE, "a float >= 0"]),
    (
        DENSE + "trainer: anomoly\n",
        "",
        ["trainer", "'anomoly'", FILE, "default, prune_score, lottery, ss, binary, sparse, shift"],
    ),
    (DENSE, "--readout origina", ["readout", HERE, "one of pooled, original40", "did you mean 'original40'"]),
    (DENSE + "image_size: 7\n", "", ["image_size", "7", FILE, "an int >= 8"]),
    (SUBNET + "score_init_constant: 0.5\n", "", ["score_init_constant", FILE, "SampleSubnetConv"]),
    (DENSE + "conv_type: FixedSubnetConv\npretrained: a.pt\n", "", ["prune_rate", "must be given"]),
    (SUBNET, "--conv-type FixedSubnetConv", ["conv_type", HERE, "takes its mask from a trained network", "RGConv"]),
    (DENSE + "conv_type: RGConv\nscale_fan: true\n", "", ["scale_fan", FILE, "prune_rate < 1"]),
    (
        DENSE + "conv_type: RGConv\nfirst_layer_dense: true\nfirst_layer_type: RGConv\n",
        "",
        ["first_layer_type", FILE, "contradicts"],
    ),
    (DENSE + "trainer: binary\n", "", ["trainer", "'binary'", FILE, "conv_type BinaryConv"]),
    (BINARY, "--trainer prune_score", ["trainer", "'prune_score'", HERE, "SubnetConv"]),
    (BINARY, "--first-layer-type SubnetConv --prune-rate 0.5", ["first_layer_type", HERE, "a run has only one"]),
    (BINARY, "--initial-ones 1.5", ["initial_ones", "'1.5'", HERE, "a float >= 0 and <= 1"]),
    (BINARY, "--epsilon 2", ["epsilon", "'2'", HERE, "a float >= 0 and <= 1"]),
    (BINARY + "random_mag: -1\n", "", ["random_mag", "-1", FILE, "a float >= 0"]),
    (BINARY, "--sweep-every 0", ["sweep_every", "'0'", HERE, "an int >= 1"]),
    *(
        (BINARY, f"--sweep-on {text}", ["sweep_on", f"'{text}'", HERE, "start:stop:step or none, such as 0:4:0.1"])
        for text in ("0:4", "4:0:0.1", "0:4:0", "0:4:1e-9", "a:b:c", "yes", "nan:1:1")
    ),
    # types
    (DENSE, "--epochs 2.5", ["epochs", "'2.5'", HERE, "an int >= 1"]),
    (DENSE + "epochs: 2.5\n", "", ["epochs", "2.5", FILE, "an int >= 1"]),
    (DENSE + "epochs: 5.0\n", "", ["epochs", "5.0", FILE, "an int >= 1"]),
    (DENSE + "epochs: true\n", "", ["epochs", "true", FILE, "an int >= 1"]),
    (DENSE + "epochs:\n", "", ["epochs", "null", FILE, "an int >= 1"]),
    (DENSE + "epochs: [5]\n", "", ["epochs", "[5]", FILE, "an int >= 1"]),
    (DENSE + "epochs: {5: 6}\n", "", ["epochs", "{5: 6}", FILE, "an int >= 1"]),
    (DENSE + "lr: fast\n", "", ["lr", "'fast'", FILE, "a float > 0"]),
    (DENSE + "lr: false\n", "", ["lr", "false", FILE, "a float > 0"]),
    (DENSE + "lr: .nan\n", "", ["lr", "nan", FILE, "a float > 0"]),
    (DENSE + f"lr: {'9' * 400}\n", "", ["lr", FILE, "a float > 0"]),
    (DENSE, "--lr inf", ["lr", "'inf'", HERE, "a float > 0"]),
    (DENSE, "--bn-weight-init nan", ["bn_weight_init", "'nan'", HERE, "a float"]),
    (DENSE, "--lr", ["lr", "no value", HERE, "a float > 0"]),
    (DENSE, "--lr=", ["lr", "no value", HERE, "a float > 0"]),
    (DENSE, "--seed", ["seed", "no value", HERE, "an int >= 0"]),
    (DENSE + "nesterov: maybe\n", "", ["nesterov", "'maybe'", FILE, "true or false"]),
    (DENSE + "nesterov: 'False'\n", "", ["nesterov", "'False'", FILE, "true or false"]),
    (DENSE + "nesterov: 1\n", "", ["nesterov", "1", FILE, "true or false"]),
    (SUBNET, "--prune-rate inf", ["prune_rate: 'inf'", HERE, "a float > 0 and <= 1"]),
    (DENSE + "conv_type: SubnetConv\nprune_rate: .nan\n", "", ["prune_rate: ", FILE, "a float > 0 and <= 1"]),
    (DENSE, "--nesterov maybe", ["nesterov: 'maybe'", HERE, "true or false; on the command line: --nesterov, "]),
    (DENSE, "--no-nesterov true", ["nesterov: '--no-nesterov true'", HERE, "--nesterov false or --no-nesterov"]),
    (DENSE, "--no-nesterov=", ["nesterov: '--no-nesterov '", HERE, "--nesterov false or --no-nesterov"]),
    (DENSE + "name: [7]\n", "", ["name", "[7]", "in c.yml, line 3", "text"]),
    (DENSE + "name: ' '\n", "", ["name", "' '", FILE, "text"]),
    (DENSE + 'results: "a\\0b"\n', "", ["results", FILE, "text"]),
    (MLP + "hidden: [300, 2.5]\n", "", ["hidden", "[300, 2.5]", FILE, "a list of ints >= 1"]),
    (MLP + "hidden: []\n", "", ["hidden", "[]", FILE, "a list of ints >= 1"]),
    (MLP, "--hidden 300,", ["hidden", "'300,'", HERE, "a list of ints >= 1"]),
    # choices
    (DENSE, "--optimizer adma", ["optimizer", "'adma'", HERE, "sgd, adam", "did you mean 'adam'"]),
    ("set: digit\narch: Conv2\n", "", ["set", "'digit'", FILE, "MNIST", "did you mean 'digits'"]),
    ("set: digits\narch: conv4\n", "", ["arch", "'conv4'", FILE, "did you mean 'Conv4'"]),
    (DENSE, "--conv-type SubnetCnv", ["conv_type", HERE, "DenseConv, SubnetConv", "did you mean"]),
    # ranges
    (DENSE, "--epochs 0", ["epochs", "'0'", HERE, ">= 1"]),
    (DENSE, "--lr -1", ["lr", "'-1'", HERE, "> 0"]),
    (DENSE, "--lr -1e-4", ["lr", "'-1e-4'", HERE, "> 0"]),
    (DENSE, "--batch-size=0", ["batch_size", "'0'", HERE, ">= 1"]),
    (DENSE, "--seed 9223372036854775808", ["seed", HERE, "< 9223372036854775808"]),
    (DENSE, "--multigpu -1", ["multigpu", "'-1'", HERE, "a list of ints >= 0"]),
    (SUBNET, "--prune-rate 1.5", ["prune_rate", "'1.5'", HERE, "> 0 and <= 1", "kept"]),
    (SUBNET, "--prune-rate 0", ["prune_rate", "'0'", HERE, "> 0 and <= 1"]),
    (DENSE, "--prune-rate 1.5", ["prune_rate", "'1.5'", HERE, "> 0 and <= 1"]),
    # required
    ("arch: Conv2\n", "", ["set", "in the YAML file", HERE, "one of digits"]),
    ("set: digits\n", "", ["arch", "in the YAML file", HERE, "one of FC"]),
    (DENSE + "conv_type: SubnetConv\n", "", ["prune_rate", "must be given", "kept", "--prune-rate 0.5"]),
    (DENSE, "--first-layer-type SubnetConv", ["prune_rate", "must be given", "--prune-rate 0.5"]),
    (SUBNET.replace("0.5", "-1"), "", ["prune_rate", "-1", FILE, "must be given", "(-1 in a file means not given)"]),
    (SUBNET, "--prune-rate -1", ["prune_rate", "'-1'", HERE, "must be given"]),
    # contradicting options
    (DENSE + "conv_type: ShiftQ\nweight_bits: 1\n", "", ["weight_bits: 1", FILE, "an int >= 2 and <= 8"]),
    (DENSE + "conv_type: ShiftPS\n", "--weight-bits 9", ["weight_bits", "'9'", HERE, "an int >= 2 and <= 8"]),
    (
        DENSE + "conv_type: ShiftPS\nactivation_bits: [16]\n",
        "",
        ["activation_bits: [16]", FILE, "two ints", "(>= 2 and <= 25)", "<= 32"],
    ),
    (DENSE + "conv_type: ShiftPS\n", "--activation-bits 20,13", ["activation_bits", "'20,13'", HERE, "<= 32"]),
    (DENSE + "conv_type: ShiftQ\n", "--activation-bits 1,8", ["activation_bits", "'1,8'", HERE, "(>= 2 and <= 25)"]),
    (DENSE + "conv_type: ShiftPS\n", "--activation-bits 1,0", ["activation_bits", "'1,0'", HERE, "(>= 2 and <= 25)"]),
    (DENSE + "conv_type: ShiftQ\n", "--activation-bits 0,0", ["activation_bits", "'0,0'", HERE, "(>= 2 and <= 25)"]),
    (DENSE + "conv_type: ShiftPS\n", "--activation-bits 0,16", ["activation_bits", "'0,16'", HERE, "(>= 2 and <= 25)"]),
    (DENSE + "conv_type: ShiftQ\n", "--activation-bits 26,6", ["activation_bits", "'26,6'", HERE, "(>= 2 and <= 25)"]),
    (DENSE + "conv_type: ShiftPS\n", "--activation-bits 32,0", ["activation_bits", "'32,0'", HERE, "(>= 2 and <= 25)"]),
    (
        DENSE + "conv_type: ShiftQ\n",
        "--activation-bits 40,40",
        ["activation_bits", "'40,40'", HERE, "(>= 2 and <= 25)"],
    ),
    (DENSE + "conv_type: ShiftQ\n", "--precision bf16", ["precision", "'bf16'", HERE, "fp32 or auto"]),
    (
        DENSE + "freeze_weights: true\n",
        "--first-layer-type ShiftPS",
        ["freeze_weights", FILE, "ShiftPS trains its weights and has no scores"],
    ),
    (DENSE + "conv_type: ShiftQ\n", "--rounding stochastc", ["rounding", HERE, "did you mean 'stochastic'"]),
    (DENSE + "conv_type: ShiftQ\nshift_depth: 0\n", "", ["shift_depth: 0", FILE, "an int >= 1"]),
    (DENSE, "--trainer shift", ["trainer: 'shift'", HERE, "conv_type ShiftQ or ShiftPS"]),
    (SUBNET, "--trainer shift", ["trainer: 'shift'", HERE, "conv_type ShiftQ or ShiftPS"]),
    (DENSE + "conv_type: ShiftQ\n", "--trainer ss", ["trainer: 'ss'", HERE, "conv_type SubnetConv"]),
    (
        DENSE + "conv_type: ShiftPS\nfreeze_weights: true\n",
        "",
        ["freeze_weights: true", FILE, "ShiftPS trains its weights and has no scores"],
    ),
    (DENSE, "--hidden 300,100", ["hidden", HERE, "arch MLP", "Conv2"]),
    (DENSE, "--bias", ["bias", HERE, "arch MLP"]),
    (DENSE + "activation: tanh\n", "", ["activation", "'tanh'", FILE, "arch MLP"]),
    (DENSE + "norm: none\n", "", ["norm", "'none'", FILE, "arch MLP"]),
    (DENSE, "--bn-type NonAffineBatchNorm --bn-weight-init 0", ["bn_weight_init", "'0'", HERE, "another bn_type"]),
    (DENSE, "--bn-type NonAffineBatchNorm --bn-bias-init 0", ["bn_bias_init", "'0'", HERE, "another bn_type"]),
    (SUBNET, "--first-layer-dense --first-layer-type SubnetConv", ["first_layer_type", HERE, "first_layer_dense"]),
    (SUBNET, "--scale-fan --prune-rate 1", ["scale_fan", HERE, "prune_rate < 1"]),
    (DENSE + "trainer: prune_score\n", "", ["trainer", "'prune_score'", FILE, "conv_type SubnetConv"]),
    (DENSE + "nesterov: true\n", "--optimizer adam", ["nesterov", "true", FILE, "optimizer sgd, not adam"]),
    (DENSE + "trainer: sparse\n", "", ["trainer", "'sparse'", FILE, "needs conv_type SparseConv"]),
    (SUBNET, "--first-layer-type SparseConv", ["first_layer_type", HERE, "another trainer than conv_type SubnetConv"]),
    (
        SPARSE + "first_layer_type: SubnetConv\nprune_rate: 0.5\n",
        "",
        ["first_layer_type", FILE, "it needs another trainer than conv_type SparseConv, and a run has only one"],
    ),
    (DENSE + "conv_type: ShiftQ\nfirst_layer_type: BinaryConv\n", "", ["first_layer_type", FILE, "a run has only one"]),
    (SPARSE + "trainer: prune_score\n", "", ["trainer", "'prune_score'", FILE, "conv_type SubnetConv"]),
    (SPARSE, "--freeze-weights", ["freeze_weights", HERE, "SparseConv trains its weights"]),
    (SPARSE + "density: 0.5\nprune_rate: 0.5\n", "", ["density", "c.yml", "the same option", "leave out one"]),
    (SPARSE, "--density 2", ["prune_rate", "'2'", HERE, "> 0 and <= 1", "kept"]),
    (SPARSE + "density: 2\n", "", ["prune_rate", "2", FILE, "> 0 and <= 1", "kept"]),
    (SPARSE, "--density 1", ["prune_rate", "'1'", HERE, "nothing to rewire", "-1 to rewire filter by filter"]),
    (SPARSE, "--density 0.5 --grow none", ["grow", "'none'", HERE, "density_schedule cubic"]),
    (SPARSE, "--drop random", ["grow", "'hebbian' by default", "also grows at random", "it must be random"]),
    (SPARSE, "--drop random --grow none", ["grow", "'none'", HERE, "also grows at random", "it must be random"]),
    (SPARSE, "--drop magnitude_per_sign", ["drop", "'magnitude_per_sign'", HERE, "either sign", "needs a prune_rate"]),
    (
        SPARSE + "density_schedule: cubic\n",
        "",
        ["density_schedule", FILE, "falls from 0.5 to prune_rate", "needs a prune_rate below 0.5"],
    ),
    (
        SPARSE + "density_schedule: cubic\n",
        "--density 0.5",
        ["density_schedule", FILE, "it needs a prune_rate below 0.5"],
    ),
    (
        SPARSE + "density: 0.1\ndensity_schedule: cubic\n",
        "--epochs 4 --start-epoch 3",
        ["start_epoch", "'3'", HERE, "ends before this epoch", "< progress_until * epochs"],
    ),
    (SPARSE, "--density 0.1 --no-sparse-hold", ["sparse_hold", HERE, "must stay 0"]),
    (SPARSE, "--keep-share 0.2", ["keep_share", "'0.2'", HERE, "at most live_share (0.15)"]),
    (SPARSE, "--drop-fraction 0", ["drop_fraction", "'0'", HERE, "a float > 0 and <= 1"]),
    (SPARSE, "--update-interval 0", ["update_interval", "'0'", HERE, "an int >= 1"]),
    (SPARSE, "--progress-until 1.5", ["progress_until", "'1.5'", HERE, "a float > 0 and <= 1"]),
    (SPARSE, "--drop hebian", ["drop", HERE, "one of hebbian, correlation", "did you mean 'hebbian'"]),
    (DENSE, "--nesterov --momentum 0", ["nesterov", HERE, "momentum > 0"]),
    (DENSE, "--start-epoch 5 --epochs 5", ["start_epoch", "'5'", HERE, "< epochs (5)"]),
    (DENSE, "--start-epoch 5 --resume auto", ["start_epoch", "'5'", HERE, "leave out"]),
    (DENSE, "--resume runs/x --pretrained a.pt", ["pretrained", "'a.pt'", HERE, "leave out"]),
    (DENSE, "--evaluate", ["evaluate", HERE, "--resume PATH or --pretrained FILE"]),
    (DENSE, "-e", ["evaluate", HERE, "--resume PATH or --pretrained FILE"]),
    (DENSE, "--name a/b", ["name", "'a/b'", HERE, "one path component"]),
    (DENSE, "--name ..", ["name", "'..'", HERE, "one path component"]),
    (DENSE, "--log-dir /dev/null/x", ["log_dir", "'/dev/null/x'", HERE, "a folder"]),
    (DENSE, "--multigpu 0,1,0", ["multigpu", "'0,1,0'", HERE, "may be listed only once"]),
    (DENSE, "--multigpu 0 --device cpu", ["multigpu", "'0'", HERE, "leave out one of the two"]),
    # the file itself
    (DENSE + "lr: [1\n", "", ["config: c.yml, line 4", "pass a YAML file"]),
    (DENSE + "lr: 1\nset: MNIST\n", "", ["config: c.yml, line 4", "'set' is given twice; leave one out"]),
    (DENSE + "val-split: 0.1\nval_split: 0.2\n", "", ["config: c.yml, line 4", "'val_split' is given twice"]),
    ("- set\n", "", ["config: c.yml", "['set']", "`key: value`", "pass a YAML file"]),
    ("", "", ["config: c.yml", "empty"]),
    ("lr: !!python/object:os.system {}\n", "", ["config: c.yml, line 1", "python/object"]),
    (DENSE + "seed: 2023-99-99\n", "", ["seed: 2023-99-99", "in c.yml, line 3", "an int >= 0"]),
    ("a: \x00\n", "", ["config: c.yml", "pass a YAML file"]),
    ("[" * 5000, "", ["config: c.yml", "pass a YAML file"]),
]


@pytest.mark.parametrize(("text", "words", "parts"), TABLE, ids=[f"{row[0][-20:]!r} {row[1]}" for row in TABLE])
def test_error_for_a_bad_input_states_problem_place_and_remedy_in_one_line(
    text: str, words: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yml").write_text(text)
    with pytest.raises(UsageError) as error:
        args.parse(["--config", "c.yml", *("" if word == "EMPTY" else word for word in words.split())])
    assert len(str(error.value).splitlines()) == 1, str(error.value)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("word", ["--config=missing.yml", "--config=.", "--config", "", "--resume=auto"])
def test_a_missing_or_unreadable_config_is_the_only_reported_problem(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"\Aconfig: [^\n]*pass[^\n]*\Z"):
        args.parse([word] if word else [])


def test_a_config_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_bytes(b"set: \xff\xfe\n")
    with pytest.raises(UsageError, match=r"\Aconfig: [^\n]*pass a YAML file\Z"):
        args.parse(["--config", str(tmp_path / "c.yml")])


def test_all_problems_of_file_and_command_line_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("set: digit\narch: Conv2\nlr: fast\ntypo: 1\n")
    with pytest.raises(UsageError) as error:
        args.parse(["--config", str(tmp_path / "c.yml"), "--epochs", "0", "--what", "--nesterov", "--momentum=0", "x"])
    head, *lines = str(error.value).splitlines()
    assert head == "7 problems:"
    names = ["--what", "'x'", "set", "lr", "typo", "epochs", "nesterov"]
    assert [line.partition(":")[0] for line in lines] == names


@pytest.mark.parametrize("words", [["one", "two"], ["--typo=5", "two"], ["-x", "5", "two"]])
def test_only_the_word_after_an_unknown_option_counts_as_its_value(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(DENSE)
    with pytest.raises(UsageError, match=r"\A2 problems:\n[^\n]*\n'two': unexpected argument[^\n]*\Z"):
        args.parse(["--config", str(tmp_path / "c.yml"), *words])


def test_checks_that_read_an_invalid_value_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(
        "set: digits\narch: Conv2\nconv_type: Subnet\ntrainer: prune_score\nscale_fan: true\n"
    )
    with pytest.raises(UsageError, match=r"\Aconv_type: [^\n]*\Z"):
        args.parse(["--config", str(tmp_path / "c.yml"), "--prune-rate", "1"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--conv-type", "no", "--prune-rate", "1.5"], {"conv_type", "prune_rate"}),
        (["--conv-type", "no", "--epochs", "4", "--start-epoch", "4"], {"conv_type", "start_epoch"}),
    ],
)
def test_an_independent_error_is_reported_beside_an_invalid_conv_type(
    words: list[str], names: set[str], tmp_path: Path
) -> None:
    (tmp_path / "c.yml").write_text(DENSE)
    with pytest.raises(UsageError) as error:
        args.parse(["--config", str(tmp_path / "c.yml"), *words])
    assert {line.partition(":")[0] for line in str(error.value).splitlines()} == {"2 problems"} | names


def test_the_command_line_is_checked_even_if_the_config_cannot_be_read() -> None:
    with pytest.raises(UsageError) as error:
        args.parse(["--config", "/missing.yml", "--lr=0", "--multigpu=0", "--device=cpu", "--evaluate", "--bias"])
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [
        "3 problems",
        "config",
        "lr",
        "multigpu",
    ]
