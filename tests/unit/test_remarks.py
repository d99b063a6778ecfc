"""Warnings about valid options: options without effect, and values that have another name than in BIPROP."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import args
from args import Options

DENSE = {"set": "digits", "arch": "Conv2"}
SUBNET = {**DENSE, "conv_type": "SubnetConv", "prune_rate": 0.5, "freeze_weights": True}
BINARY = {**DENSE, "conv_type": "BinaryConv"}
SPARSE = {**DENSE, "conv_type": "SparseConv"}
GLOBAL = {**SUBNET, "conv_type": "GlobalSubnetConv", "prune_rate": 0.2}


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def parse_(content: dict[str, object], *words: str) -> Options:
        Path("c.yml").write_text(yaml.safe_dump(content))
        return args.parse(["--config", "c.yml", *words])

    return parse_


BY_GAIN = "init kaiming_normal, kaiming_uniform, signed_constant, unsigned_constant or usc_bernoulli"
PRUNE_RATE = "prune_rate: '0.5' {} conv_type SubnetConv, GlobalSubnetConv, FixedSubnetConv, RGConv or SparseConv"


@pytest.mark.parametrize(
    ("content", "words", "warning"),
    [
        (DENSE, "--dense-epochs 3", "dense_epochs: '3' {} trainer lottery"),
        (DENSE, "--score-l1 1", "score_l1: '1' {} trainer ss"),
        (DENSE, "--weight-bits 4", "weight_bits: '4' {} conv_type ShiftQ or ShiftPS"),
        (SUBNET, "--rounding stochastic", "rounding: 'stochastic' {} conv_type ShiftQ or ShiftPS"),
        (DENSE, "--activation-bits 8,8", "activation_bits: '8,8' {} conv_type ShiftQ or ShiftPS"),
        (DENSE, "--shift-depth 2", "shift_depth: '2' {} conv_type ShiftQ or ShiftPS"),
        (
            {**DENSE, "first_layer_type": "ShiftQ"},
            "--shift-depth 2",
            "shift_depth: '2' {} conv_type ShiftQ or ShiftPS",
        ),
        ({**DENSE, "conv_type": "ShiftPS"}, "--shift-update crude", "shift_update: 'crude' {} conv_type ShiftQ"),
        (
            {**DENSE, "conv_type": "ShiftQ", "shift_update": "crude"},
            "--weight-bits 4",
            "weight_bits: '4' {} shift_update ste",
        ),
        ({**DENSE, "conv_type": "ShiftQ"}, "--shift-init weights", "shift_init: 'weights' {} conv_type ShiftPS"),
        ({**DENSE, "conv_type": "ShiftQ"}, "--freeze-sign", "freeze_sign: true {} conv_type ShiftPS"),
        (DENSE, "--gaussian-aug", "gaussian_aug: true {} p_clean < 1 (at 1 no image gets noise)"),
        (
            SUBNET,
            "--prune-rate-epoch 3",
            "prune_rate_epoch: '3' {} conv_type GlobalSubnetConv and a prune_rate below 0.5",
        ),
        (
            {**GLOBAL, "prune_rate": 0.5},
            "--prune-rate-epoch 3",
            "prune_rate_epoch: '3' {} conv_type GlobalSubnetConv and a prune_rate below 0.5",
        ),
        (DENSE, "--initial-ones 0.1", "initial_ones: '0.1' {} conv_type BinaryConv"),
        (SUBNET, "--random-mag 1", "random_mag: '1' {} conv_type BinaryConv"),
        (DENSE, "--sweep-on none", "sweep_on: 'none' {} conv_type BinaryConv"),
        (DENSE, "--sweep-every 3", "sweep_every: '3' {} conv_type BinaryConv"),
        (BINARY, "--epsilon 0.5", "epsilon: '0.5' {} random_mag > 0"),
        (DENSE, "--lr-adjust 3", "lr_adjust: '3' {} lr_policy multistep_lr"),
        (DENSE, "--lr-gamma 0.3", "lr_gamma: '0.3' {} lr_policy multistep_lr"),
        (
            {**DENSE, "lr_policy": "multistep_lr"},
            "--warmup-length 3",
            "warmup_length: '3' {} lr_policy constant_lr, cosine_lr or cos_multi_lr",
        ),
        ({**DENSE, "optimizer": "adam"}, "--momentum 0.5", "momentum: '0.5' {} optimizer sgd"),
        ({**DENSE, "optimizer": "adam"}, "--weight-decay 0.1", "weight_decay: '0.1' {} optimizer sgd or adamw"),
        ({**DENSE, "optimizer": "radam"}, "--no-bn-decay", "no_bn_decay: true {} optimizer sgd or adamw"),
        (
            {**DENSE, "init": "ones"},
            "--mode fan_out",
            "mode: 'fan_out' {} " + BY_GAIN,
        ),
        (
            {**DENSE, "init": "standard"},
            "--nonlinearity tanh",
            "nonlinearity: 'tanh' {} " + BY_GAIN,
        ),
        (BINARY, "--init ones", "init: 'ones' {} layers of a conv_type other than BinaryConv"),
        (
            {**SUBNET, "init": "ones"},
            "--scale-fan",
            "scale_fan: true {} init kaiming_normal, signed_constant, unsigned_constant or usc_bernoulli",
        ),
        (
            {**DENSE, "arch": "FC"},
            "--bn-type AffineBatchNorm",
            "bn_type: 'AffineBatchNorm' {} batch norm, which arch FC does not have",
        ),
        (
            {**DENSE, "arch": "MLP", "norm": "hard_invert"},
            "--no-bn-decay",
            "no_bn_decay: true {} batch norm, which arch MLP does not have",
        ),
        (
            {**SUBNET, "arch": "FC"},
            "--learn-batchnorm",
            "learn_batchnorm: true {} batch norm, which arch FC does not have",
        ),
        (DENSE, "--bn-eps 0.1", "bn_eps: '0.1' {} batch norm, which arch Conv2 does not have"),
        (DENSE, "--first-layer-dense", "first_layer_dense: true {} a conv_type other than DenseConv"),
        (DENSE, "--last-layer-dense", "last_layer_dense: true {} a conv_type other than DenseConv"),
        (DENSE, "--workers 2", "workers: '2' {} augmix or set BigCIFAR10, ImageNet, TinyImageNet or ImageFolder"),
        (DENSE, "--data /nowhere", "data: '/nowhere' {} a set other than digits, whose images are bundled"),
        (
            DENSE,
            "--no-augment",
            "augment: false {} set CIFAR10, CIFAR100, BigCIFAR10, ImageNet, TinyImageNet or ImageFolder",
        ),
        (DENSE, "--download", "download: true {} set MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN or BigCIFAR10"),
        (DENSE, "--width-mult 2", "width_mult: '2' {} arch Conv4Wide, Conv4Wide_BinAct, Conv6Wide or 27 others"),
        (DENSE, "--std-gauss 1", "std_gauss: '1' {} gaussian_aug"),
        (DENSE, "--p-clean 0.5", "p_clean: '0.5' {} gaussian_aug"),
        (DENSE, "--all-augmix-augmentations", "all_augmix_augmentations: true {} augmix"),
        (DENSE, "--mixture-width 1", "mixture_width: '1' {} augmix"),
        (DENSE, "--mixture-depth 1", "mixture_depth: '1' {} augmix"),
        (DENSE, "--aug-severity 1", "aug_severity: '1' {} augmix"),
        (
            {**SUBNET, "arch": "VGG_Small", "bn_type": "NonAffineBatchNorm"},
            "--learn-batchnorm",
            "learn_batchnorm: true {} a bn_type with weight and bias",
        ),
        (
            {**SUBNET, "conv_type": "SampleSubnetConv"},
            "--prune-rate 0.5",
            PRUNE_RATE,
        ),
        (DENSE, "--drop magnitude", "drop: 'magnitude' {} conv_type SparseConv"),
        (DENSE, "--no-sparse-hold", "sparse_hold: false {} conv_type SparseConv"),
        (DENSE, "--layer-density uniform", "layer_density: 'uniform' {} conv_type SparseConv"),
        (
            {**SPARSE, "prune_rate": 0.1},
            "--live-share 0.3",
            "live_share: '0.3' {} rewiring filter by filter (SparseConv without a prune_rate)",
        ),
        (
            {**SPARSE, "drop": "random", "grow": "random"},
            "--keep-share 0.9",
            "keep_share: '0.9' {} another drop than random",
        ),
        (SPARSE, "--drop-fraction 0.3", "drop_fraction: '0.3' {} prune_rate"),
        (SPARSE, "--layer-density uniform", "layer_density: 'uniform' {} prune_rate"),
        (
            {**SPARSE, "prune_rate": 0.1, "drop": "magnitude", "grow": "gradient"},
            "--update-interval 3",
            "update_interval: '3' {} drop hebbian or correlation, or grow hebbian",
        ),
    ],
)
def test_an_option_without_effect_on_the_command_line_causes_one_warning(
    parse: Any, content: dict[str, object], words: str, warning: str
) -> None:
    assert parse(content, *words.split()).warnings == (warning.format("on the command line has no effect without"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**DENSE, "dense_epochs": 3, "score_l1": 1, "mixture_width": 1, "std_gauss": 1.0, "prune_rate_epoch": 3}, ""),
        ({**DENSE, "optimizer": "adam", "lr_gamma": 0.5, "lr_adjust": 3, "momentum": 0.5}, ""),
        ({**DENSE, "lr_policy": "multistep_lr"}, "--lr-gamma 0.5 --lr-adjust 3 --momentum 0.5"),
        ({**DENSE, "lr_policy": "cos_multi_lr"}, "--warmup-length 3"),
        ({**DENSE, "optimizer": "adam", "init": "ones", "weight_decay": 0.1, "mode": "fan_out"}, "--weight-decay 0"),
        ({**DENSE, "arch": "VGG_Small", "optimizer": "adamw"}, "--weight-decay 0.1 --no-bn-decay"),
        ({**DENSE, "init": "kaiming_uniform"}, "--mode fan_out --nonlinearity tanh"),
        ({**BINARY, "last_layer_dense": True}, "--init ones"),
        (DENSE, "--warmup-length 3"),
        ({**DENSE, "arch": "CircuitMLP"}, "--bn-type AffineBatchNorm --no-bn-decay --bn-eps 0.1"),
        ({**DENSE, "arch": "cResNet20"}, "--last-layer-dense"),
        ({**SUBNET, "augmix": True}, "--first-layer-dense --last-layer-dense --workers 2"),
        ({**DENSE, "set": "CIFAR10"}, "--download"),
        ({**DENSE, "set": "CIFAR10"}, "--no-augment"),
        ({**DENSE, "set": "ImageNet", "arch": "ResNet18"}, "--workers 2"),
        ({**SUBNET, "init": "unsigned_constant"}, "--scale-fan"),
        ({**SUBNET, "trainer": "lottery"}, "--dense-epochs 3"),
        ({**SUBNET, "trainer": "ss"}, "--score-l1 1"),
        (GLOBAL, "--prune-rate-epoch 3"),
        (BINARY, "--initial-ones 0.1 --epsilon 0.5 --random-mag 1 --sweep-on 0:1:0.5 --sweep-every 3"),
        ({**DENSE, "first_layer_type": "BinaryConv", "trainer": "binary"}, "--initial-ones 0.1 --sweep-on none"),
        ({**BINARY, "epsilon": 0.5}, ""),
        ({**SUBNET, "first_layer_type": "GlobalSubnetConv", "prune_rate": 0.2}, "--prune-rate-epoch 3"),
        ({**GLOBAL, "prune_rate": 0.5, "epochs": 2}, ""),
        ({**GLOBAL, "prune_rate": 0.8, "epochs": 2}, ""),
        ({**GLOBAL, "epochs": 2, "prune_rate_epoch": 1}, ""),
        ({**DENSE, "conv_type": "SampleSubnetConv", "score_init_constant": 0.5}, ""),
        ({**SUBNET, "first_layer_type": "SampleSubnetConv", "score_init_constant": 0.5}, ""),
        ({**DENSE, "augmix": True, "jsd": True}, "--mixture-depth 2 --aug-severity 5"),
        ({**DENSE, "gaussian_aug": True, "jsd": True}, "--p-clean 0.5 --std-gauss 0.2"),
        ({**DENSE, "conv_type": "RGConv", "scale_fan": True}, "--prune-rate 0.5"),
        ({**DENSE, "weight_bits": 3, "shift_update": "crude", "freeze_sign": True, "shift_depth": 1}, ""),
        ({**DENSE, "conv_type": "ShiftQ"}, "--weight-bits 4 --rounding stochastic"),
        ({**DENSE, "conv_type": "ShiftQ"}, "--rounding stochastic --shift-update crude"),
        ({**DENSE, "conv_type": "ShiftPS"}, "--activation-bits 8,8 --shift-depth 2 --shift-init weights --freeze-sign"),
        ({**DENSE, "first_layer_type": "ShiftQ"}, "--weight-bits 4 --shift-update ste"),
        ({**DENSE, "conv_type": "ShiftPS", "first_layer_type": "ShiftQ"}, "--weight-bits 4 --shift-update crude"),
        ({**SPARSE, "drop": "random", "grow": "random", "keep_share": 0.9}, "--live-share 0.3"),
        (SPARSE, "--keep-share 0.2 --live-share 0.2 --no-sparse-hold --update-interval 5 --progress-interval 7"),
        ({**SPARSE, "drop": "correlation", "grow": "none"}, "--update-interval 5 --progress-until 0.5"),
        ({**SPARSE, "prune_rate": 0.1, "keep_share": 0.2}, "--drop-fraction 0.5 --layer-density erdos_renyi_kernel"),
        ({**SPARSE, "prune_rate": 0.1, "drop": "magnitude", "grow": "none"}, "--density-schedule cubic"),
        ({**SPARSE, "first_layer_dense": True}, "--density 0.2 --drop magnitude --grow hebbian --update-interval 9"),
    ],
)
def test_options_with_an_effect_and_unused_options_of_a_file_cause_no_warning(
    parse: Any, content: dict[str, object], words: str
) -> None:
    assert parse(content, *words.split()).warnings == ()


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ({**DENSE, "gaussian_aug": True}, "gaussian_aug: true {} p_clean < 1 (at 1 no image gets noise)"),
        ({**DENSE, "prune_rate": 0.5}, PRUNE_RATE.replace("'", "")),
    ],
)
def test_gaussian_aug_and_prune_rate_without_effect_in_a_file_cause_a_warning(
    parse: Any, content: dict[str, object], warning: str
) -> None:
    assert parse(content).warnings == (warning.format("in c.yml has no effect without"),)


@pytest.mark.parametrize("rate", [None, -1])
def test_rgconv_without_a_prune_rate_keeps_every_weight(parse: Any, rate: float | None) -> None:
    options = parse({**DENSE, "conv_type": "RGConv", "prune_rate": rate})
    assert (options.constraint.prune_rate, options.constraint.density, options.warnings) == (None, 1.0, ())


@pytest.mark.parametrize("rate", [None, -1, 0, 0.3])
def test_samplesubnetconv_ignores_prune_rate(parse: Any, rate: float | None) -> None:
    assert parse({**DENSE, "conv_type": "SampleSubnetConv", "prune_rate": rate}).constraint.prune_rate is None


RENAMED = [
    # (options of BIPROP, the same options here)
    ({"trainer": "anomaly"}, {"trainer": "default", "detect_anomaly": True}),
    ({"trainer": "parallel"}, {"trainer": "default", "detect_anomaly": False}),
    ({"set": "CIFAR10_gaussian", "p_clean": 0.5}, {"set": "CIFAR10", "gaussian_aug": True, "augmix": False}),
    ({"set": "CIFAR10_augmix"}, {"set": "CIFAR10", "augmix": True, "gaussian_aug": False}),
]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize(("theirs", "ours"), RENAMED)
def test_renamed_values_of_biprop_are_translated_with_a_warning(
    parse: Any, theirs: dict[str, object], ours: dict[str, object], typed: bool
) -> None:
    words = [f"--{name.replace('_', '-')}={text}" for name, text in theirs.items()] if typed else []
    options = parse(DENSE if typed else {**DENSE, **theirs}, *words)
    assert {name: options.flat()[name] for name in ours} == ours
    (name, old), *_ = theirs.items()
    (warning,) = options.warnings
    assert warning.startswith(f"{name}: {old} {'on the command line' if typed else 'in c.yml'} is read as {name}: ")
    assert args.from_flat(options.flat()).flat() == options.flat() and not args.from_flat(options.flat()).warnings


def test_every_renamed_value_is_tested() -> None:
    assert {next(iter(theirs.items())) for theirs, _ in RENAMED} == args.RENAMED.keys()
