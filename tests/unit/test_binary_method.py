"""Trainer `binary`: value of the ones, clamping, batch statistics in evaluation, weight sweeps, tables, histograms."""

import copy

import numpy as np
import pytest
import torch

import models
from models.constraints import constrain, weight_layers
from tests.steps import OneBatch, make_method
from trainers.loop import Callbacks, TrainingSetup, evaluate, fit, train_one_epoch
from trainers.methods import binary, network_stats
from trainers.methods.network_stats import parameter_statistics
from trainers.optimizers import make_optimizer
from trainers.registry import TRAINERS
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime
from utils.steps import stepped

CPU = Runtime(torch.device("cpu"), torch.float32)


class Spec:
    in_shape, num_classes = (1, 5, 4), 3


class Batches(OneBatch):
    """`count` equal batches of 20 images."""

    def __init__(self, count):
        super().__init__(Spec, 20)
        self.count = count

    def __len__(self):
        return self.count

    def epoch(self, epoch, start=0):
        for _ in range(start, self.count):
            yield from super().epoch(epoch)


def network(**options):
    torch.manual_seed(1)
    model = models.build("CircuitMLP", num_classes=3, in_shape=Spec.in_shape, **{"hidden": (12,)} | options)
    return constrain(model, "BinaryConv", initial_ones=0.1, generator=torch.Generator().manual_seed(2))


def setup_of(method, model=None, count=3, lr=0.3):
    model = network() if model is None else model
    method.prepare(model)
    optimizer = make_optimizer("sgd", method.parameter_groups(model), lr=lr, momentum=0.0)
    return TrainingSetup(model, method, optimizer, CPU, Batches(count), Batches(1), learning_rate=lambda _epoch: lr)


def train(method, model=None, **settings):
    setup = setup_of(method, model, **settings)
    method.before_fit(setup.model, setup.optimizer, len(setup.train), 1, CPU)
    method.before_epoch(setup.model, 0)
    assert train_one_epoch(setup, TrainingState(), "here", Callbacks())
    return setup.model


class TableKeeper(Callbacks):
    """Callbacks that keep the tables of every epoch."""

    def __init__(self):
        self.by_epoch = {}

    def tables(self, epoch, tables):
        self.by_epoch[epoch] = tables

    def epoch_done(self, *_, **__): ...


# steps


def test_a_step_uses_the_gradient_at_the_binary_weight_and_clamps_to_0_and_1():
    model = network(bias=True)
    method = make_method("binary")
    setup = setup_of(method, model, count=1, lr=30)
    with torch.no_grad():
        for layer in weight_layers(model).values():
            layer.weight.uniform_()
            layer.bias.uniform_()
    plain = copy.deepcopy(model)
    for layer in weight_layers(plain).values():
        layer.forward = super(type(layer), layer).forward
        for parameter in (layer.weight, layer.bias):
            parameter.data = torch.where(parameter >= 0.5, 1.0, 0.0)
    images, labels = next(setup.train.epoch(0))
    method.loss(plain.train()(images), labels).backward()
    expected = {}
    for name, layer in weight_layers(plain).items():
        for of in ("weight", "bias"):
            real = model.get_submodule(name).get_parameter(of).detach().numpy()
            expected[f"{name}.{of}"] = np.clip(real - 30 * getattr(layer, of).grad.numpy(), 0, 1)
    train_one_epoch(setup, TrainingState(), "here", Callbacks())
    for name, values in expected.items():
        np.testing.assert_allclose(model.get_parameter(name).detach(), values, atol=2e-5)
    assert any(
        ((values == 0) | (values == 1)).any() and ((values > 0) & (values < 1)).any() for values in expected.values()
    )


def test_prepare_zeroes_biases():
    model = network(bias=True)
    assert any(layer.bias.count_nonzero() for layer in weight_layers(model).values())
    make_method("binary").prepare(model)
    assert not any(layer.bias.count_nonzero() for layer in weight_layers(model).values())


