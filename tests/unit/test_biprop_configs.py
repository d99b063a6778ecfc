"""All 170 configs of BIPROP are read in their original form and train.

`CHANGED` and `NO_PATHS` list the values that differ from the file, and the warnings about them.
"""

from collections import Counter
from pathlib import Path

import pytest
import yaml

import args
from models.constraints import layer_counts
from tests.biprop import KEYS, LEFT_OPEN, ROWS, write
from tests.steps import IMAGENET, logits_shape, on_meta, spec_of, take_a_step
from trainers.experiment import build
from utils.errors import UsageError

NO_PATHS = {"data": "./datasets", "log_dir": None}  # folders of the authors' machines are replaced by the defaults
CHANGED = {  # config -> {option: (value after parsing, part of the warning or None)}
    "smallscale/resnet18/resnet18-dense-BinAct-kn-unsigned.yaml": {
        "scale_fan": (False, "no effect without conv_type SubnetConv, GlobalSubnetConv, FixedSubnetConv"),
        "prune_rate": (None, None),
    },
    # the file has 0.0, which means no pruning in BIPROP
    "smallscale/resnet18/resnet18-dense.yaml": {"prune_rate": (None, None)},
    "smallscale/vgg/vgg_small_bn_BinAct.yml": {
        "width_mult": (1.0, "no effect without arch Conv4Wide, Conv4Wide_BinAct, Conv6Wide or"),
    },
}
RANDOM_GRAPHS = [config for config, row in ROWS.items() if row["conv_type"] == "RGConv"]
FORTY = [config for config, row in ROWS.items() if "40 logits" in row["remarks"]]
FAILED_TO_BUILD_OR_RUN = [
    f"largescale/subnetonly/{stem}.yaml"
    for stem in (
        *("wideresnet18_3-BinAct-kn-unsigned", "wideresnet18_3-BinAct-affine-kn-unsigned"),
        *("resnet50_v2-affine-usc-unsigned", "wideresnet50_v2-affine-usc-unsigned"),
    )
]


@pytest.fixture
def parse(tmp_path, monkeypatch):
    for folder in NO_PATHS:  # even if the test machine has one of the authors' folders
        monkeypatch.setitem(args.FOLDERS, folder, (args.FOLDERS[folder][0], lambda path: False))

    def parse_(config, *words):
        return args.parse(["--config", write(config, tmp_path), "--seed", "1", *words])

    return parse_


def overrides(config):
    return ("--prune-rate", "0.5") if config in LEFT_OPEN else ()


def first_of_each(*keys):
    """Return the first config of each combination of values."""
    return list({tuple(row[key] for key in keys): config for config, row in reversed(ROWS.items())}.values())


NETWORKS = first_of_each("arch", "set", "conv_type", "bn_type", "optimizer", "width_mult")
INITIALISATIONS = first_of_each("conv_type", "init", "scale_fan", "mode", "nonlinearity")


def test_the_table_has_all_170_configs():
    assert len(ROWS) == 170
    assert Counter(row["set"] for row in ROWS.values()) == {"CIFAR10": 109, "ImageNet": 59, "MNIST": 2}
    assert (len(LEFT_OPEN), len(RANDOM_GRAPHS), len(FORTY)) == (109, 5, 14)


@pytest.mark.parametrize("config", ROWS)
def test_every_value_of_a_config_is_kept_except_for_the_listed_changes(config, parse):
    options = parse(config, *overrides(config))
    got, row, changed = options.flat(), ROWS[config], CHANGED.get(config, {})
    written = {key: yaml.safe_load(row[key]) for key in KEYS if row[key]}
    expected = written | {"name": row["name"] or Path(config).stem}
    expected |= {key: default for key, default in NO_PATHS.items() if key in written}
    expected |= {"prune_rate": 0.5} if config in LEFT_OPEN else {}
    expected |= {key: value for key, (value, _) in changed.items()}
    assert {key: got[key] for key in expected} == expected

    warned = {line.partition(":")[0]: line for line in options.warnings}
    expected_warnings = {key: remark for key, (_, remark) in changed.items() if remark}
    expected_warnings |= {key: "cannot be used here; using" for key in NO_PATHS if key in written}
    assert warned.keys() == expected_warnings.keys() and len(options.warnings) == len(warned)
    assert all(remark in warned[key] for key, remark in expected_warnings.items())


@pytest.mark.parametrize("config", ROWS)
def test_only_configs_without_a_density_require_prune_rate(config, parse):
    if config in LEFT_OPEN:
        with pytest.raises(UsageError, match=r"\Aprune_rate: -1 in .*the fraction of weights kept, e.g. --prune-rate"):
            parse(config)
    else:
        parse(config)


@pytest.mark.parametrize("config", dict.fromkeys(NETWORKS + INITIALISATIONS))
def test_every_network_and_every_initialisation_trains_for_one_step(config, parse):
    model = take_a_step(parse(config, *overrides(config)))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if ROWS[config]["freeze_weights"]:  # batch norms are frozen as well: no published config trains them
        assert trained == {f"{layer.name}.constraint.scores" for layer in layer_counts(model)}
    else:
        assert trained == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("config", FAILED_TO_BUILD_OR_RUN)
def test_configs_that_failed_in_biprop_give_1000_logits_on_imagenet(config, parse):
    whole = on_meta(parse(config, *overrides(config)), IMAGENET)
    assert logits_shape(whole, IMAGENET) == (2, 1000)


@pytest.mark.parametrize("config", FORTY)
def test_the_small_resnets_give_ten_logits_instead_of_forty(config, parse):
    spec = spec_of("CIFAR10")
    assert logits_shape(on_meta(parse(config, *overrides(config)), spec), spec) == (2, 10)


@pytest.mark.parametrize("config", RANDOM_GRAPHS)
def test_a_random_graph_is_dense_without_prune_rate_and_masked_with_prune_rate(config, parse):
    for words, density in (((), 1.0), (("--prune-rate", "0.3"), 0.3)):
        counts = layer_counts(build(parse(config, *words), spec_of("CIFAR10"))[0])
        assert {count.constraint for count in counts} == {"RandomMaskWeight"}
        assert all(abs(count.kept - density * count.total) <= 1 for count in counts)


def test_exponents_without_a_decimal_point_are_read_as_numbers(tmp_path):
    """YAML 1.1 requires a decimal point: PyYAML reads `1e-4` as text, and BIPROP passed the text to the optimizer."""
    text = "arch: Conv4\nset: CIFAR10\nlr: 1e-4\nweight_decay: 5e-4\nmultigpu: 0\nlabel_smoothing: 1e-1\n"
    assert isinstance(yaml.safe_load(text)["lr"], str)
    path = tmp_path / "text.yml"
    path.write_text(text)
    got = args.parse(["--config", str(path)]).flat()
    assert [got[key] for key in ("lr", "weight_decay", "label_smoothing", "multigpu")] == [1e-4, 5e-4, 0.1, [0]]


def test_unused_keys_of_biprop_are_ignored_with_a_warning(tmp_path):
    path = tmp_path / "dead.yml"
    path.write_text("arch: Conv4\nset: CIFAR10\n")
    plain = args.parse(["--config", str(path)])
    dead = ["world_size", "rank", "random_subnet", "multistep_lr_adjust", "multistep_lr_gamma"]
    path.write_text("arch: Conv4\nset: CIFAR10\n" + "".join(f"{key}: 1\n" for key in dead))
    options = args.parse(["--config", str(path)])
    assert options.warnings == tuple(f"{key} is an option of BIPROP that has no effect here" for key in dead)
    assert options.flat() == plain.flat()
