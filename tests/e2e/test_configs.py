"""Shipped configs: each trains, states its source, and has the meaning of BIPROP's file at the same path."""

import csv
import re
import shlex
from pathlib import Path

import pytest

import args
from models.constraints import layer_counts
from tests.biprop import LEFT_OPEN, ROWS, write
from tests.steps import IMAGENET, on_meta, spec_of, take_a_step
from utils.records.results import COLUMNS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.y*ml"))
ORIGINALS = [config for config in CONFIGS if config.removeprefix("configs/") in ROWS]
INITS = ("kaiming_normal", "signed_constant")
NO_ORIGINAL = "the original has no such file, only its Kaiming normal sibling"
OWN = [config for config in CONFIGS if NO_ORIGINAL in (ROOT / config).read_text()]
with (ROOT / "scripts" / "reproduce" / "targets.csv").open(newline="") as file:
    TARGETS = list(csv.DictReader(file))
TICKETS = [row for row in TARGETS if row["paper"] == "BIPROP"]
PUBLISHED = r"([\d.]+) at (\d+) % pruned and ([\d.]+) M weights; ([\d.]+) M by count(: text and count disagree)?\."


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def head(config):
    """Return the four comment lines of a config, keyed by their first word."""
    lines = [line for line in Path(config).read_text().splitlines() if line.startswith("#")]
    return dict(line.removeprefix("# ").split(": ", 1) for line in lines)


def options(config):
    """Return the options of the command in a config's comment."""
    _, program, *words = shlex.split(head(config)["Command"])
    assert (program, words[:2]) == ("main.py", ["--config", config])
    return args.parse([*words, "--seed", "1"])


def meaning(read):
    """Return the options that change the result of a run; BIPROP's files name other folders and runs."""
    values = read.flat()
    return {name: values[name] for name, option in args.FIELDS.items() if option.metadata["maths"]} | {
        "epochs": values["epochs"]
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_begins_with_paper_published_command_and_measured(config):
    assert [*head(config)] == ["Paper", "Published", "Command", "Measured"]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_of_every_config_is_accepted_without_a_warning(config):
    assert options(config).warnings == ()


@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in ORIGINALS])
def test_every_config_missing_in_biprop_trains_for_one_step(config):
    """test_biprop_configs.py trains the other configs. The next test shows that they equal BIPROP's files."""
    take_a_step(options(config))


@pytest.mark.parametrize("config", ORIGINALS)
def test_a_config_at_a_path_of_biprop_has_the_same_meaning(config, tmp_path):
    original = config.removeprefix("configs/")
    rate = ["--prune-rate", str(options(config).constraint.prune_rate)] if original in LEFT_OPEN else []
    theirs = args.parse(["--config", write(original, tmp_path), "--seed", "1", *rate])
    assert meaning(options(config)) == meaning(theirs)
    assert ("prune_rate: -1\n" in Path(config).read_text()) == (original in LEFT_OPEN)


@pytest.mark.parametrize("config", OWN)
def test_a_config_missing_in_biprop_is_its_kaiming_sibling_with_signed_constants(config):
    assert config.removeprefix("configs/") not in ROWS
    sibling = re.sub(r"([_-])sc([_-])", r"\1kn\2", config)
    assert meaning(options(config)) == meaning(options(sibling)) | {"init": "signed_constant"}


def test_the_networks_of_biprops_figures_have_configs_in_both_initialisations():
    shipped = {(o.model.arch, o.model.init) for o in map(options, CONFIGS) if o.constraint.conv_type == "SubnetConv"}
    networks = ["Conv2", "Conv4", "Conv6", "Conv8", "VGG_Small", "cResNet18"]
    wanted = {(net + act, init) for net in networks for act in ("", "_BinAct") for init in INITS}
    assert wanted <= shipped and len(OWN) == 3


# published rows


def test_published_rows_and_their_configs_correspond_one_to_one():
    assert [row["config"] for row in TICKETS] == list(dict.fromkeys(row["config"] for row in TICKETS))
    assert sorted(row["config"] for row in TICKETS) == [c for c in CONFIGS if c.startswith("configs/published/")]
    assert len(TICKETS) == 9
    tables = [c for c in CONFIGS if c.startswith("configs/shift/") and re.search(r"\d", head(c)["Published"])]
    assert {row["config"] for row in TARGETS} - {row["config"] for row in TICKETS} == set(tables)


@pytest.mark.parametrize("row", TARGETS, ids=[row["row"] for row in TARGETS])
def test_a_published_row_is_a_runnable_command(row):
    assert row["metric"] in COLUMNS
    assert float(row["tolerance"]) > 0 and all(int(seed) >= 0 for seed in row["seeds"].split())
    read = args.parse(["--config", row["config"], *shlex.split(row["overrides"])])
    assert read.data.set.startswith(row["table"].split()[1].replace("-", ""))
    assert float(row["published"]) in [float(n) for n in re.findall(r"\d+\.\d+", head(row["config"])["Published"])]


@pytest.mark.parametrize(
    "row", [row for row in TARGETS if row["table"].startswith("repository")], ids=lambda row: row["row"]
)
def test_a_row_of_deepshifts_repository_uses_its_initial_weights_and_schedule(row):
    """torch's initial weights are converted. lr is 0.01 on MNIST and falls at epochs 80, 120, 160, 180 on CIFAR-10."""
    read = args.parse(["--config", row["config"], *shlex.split(row["overrides"])])
    assert (read.model.init, row["overrides"]) == ("standard", "")
    assert read.constraint.conv_type != "ShiftPS" or read.constraint.shift_init == "weights"
    assert read.optim.lr_policy == ("constant_lr" if read.data.set == "MNIST" else "deepshift_lr")
    assert read.optim.optimizer == ("radam" if read.constraint.conv_type == "ShiftPS" else "sgd")


@pytest.mark.parametrize("row", TICKETS, ids=[row["row"] for row in TICKETS])
def test_a_published_ticket_trains_batch_norm_if_and_only_if_its_row_is_marked_bn(row):
    read = options(row["config"])
    affine = read.model.bn_type != "NonAffineBatchNorm"
    assert ("+BN" in row["row"]) == read.constraint.learn_batchnorm == affine


@pytest.mark.parametrize("row", TICKETS, ids=[row["row"] for row in TICKETS])
def test_the_comment_of_a_published_config_states_accuracy_and_weight_count(row):
    published, pruned, claimed, counted, disagree = re.match(PUBLISHED, head(row["config"])["Published"]).groups()
    assert published == row["published"]
    assert f", {pruned} % pruned" in row["row"]
    read = options(row["config"])
    assert 100 * read.constraint.density == pytest.approx(100 - int(pruned))
    spec = IMAGENET if read.data.set == "ImageNet" else spec_of(read.data.set)
    kept = sum(layer.kept for layer in layer_counts(on_meta(read, spec)))
    assert f"{kept / 1e6:.2f}" == counted
    assert bool(disagree) == (abs(float(claimed) - kept / 1e6) > 0.1)
