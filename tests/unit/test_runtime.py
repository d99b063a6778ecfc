"""Device, precision, random number generators, and the settings made before torch is loaded."""

import random

import numpy as np
import pytest
import torch

from utils import process_setup, processor, random_state
from utils.distributed import runtime
from utils.errors import UsageError


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def test_precision_auto_is_bf16_where_the_hardware_has_it(monkeypatch):
    x86 = (
        ("flags", "avx512f avx512_bf16", "bf16"),
        ("flags", "avx512f amx_bf16", "bf16"),
        ("flags", "avx512f", "fp32"),
    )
    for field, flags, expected in (*x86, ("Features", "asimd bf16", "bf16"), ("Features", "asimd", "fp32")):
        text = f"processor\t: 0\n{field}\t\t: fpu {flags}\n\nprocessor\t: 1\n"
        monkeypatch.setattr(processor.Path, "read_text", lambda self, encoding, text=text: text)
        assert runtime.choose("cpu", "auto", None, deterministic=False).precision_name == expected
        assert runtime.choose("cpu", "fp32", None, deterministic=False).dtype == torch.float32
        assert runtime.choose("cpu", "bf16", None, deterministic=False).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [("cuda", None, "device: cuda is not available"), ("auto", (3,), "multigpu: 3, but this machine has no GPU")],
)
def test_a_missing_device_is_refused(monkeypatch, device, gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message):
        runtime.choose(device, "auto", gpus, deterministic=False)


def test_autocast_is_enabled_only_for_bf16():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with runtime.choose("cpu", precision, None, deterministic=False).precision():
            assert layer(x).dtype == dtype


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_choosing_a_runtime_always_disables_tf32(precision):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    runtime.choose("cpu", precision, None, deterministic=False).at("bf16")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_every_generator_resumes_from_its_stored_state(tmp_path):
    def draw():
        return random.random(), float(np.random.rand()), np.random.randn(), random.gauss(0, 1), torch.rand(3).tolist()

    random_state.seed_everything(5)
    draw()
    torch.save(random_state.rng_state(), tmp_path / "rng.pt")
    expected = [draw(), draw()]
    random_state.set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw(), draw()] == expected
    random_state.seed_everything(5)
    first = draw()
    random_state.seed_everything(5)
    assert draw() == first


def test_deterministic_selects_deterministic_kernels():
    runtime.choose("cpu", "fp32", None, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()


def test_tuning_sets_numpys_kernels_on_zen4_only(monkeypatch):
    monkeypatch.delenv("NPY_DISABLE_CPU_FEATURES", raising=False)
    for family, model, expected in (("25", "17", True), ("26", "2", False), ("25", "1", False)):
        text = f"vendor_id\t: AuthenticAMD\ncpu family\t: {family}\nmodel\t\t: {model}\n\nvendor_id: x\n"
        monkeypatch.setattr(processor.Path, "read_text", lambda self, encoding, text=text: text)
        assert process_setup._is_zen4() is expected
    monkeypatch.setattr(processor.Path, "read_text", lambda self, encoding: "processor: 0")
    assert process_setup._is_zen4() is False
    monkeypatch.setattr(process_setup, "_is_zen4", lambda: True)
    process_setup.tune()
    assert "X86_V4" in process_setup.os.environ["NPY_DISABLE_CPU_FEATURES"]
