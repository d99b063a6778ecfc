"""A network above the free memory is refused before it is built. A default crop that makes it huge causes a warning."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import args
import data
import models
from trainers import network_memory
from trainers.build import build
from utils.errors import UsageError

GB = 1_000_000_000
MLP = {"set": "digits", "arch": "MLP", "seed": 1, "device": "cpu"}
FOLDER = replace(data.SETS["ImageFolder"], num_classes=2)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list with an entry per call of `models.build`: True if the network has storage. 10 GB are free."""
    built_with_storage, real = [], models.build

    def build_(**options: Any) -> torch.nn.Module:
        built_with_storage.append(not torch.empty(0).is_meta)
        return real(**options)

    monkeypatch.setattr(models, "build", build_)
    monkeypatch.setattr(network_memory, "free_bytes", lambda: 10.0 * GB)
    return built_with_storage


@pytest.mark.parametrize(
    ("values", "spec", "message"),
    [
        (
            {**MLP, "hidden": [10_000_000, 10_000_000]},
            None,
            "hidden: MLP on digits would have 100,000,740,000,000 weights, which need 1,200,008.9 GB of memory; "
            "10.0 GB are free on this machine; change hidden",
        ),
        (
            {**MLP, "set": "ImageFolder", "image_size": 4096, "hidden": [4000]},
            replace(FOLDER, in_shape=(3, 4096, 4096)),
            r"hidden: MLP on ImageFolder would have 201,326,600,000 weights, .* GB of memory; .* hidden or image_size",
        ),
        (
            {**MLP, "set": "CIFAR10", "arch": "Conv8Wide", "width_mult": 100},
            None,
            "width_mult: Conv8Wide on CIFAR10 would",
        ),
        (
            {**MLP, "arch": "Conv2", "set": "ImageFolder", "image_size": 4096},
            replace(FOLDER, in_shape=(3, 4096, 4096)),
            "image_size: Conv2 on ImageFolder would have",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_it_has_storage(
    counted: list[bool], values: dict[str, Any], spec: data.SetSpec | None, message: str
) -> None:
    with pytest.raises(UsageError, match=rf"\A{message}[^\n]*\Z"):
        build(args.from_flat(values), spec)
    assert counted == [False]


@pytest.mark.parametrize(
    ("more", "tensors"),
    [
        ({}, 3),
        ({"optimizer": "adam"}, 4),
        ({"evaluate": True, "pretrained": "a.pt"}, 1),
        ({"check": True}, 1),
        ({"conv_type": "SubnetConv", "prune_rate": 0.5, "freeze_weights": True}, 4),
        ({"conv_type": "SubnetConv", "prune_rate": 0.5}, 6),
        ({"conv_type": "ShiftPS"}, 6),
    ],
)
def test_weights_scores_gradients_and_optimizer_state_are_counted(
    counted: list[bool], monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], tensors: int
) -> None:
    options = args.from_flat({**MLP, "hidden": [100, 100], **more})
    weights = sum(p.numel() for p in build(args.from_flat({**MLP, "hidden": [100, 100]}))[0].parameters())
    monkeypatch.setattr(network_memory, "free_bytes", lambda: 4.0 * weights * tensors)
    build(options)
    monkeypatch.setattr(network_memory, "free_bytes", lambda: 4.0 * weights * tensors - 1)
    with pytest.raises(UsageError, match=f"would have {weights:,} weights"):
        build(options)


def test_gpu_memory_must_hold_the_whole_training(counted: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 2000))
    with pytest.raises(UsageError, match=r"0\.0 GB are free on this GPU"):
        build(args.from_flat({**MLP, "device": "auto"}))
    build(args.from_flat(MLP))


def test_a_network_on_the_meta_device_needs_no_memory(counted: list[bool]) -> None:
    with torch.device("meta"):
        network_memory.check(args.from_flat({**MLP, "hidden": [1_000_000, 1_000_000]}), data.SETS["digits"], {})
    assert counted == []


def test_the_check_changes_no_initial_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    options = args.from_flat({**MLP, "arch": "Conv2", "init": "standard"})
    checked = build(options)[0].state_dict()
    monkeypatch.setattr(network_memory, "check", lambda *_: None)
    plain = build(options)[0].state_dict()
    assert all(torch.equal(checked[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("arch", "size", "warning"),
    [
        ("Conv2", None, "cropped to 224x224; layer linear.0 alone has 205,520,896 weights; --image-size takes a sm"),
        ("Conv2", 224, ""),
        ("ResNet18", None, ""),
    ],
)
def test_a_default_crop_that_makes_a_layer_huge_causes_a_warning(
    counted: list[bool], capsys: pytest.CaptureFixture[str], arch: str, size: int | None, warning: str
) -> None:
    options = args.from_flat({"set": "ImageFolder", "arch": arch, "image_size": size})
    shapes = {"name": arch, "num_classes": 2, "in_shape": FOLDER.in_shape}
    network_memory.check(options, FOLDER, shapes)
    stderr = capsys.readouterr().err
    assert (warning in stderr and stderr.count("\n") == 1) if warning else stderr == ""


# free bytes


def test_the_address_space_limit_bounds_the_free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    without_limit = network_memory.free_bytes()
    assert 0 < without_limit < 1e15
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 50_000_000, used + 50_000_000))
    assert 0 < network_memory.free_bytes() <= 60_000_000


V2 = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 100\n"}
V1 = {
    "memory.limit_in_bytes": "1000\n",
    "memory.usage_in_bytes": "700\n",
    "memory.stat": "cache 5\ninactive_file 100\n",
}


@pytest.mark.parametrize(
    ("line", "folder", "files", "expected"),
    [
        ("0::/job/step", "job", V2, [400]),
        ("0::/job/step", "job/step", V2, [400]),
        ("0::/", "", V2, [400]),
        ("4:memory:/job", "memory/job", V1, [400]),
        ("4:cpu:/job", "memory/job", V1, []),
        ("0::/job", "job", V2 | {"memory.max": "max\n"}, []),
        ("0::/job", "other", V2, []),
    ],
)
def test_control_groups_bound_the_free_bytes_and_inactive_caches_count_as_free(
    tmp_path: Path, line: str, folder: str, files: dict[str, str], expected: list[float]
) -> None:
    (tmp_path / "cgroup").write_text(f"{line}\n2:pids:/elsewhere\n")
    (tmp_path / "sys" / folder).mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "sys" / folder / name).write_text(text)
    assert [*network_memory._control_groups(tmp_path / "cgroup", tmp_path / "sys")] == expected