def test_a_network_without_binary_layers_is_refused():
    with pytest.raises(ValueError, match="no layer has them; use conv_type BinaryConv"):
        make_method("binary").prepare(models.build("CircuitMLP", num_classes=3, in_shape=Spec.in_shape))


# value of the ones


def values_of_ones(monkeypatch, count=200, **settings):
    """Return (value of the ones in every step, method, model) of a training of `count` steps."""
    seen = []
    method = make_method("binary", **settings)
    true = method.after_step
    monkeypatch.setattr(
        method,
        "after_step",
        lambda model, step: seen.append({c.constraint.on_value for c in method._layers}) or true(model, step),
    )
    torch.manual_seed(5)
    model = train(method, count=count, lr=1e-6)
    assert all(len(values) == 1 for values in seen)
    return [values.pop() for values in seen], method, model


def test_by_default_ones_are_1_and_no_random_number_is_drawn(monkeypatch):
    values, *_ = values_of_ones(monkeypatch, count=5)
    assert values == [1.0] * 5
    model, before = network(), torch.get_rng_state()
    make_method("binary").before_step(model, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_ones_exceed_1_by_up_to_random_mag_with_probability_epsilon(monkeypatch):
    values, *_ = values_of_ones(monkeypatch, epsilon=0.25, random_mag=2.0)
    raised = [value for value in values if value > 1]
    assert 30 < len(raised) < 70 and min(values) == 1.0
    assert 2.9 < max(raised) < 3 and 1.7 < sum(raised) / len(raised) < 2.3
    assert len(set(raised)) == len(raised)
    always, *_ = values_of_ones(monkeypatch, count=20, random_mag=0.5)
    assert min(always) > 1 and max(always) < 1.5


def test_ones_are_1_in_evaluation(monkeypatch):
    _, method, model = values_of_ones(monkeypatch, count=1, random_mag=2.0)
    assert method._layers[0].constraint.on_value > 1
    jittered = evaluate(model, Batches(1), method, CPU)
    assert {layer.constraint.on_value for layer in method._layers} == {1.0}
    assert jittered == evaluate(model, Batches(1), make_method("binary"), CPU)


# evaluation


@pytest.mark.parametrize("arch", ["CircuitMLP", "Wide_VGG_Small_132"])
def test_batch_norms_evaluate_with_batch_statistics_and_keep_running_statistics(arch):
    options = {"hidden": (12,)} if arch == "CircuitMLP" else {"width_mult": 0.25}
    torch.manual_seed(0)
    model = models.build(arch, num_classes=3, in_shape=(1, 8, 8), **options)
    constrain(model, "BinaryConv", initial_ones=0.2)
    plain = copy.deepcopy(model).train()
    make_method("binary").prepare(model)
    x, before = torch.rand(6, 1, 8, 8), copy.deepcopy(model.state_dict())
    assert torch.equal(model.eval()(x), plain(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not torch.equal(model.eval()(x), plain.eval()(x))
    model.train()(x)
    plain.load_state_dict(before)
    plain.train()(x)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_batch_of_one_image_is_evaluated_with_running_statistics():
    model = network()
    plain = copy.deepcopy(model).eval()
    make_method("binary").prepare(model)
    x = torch.rand(1, *Spec.in_shape)
    assert torch.equal(model.eval()(x), plain(x))


# tables


@pytest.mark.parametrize("every, epochs, swept", [(2, 5, [2, 4, 5]), (2, 4, [2, 4]), (10, 3, [3]), (1, 2, [1, 2])])
def test_weight_sweeps_run_every_sweep_every_epochs_and_after_the_last_epoch(every, epochs, swept):
    callbacks = TableKeeper()
    fit(setup_of(make_method("binary", sweep_on="0.5:2:0.5", sweep_every=every)), TrainingState(), epochs, callbacks)
    assert [epoch for epoch, tables in callbacks.by_epoch.items() if "weight_sweep" in tables] == swept
    assert [epoch for epoch, tables in callbacks.by_epoch.items() if "statistics" in tables] == [epochs]
    assert {*callbacks.by_epoch[epochs]} == {*TRAINERS["binary"].tables}
    table = callbacks.by_epoch[epochs]["weight_sweep"]
    assert [row["on"] for row in table.rows] == [0.5, 1.0, 1.5, 2.0]
    assert {*table.rows[0]} == {"on", "acc@1", "loss"} and (table.x, table.y) == ("on", "acc@1")


def test_sweep_on_none_gives_no_weight_sweep():
    callbacks = TableKeeper()
    fit(setup_of(make_method("binary", sweep_on="none")), TrainingState(), 1, callbacks)
    assert [*callbacks.by_epoch[1]] == ["statistics"]


def test_the_statistics_table_has_a_row_per_parameter():
    model = network(norm="soft_invert", bias=True)
    with torch.no_grad():
        model.linear[0].weight.fill_(0.0)[0, :4] = torch.tensor([0.5, 1.0, 0.25, 0.25])
        model.linear[2].v.fill_(0.75)
        model.linear[5].v.fill_(1.5)
    rows = {row["tensor"]: row for row in parameter_statistics(model)}
    assert [*rows] == [name for name, _ in model.named_parameters()]
    first, values = rows["linear.0.weight"], model.linear[0].weight.detach().double().numpy()
    assert (first["units"], first["ones"], first["share_of_ones"], first["v"]) == (240, 2, 2 / 240, "")
    assert (first["mean"], first["std"]) == pytest.approx((values.mean(), values.std()))
    assert (rows["linear.2.v"]["v"], rows["linear.5.v"]["v"]) == (0.75, 1.0)


# histograms


def test_histograms_sample_activations_and_norms_every_sampling_interval(monkeypatch):
    monkeypatch.setattr(binary, "SAMPLING_INTERVAL", 2)
    monkeypatch.setattr(network_stats, "SAMPLE_SIZE", 50)
    method, model = make_method("binary", histograms=True), network(norm="soft_invert")
    setup = setup_of(method, model)
    method.before_epoch(model, 4)
    assert train_one_epoch(setup, TrainingState(), "here", Callbacks())
    samples = method.histograms()
    names = [f"linear.{i}.output" for i in (1, 2, 4, 5)]  # tanh and norm of two blocks
    assert [name for name, _ in samples] == [f"{name}/batch_{batch}" for batch in (0, 2) for name in names]
    assert [len(values) for _, values in samples[:4]] == [
        48,
        48,
        30,
        30,
    ]  # every fifth of 240 values, every second of 60
    assert not any(module._forward_hooks for module in model.modules())
    hidden = {name.removesuffix("/batch_0"): values for name, values in samples[:4]}
    v = model.linear[2].v
    assert hidden["linear.1.output"].abs().max() <= 1 and not hidden["linear.1.output"].requires_grad
    assert v.shape == () and hidden["linear.2.output"].isfinite().all()
    method.before_epoch(model, 5)
    assert method.histograms() == []


def test_without_histograms_nothing_is_sampled():
    method = make_method("binary")
    train(method)
    assert method.histograms() == []


# parsing of sweep_on


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("none", []),
        ("1:1:1", [1.0]),
        ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("0:1:0.4", [0, 0.4, 0.8]),
        ("0.5:0.8:0.1", [0.5, 0.6, 0.7, 0.8]),
    ],
)
def test_stepped_returns_the_numbers_from_start_to_stop(text, numbers):
    assert stepped(text) == numbers


def test_the_default_sweep_has_41_values():
    assert stepped("0:4:0.1") == [i / 10 for i in range(41)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "0:4",
        "0:4:0",
        "0:4:-1",
        "4:0:0.1",
        "-1:4:1",
        "0:inf:1",
        "nan:1:1",
        "0:4:1e-9",
        "a:b:c",
        "0:1:nan",
        "0:1:inf",
    ],
)
def test_stepped_refuses_an_invalid_range(text):
    with pytest.raises(ValueError):
        stepped(text)
