"""Trainer `binary`: jitter, clamping, batch statistics in evaluation, when it sweeps, what its tables and histograms
say."""

import copy

import numpy as np
import pytest
import torch

import models
from models.constraints import constrain, weight_layers
from tests.steps import OneBatch, SilentExit
from trainers import parameter_stats as looks
from trainers.loop import Parts, State, evaluate, fit, train_one_epoch
from trainers.methods import binary
from trainers.methods.binary import Binary
from trainers.optimizers import make_optimizer
from trainers.parameter_stats import statistics
from utils.config.fields import stepped
from utils.distributed.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)


class Spec:
    in_shape, num_classes = (1, 5, 4), 3


class Batches(OneBatch):
    """So many batches of 20 images, of an epoch those from `start` on."""

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


def parts(method, model=None, count=3, lr=0.3):
    model = network() if model is None else model
    method.prepare(model)
    optimizer = make_optimizer("sgd", method.parameter_groups(model), lr=lr, momentum=0.0)
    return Parts(model, method, optimizer, CPU, Batches(count), Batches(1), rate=lambda _epoch: lr)


def train(method, model=None, **settings):
    assembled = parts(method, model, **settings)
    method.begin(assembled.model, assembled.optimizer, len(assembled.train), 1, CPU)
    method.before_epoch(assembled.model, 0)
    assert train_one_epoch(assembled, State(), "here", SilentExit())
    return assembled.model


class Callbacks(SilentExit):
    """Remembers the tables of every epoch."""

    def __init__(self):
        self.seen = {}

    def tables(self, epoch, tables):
        self.seen[epoch] = tables

    def epoch_done(self, *_, **__): ...


# steps


def test_a_step_is_taken_at_the_binary_weight_and_leaves_weights_and_biases_in_0_to_1():
    model = network(bias=True)
    method = Binary()
    assembled = parts(method, model, count=1, lr=30)
    with torch.no_grad():
        for layer in weight_layers(model).values():
            layer.weight.uniform_()
            layer.bias.uniform_()
    plain = copy.deepcopy(model)
    for layer in weight_layers(plain).values():
        layer.forward = super(type(layer), layer).forward
        for parameter in (layer.weight, layer.bias):
            parameter.data = torch.where(parameter >= 0.5, 1.0, 0.0)
    images, labels = next(assembled.train.epoch(0))
    method.loss(plain.train()(images), labels).backward()
    expected = {}
    for name, layer in weight_layers(plain).items():
        for of in ("weight", "bias"):
            real = model.get_submodule(name).get_parameter(of).detach().numpy()
            expected[f"{name}.{of}"] = np.clip(real - 30 * getattr(layer, of).grad.numpy(), 0, 1)
    train_one_epoch(assembled, State(), "here", SilentExit())
    for name, values in expected.items():
        np.testing.assert_allclose(model.get_parameter(name).detach(), values, atol=2e-5)
    assert any(
        ((values == 0) | (values == 1)).any() and ((values > 0) & (values < 1)).any() for values in expected.values()
    )


def test_biases_begin_at_0():
    model = network(bias=True)
    assert any(layer.bias.count_nonzero() for layer in weight_layers(model).values())
    Binary().prepare(model)
    assert not any(layer.bias.count_nonzero() for layer in weight_layers(model).values())


def test_a_network_without_such_weights_is_refused():
    with pytest.raises(ValueError, match="conv_type BinaryConv gives them"):
        Binary().prepare(models.build("CircuitMLP", num_classes=3, in_shape=Spec.in_shape))


# jitter


def on_of_steps(monkeypatch, count=200, **settings):
    seen = []
    method = Binary(**settings)
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


def test_by_default_ones_are_1_and_nothing_is_drawn(monkeypatch):
    values, *_ = on_of_steps(monkeypatch, count=5)
    assert values == [1.0] * 5
    model, before = network(), torch.get_rng_state()
    Binary().before_step(model, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_with_probability_epsilon_the_ones_of_a_step_are_raised_by_up_to_random_mag(monkeypatch):
    values, *_ = on_of_steps(monkeypatch, epsilon=0.25, random_mag=2.0)
    raised = [value for value in values if value > 1]
    assert 30 < len(raised) < 70 and min(values) == 1.0
    assert 2.9 < max(raised) < 3 and 1.7 < sum(raised) / len(raised) < 2.3
    assert len(set(raised)) == len(raised)
    always, *_ = on_of_steps(monkeypatch, count=20, random_mag=0.5)
    assert min(always) > 1 and max(always) < 1.5


def test_an_evaluation_is_at_1(monkeypatch):
    _, method, model = on_of_steps(monkeypatch, count=1, random_mag=2.0)
    assert method._layers[0].constraint.on_value > 1
    jittered = evaluate(model, Batches(1), method, CPU)
    assert {layer.constraint.on_value for layer in method._layers} == {1.0}
    assert jittered == evaluate(model, Batches(1), Binary(), CPU)


# evaluation


@pytest.mark.parametrize("arch", ["CircuitMLP", "Wide_VGG_Small_132"])
def test_batch_norms_evaluate_with_the_statistics_of_the_batch_and_keep_the_running_ones(arch):
    options = {"hidden": (12,)} if arch == "CircuitMLP" else {"width_mult": 0.25}
    torch.manual_seed(0)
    model = models.build(arch, num_classes=3, in_shape=(1, 8, 8), **options)
    constrain(model, "BinaryConv", initial_ones=0.2)
    plain = copy.deepcopy(model).train()
    Binary().prepare(model)
    x, before = torch.rand(6, 1, 8, 8), copy.deepcopy(model.state_dict())
    assert torch.equal(model.eval()(x), plain(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not torch.equal(model.eval()(x), plain.eval()(x))
    model.train()(x)
    plain.load_state_dict(before)
    plain.train()(x)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_one_image_alone_is_evaluated_with_the_running_statistics():
    model = network()
    plain = copy.deepcopy(model).eval()
    Binary().prepare(model)
    x = torch.rand(1, *Spec.in_shape)
    assert torch.equal(model.eval()(x), plain(x))


# tables


@pytest.mark.parametrize("every, epochs, swept", [(2, 5, [2, 4, 5]), (2, 4, [2, 4]), (10, 3, [3]), (1, 2, [1, 2])])
def test_sweeps_every_so_many_epochs_and_in_the_end(every, epochs, swept):
    events = Callbacks()
    fit(parts(Binary(sweep_on="0.5:2:0.5", sweep_every=every)), State(), epochs, events)
    assert [epoch for epoch, tables in events.seen.items() if "weight_sweep" in tables] == swept
    assert [epoch for epoch, tables in events.seen.items() if "statistics" in tables] == [epochs]
    table = events.seen[epochs]["weight_sweep"]
    assert [row["on"] for row in table.rows] == [0.5, 1.0, 1.5, 2.0]
    assert {*table.rows[0]} == {"on", "acc@1", "loss"} and (table.x, table.y) == ("on", "acc@1")


def test_no_sweep_where_none_is_asked_for():
    events = Callbacks()
    fit(parts(Binary(sweep_on="none")), State(), 1, events)
    assert [*events.seen[1]] == ["statistics"]


def test_statistics_of_every_parameter():
    model = network(norm="soft_invert", bias=True)
    with torch.no_grad():
        model.linear[0].weight.fill_(0.0)[0, :4] = torch.tensor([0.5, 1.0, 0.25, 0.25])
        model.linear[2].v.fill_(0.75)
        model.linear[5].v.fill_(1.5)
    rows = {row["tensor"]: row for row in statistics(model)}
    assert [*rows] == [name for name, _ in model.named_parameters()]
    first, values = rows["linear.0.weight"], model.linear[0].weight.detach().double().numpy()
    assert (first["units"], first["ones"], first["share_of_ones"], first["v"]) == (240, 2, 2 / 240, "")
    assert (first["mean"], first["std"]) == pytest.approx((values.mean(), values.std()))
    assert (rows["linear.2.v"]["v"], rows["linear.5.v"]["v"]) == (0.75, 1.0)


# histograms


def test_histograms_of_activations_and_norms_every_hundred_batches(monkeypatch):
    monkeypatch.setattr(binary, "EVERY", 2)
    monkeypatch.setattr(looks, "VALUES", 50)
    method, model = Binary(histograms=True), network(norm="soft_invert")
    assembled = parts(method, model)
    method.before_epoch(model, 4)
    assert train_one_epoch(assembled, State(), "here", SilentExit())
    seen = method.histograms()
    names = [f"linear.{i}.output" for i in (1, 2, 4, 5)]  # tanh and norm of two blocks
    assert [name for name, _ in seen] == [f"{name}/batch_{batch}" for batch in (0, 2) for name in names]
    assert [len(values) for _, values in seen[:4]] == [48, 48, 30, 30]  # of 240 every fifth, of 60 every second
    assert not any(module._forward_hooks for module in model.modules())
    hidden = {name.removesuffix("/batch_0"): values for name, values in seen[:4]}
    v = model.linear[2].v
    assert hidden["linear.1.output"].abs().max() <= 1 and not hidden["linear.1.output"].requires_grad
    assert v.shape == () and hidden["linear.2.output"].isfinite().all()
    method.before_epoch(model, 5)
    assert method.histograms() == []


def test_nothing_is_gathered_where_no_histograms_are_asked_for():
    method = Binary()
    train(method)
    assert method.histograms() == []


# the words for a sweep


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
def test_stepped(text, numbers):
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
def test_what_is_no_sweep_is_refused(text):
    with pytest.raises(ValueError):
        stepped(text)
