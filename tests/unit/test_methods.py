"""Training methods of scores without a complete run (density schedule, best epoch, lottery, ss), and the losses."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from models.constraints import bake, constrain, constrained_layers, layer_counts
from tests.steps import make_method
from trainers import losses, schedules
from trainers.loop import Callbacks, TrainingSetup, evaluate, fit
from trainers.losses import cross_entropy, jensen_shannon
from trainers.methods.base import Method
from trainers.metrics import add_batch
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.registry import TRAINERS
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
# densities of epochs 0 to 10, measured on BIPROP
CURVE = [0.5, 0.4187, 0.3536, 0.3029, 0.2648, 0.2375, 0.2192, 0.2081, 0.2024, 0.2003, 0.2]


def network(conv_type="GlobalSubnetConv", density=0.2, seed=0, bias=True, dense=(), norm=True):
    torch.manual_seed(seed)
    norms = [nn.BatchNorm1d(12)] if norm else []
    net = nn.Sequential(nn.Linear(6, 12, bias=bias), *norms, nn.Tanh(), nn.Linear(12, 5, bias=bias))
    return constrain(net, conv_type, density=density, dense=dense, generator=torch.Generator().manual_seed(seed))


class FixedBatches:
    """The same two random batches in every epoch."""

    samples = 16

    def __len__(self):
        return 2

    def epoch(self, epoch, start=0):
        for number in range(start, 2):
            generator = torch.Generator().manual_seed(number)
            yield torch.randn(8, 6, generator=generator), torch.randint(0, 5, (8,), generator=generator)


class EpochObserver(Callbacks):
    """Callbacks that keep the result of `observe()` and `is_best` of every epoch."""

    def __init__(self, observe=lambda: None):
        self.observe, self.observed, self.best = observe, [], []

    def tables(self, epoch, tables):
        assert tables == {}

    def epoch_done(self, state, train, held_out, rate, *, is_best):
        self.observed.append(self.observe())
        self.best.append(is_best)


def setup_of(net, method, optimizer="sgd", lr=0.1):
    method.prepare(net)
    made_optimizer = make_optimizer(optimizer, method.parameter_groups(net), lr=lr, momentum=0.9)
    return TrainingSetup(net, method, made_optimizer, CPU, FixedBatches(), FixedBatches(), learning_rate=lambda _: lr)


def density_of(net):
    counts = [c for c in layer_counts(net) if c.constraint != "dense"]
    return sum(c.kept for c in counts) / sum(c.total for c in counts)


# density schedule of GlobalSubnetConv


def test_densities_equal_the_curve_measured_on_biprop():
    assert [schedules.density(epoch, 0.2, 10) for epoch in range(11)] == pytest.approx(CURVE, abs=5e-5)
    assert schedules.density(10, 0.2, 10) == schedules.density(500, 0.2, 10) == 0.2


@pytest.mark.parametrize("final", [0.5, 0.500001, 0.8, 1.0])
def test_a_final_density_of_at_least_a_half_holds_from_the_start(final):
    assert [schedules.density(epoch, final, 10) for epoch in range(12)] == [final] * 12


@pytest.mark.parametrize("final", [0.01, 0.2, 0.49])
@pytest.mark.parametrize("length", [0, 1, 3, 10])
def test_densities_fall_from_a_half_to_the_final_density(final, length):
    curve = [schedules.density(epoch, final, length) for epoch in range(length + 2)]
    assert curve[length:] == [final, final]
    assert all(a > b for a, b in pairwise(curve[: length + 1]))
    assert length == 0 or curve[0] == 0.5


@pytest.mark.parametrize("trainer", ["prune_score", "lottery", "ss"])
def test_the_network_has_the_scheduled_density_in_every_epoch(trainer):
    net, own = network(norm=False), {"dense_epochs": 1} if trainer == "lottery" else {}
    setup = setup_of(net, make_method(trainer, prune_rate_epoch=10, **own))
    callbacks = EpochObserver(lambda: (density_of(net), setup.method.metrics(net)["train"]["kept"]))
    fit(setup, TrainingState(), 12, callbacks)
    expected = [*CURVE, 0.2]
    if trainer == "lottery":
        expected = [1.0, *CURVE]
    total = sum(c.total for c in layer_counts(net))
    for densities, density in zip(callbacks.observed, expected, strict=True):
        assert densities[0] == densities[1] == pytest.approx(density, abs=1 / total)
    assert [c.kept for c in layer_counts(net)] == [int(m.constraint.mask().sum()) for m in (net[0], net[2])]


def test_the_density_of_an_epoch_does_not_depend_on_earlier_epochs():
    net, method = network(), make_method("prune_score", prune_rate_epoch=10)
    method.prepare(net)
    for epoch in (3, 10, 0, 7):
        method.before_epoch(net, epoch)
        assert net[0].constraint.selection.density == pytest.approx(CURVE[epoch], abs=5e-5)


def test_layers_with_separate_selections_have_no_density_schedule():
    net, method = network("SubnetConv"), make_method("prune_score", prune_rate_epoch=10)
    method.prepare(net)
    method.before_epoch(net, 0)
    assert net[0].constraint.density == 0.2
    assert not any(method.resets_best(epoch) for epoch in range(20))


FALLS = "the density of GlobalSubnetConv falls from 50 % to this value in 4 epochs"


@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv"])
@pytest.mark.parametrize(
    ("trainer", "options", "density", "constant", "falling"),
    [  # density note of a constant density, and of the falling density of GlobalSubnetConv
        (
            "prune_score",
            {"prune_rate_epoch": 4},
            0.2,
            "",
            FALLS,
        ),
        ("ss", {"prune_rate_epoch": 0}, 0.2, "", ""),
        ("ss", {"prune_rate_epoch": 4}, 0.5, "", ""),
        (
            "lottery",
            {"dense_epochs": 3, "prune_rate_epoch": 4},
            0.2,
            "all weights are kept in the first 3 epochs",
            f"all weights are kept in the first 3 epochs; then {FALLS}",
        ),
    ],
)
def test_the_density_note_names_dense_and_falling_epochs(conv_type, trainer, options, density, constant, falling):
    method = make_method(trainer, **options)
    method.prepare(network(conv_type, density))
    assert method.density_note() == (falling if conv_type == "GlobalSubnetConv" else constant)


@pytest.mark.parametrize("trainer", ["prune_score", "lottery", "ss", "binary"])
def test_options_of_a_method_are_required_arguments(trainer):
    with pytest.raises(TypeError, match="required keyword-only argument"):
        TRAINERS[trainer].load()()


# reset of the best epoch


def resets(method, net, epochs=20):
    method.prepare(net)
    return [epoch for epoch in range(epochs) if method.resets_best(epoch)]


def test_best_is_reset_in_the_first_epoch_of_the_final_density():
    assert resets(Method(), network()) == []
    assert resets(make_method("prune_score", prune_rate_epoch=10), network()) == [10]
    assert resets(make_method("prune_score", prune_rate_epoch=0), network()) == []
    assert resets(make_method("prune_score", prune_rate_epoch=10), network(density=0.5)) == []
    assert resets(make_method("prune_score", prune_rate_epoch=10), network("SubnetConv")) == []
    assert resets(make_method("ss", prune_rate_epoch=4), network()) == [4]
    assert resets(make_method("lottery", prune_rate_epoch=10, dense_epochs=6), network()) == [16]
    assert resets(make_method("lottery", prune_rate_epoch=2, dense_epochs=6), network()) == [8]
    assert resets(make_method("lottery", prune_rate_epoch=10, dense_epochs=6), network("SubnetConv")) == [6]


def test_a_reset_discards_even_a_better_earlier_epoch():
    net = network()
    setup = setup_of(net, make_method("prune_score", prune_rate_epoch=2), lr=1e-9)
    state, callbacks = TrainingState(), EpochObserver()
    state.best, state.best_train = {"acc@1": 200.0, "epoch": 0}, {"acc@1": 200.0}
    fit(setup, state, 2, callbacks)
    assert state.best["acc@1"] == state.best_train["acc@1"] == 200 and callbacks.best == [False, False]
    fit(setup, state, 4, callbacks)
    assert callbacks.best[2] and state.best["epoch"] == 3 and state.best_train["acc@1"] <= 100


# lottery


def snapshot(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv", "SampleSubnetConv"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_lottery_trains_all_weights_first_and_then_only_scores(conv_type, frozen, optimizer):
    net = network(conv_type, dense=("3",), bias=True)
    if frozen:
        freeze_weights(net, learn_batchnorm=True)
    setup = setup_of(net, make_method("lottery", dense_epochs=2, weight_decay=1e-2), optimizer)
    states = [snapshot(net)]
    callbacks = EpochObserver(lambda: states.append(snapshot(net)))
    fit(setup, TrainingState(), 4, callbacks)
    scores = [name for name in states[0] if "scores" in name]
    weights = ["0.weight", "0.bias", "3.weight", "3.bias"]
    for epoch, (before, after) in enumerate(pairwise(states)):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {*weights, *scores} & moved == ({*weights} if epoch < 2 else {*scores}), epoch
        assert {"1.weight", "1.bias"} <= moved


def test_the_dense_phase_equals_training_of_the_plain_network():
    net = network("SubnetConv", density=0.1)
    plain = network("DenseConv")
    fit(setup_of(net, make_method("lottery", dense_epochs=3, weight_decay=1e-2)), TrainingState(), 2, EpochObserver())
    fit(setup_of(plain, Method(weight_decay=1e-2)), TrainingState(), 2, EpochObserver())
    x = torch.randn(4, 6)
    assert torch.equal(net.eval()(x), plain.eval()(x)) and torch.equal(net.train()(x), plain.train()(x))
    assert density_of(net) == 1.0
    assert torch.equal(bake(net.eval())(x), plain.eval()(x))


def test_the_ticket_after_the_dense_phase_consists_of_trained_weights():
    net = network("SubnetConv", density=0.25, norm=False)
    method = make_method("lottery", dense_epochs=1)
    fit(setup_of(net, method), TrainingState(), 1, EpochObserver())
    method.before_epoch(net, 1)
    weight, constraint = net[0].weight.detach(), net[0].constraint
    kept = constraint.mask() == 1
    assert int(kept.sum()) == constraint.kept == 18
    baked = bake(net)[0].weight
    torch.testing.assert_close(baked[kept].abs(), weight[kept].abs().mean().expand(18))
    assert torch.equal(baked[kept].sign(), weight[kept].sign())


def test_the_optimizer_of_a_lottery_owns_every_weight_and_score_once():
    net = network("SubnetConv")
    freeze_weights(net)
    method = make_method("lottery")
    method.prepare(net)
    owned = [id(p) for group in method.parameter_groups(net) for p in group["params"]]
    names = {name for name, p in net.named_parameters() if id(p) in owned}
    assert len(owned) == len(set(owned))
    assert names == {f"{i}.{what}" for i in (0, 3) for what in ("weight", "bias", "constraint.scores")}


def test_the_phase_of_a_lottery_depends_only_on_the_epoch():
    net, method = network("SubnetConv"), make_method("lottery", dense_epochs=2)
    method.prepare(net)
    for epoch, dense in ((0, True), (2, False), (1, True), (5, False)):
        method.before_epoch(net, epoch)
        assert net[0].constraint.bypassed == dense == net[0].weight.requires_grad == net[3].bias.requires_grad
        assert net[0].constraint.scores.requires_grad != dense


# ss


@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv", "SampleSubnetConv"])
def test_ss_penalises_scores_in_training_only(conv_type):
    net, method = network(conv_type), make_method("ss", score_l1=0.01)
    method.prepare(net)
    logits, labels = torch.randn(4, 5), torch.arange(4)
    plain = nn.functional.cross_entropy(logits, labels)
    scores = [layer.constraint.scores for layer in constrained_layers(net).values()]
    expected = plain.item() + 0.01 * sum((1 / (1 + np.exp(-s.detach().double().numpy()))).sum() for s in scores)
    loss = method.loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    for s in scores:
        p = torch.sigmoid(s.detach())
        torch.testing.assert_close(s.grad, 0.01 * p * (1 - p))
    with torch.no_grad():
        assert torch.equal(method.loss(logits, labels), plain)


def test_the_evaluation_loss_of_ss_is_cross_entropy():
    net, method = network("SubnetConv"), make_method("ss", score_l1=10.0)
    method.prepare(net)
    assert evaluate(net, FixedBatches(), method, CPU) == evaluate(net, FixedBatches(), Method(), CPU)


def test_a_larger_penalty_gives_lower_scores_and_a_penalty_of_0_equals_prune_score():
    def after(method):
        net = network("SubnetConv")
        fit(setup_of(net, method), TrainingState(), 5, EpochObserver())
        return torch.cat([layer.constraint.scores.flatten() for layer in constrained_layers(net).values()]).detach()

    means = [torch.sigmoid(after(make_method("ss", score_l1=weight))).mean() for weight in (0.0, 0.03, 0.3)]
    assert means[0] > means[1] > means[2]
    assert torch.equal(after(make_method("ss", score_l1=0.0)), after(make_method("prune_score")))


@pytest.mark.parametrize("trainer", ["prune_score", "lottery", "ss"])
@pytest.mark.parametrize("conv_type", ["DenseConv", "FixedSubnetConv", "RGConv"])
def test_trainers_of_scores_refuse_a_network_without_scores(trainer, conv_type):
    with pytest.raises(ValueError, match=r"trainer: .*no layer has scores; use conv_type SubnetConv"):
        make_method(trainer).prepare(network(conv_type))


# losses


def numpy_softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_jsd(logits, labels, smoothing):
    """Return cross-entropy of the clean view + 12 · mean over the three views of KL(p_i ‖ m), batch means of both."""
    views = np.split(numpy_softmax(logits), 3)
    rows = np.arange(len(labels))
    log = np.log(views[0])
    entropy = ((1 - smoothing) * -log[rows, labels] + smoothing * -log.mean(1)).mean()
    m = np.clip(sum(views) / 3, 1e-7, 1)
    divergences = [(np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(m)), 0)).sum(1).mean() for p in views]
    return entropy + 12 * np.mean(divergences)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_loss_of_three_views_is_cross_entropy_plus_12_jensen_shannon(smoothing, scale):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(12, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    expected = numpy_jsd(logits.numpy(), labels.numpy(), smoothing)
    assert Method(label_smoothing=smoothing).loss(logits, labels).item() == pytest.approx(expected, rel=1e-9)


def test_jensen_shannon_and_its_gradient_are_finite_for_probabilities_of_0_and_1():
    logits = torch.tensor([[500.0, 0, 0], [500.0, 0, 0], [500.0, 0, 0]], requires_grad=True)
    assert jensen_shannon(logits, 1).item() == pytest.approx(0, abs=1e-6)
    other = torch.tensor([[500.0, 0, 0], [0, 500.0, 0], [0, 0, 500.0]], requires_grad=True)
    assert jensen_shannon(other, 1).item() == pytest.approx(np.log(3), rel=1e-5)
    (jensen_shannon(logits, 1) + jensen_shannon(other, 1)).backward()
    assert logits.grad.isfinite().all() and other.grad.isfinite().all()


def test_jensen_shannon_passes_gradcheck_and_is_0_for_equal_views():
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: jensen_shannon(x, 2), logits)
    same = logits.detach()[:2].repeat(3, 1)
    assert jensen_shannon(same, 2).item() == pytest.approx(0, abs=1e-12)


def test_one_view_has_no_jensen_shannon_term(monkeypatch):
    monkeypatch.setattr(losses, "jensen_shannon", None)
    logits, labels = torch.randn(4, 5), torch.arange(4)
    assert torch.equal(
        cross_entropy(logits, labels, 0.1), nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    )


def test_label_smoothing_equals_biprops_formula():
    logits = torch.randn(4, 5, dtype=torch.float64)
    labels, log = torch.arange(4), torch.log_softmax(logits, 1)
    expected = 0.8 * -log[torch.arange(4), labels].mean() + 0.2 * -log.mean(1).mean()
    torch.testing.assert_close(Method(label_smoothing=0.2).loss(logits, labels), expected)


def test_accuracy_of_three_views_counts_the_clean_view():
    clean, wrong = torch.eye(7)[:4] * 5, -torch.eye(7)[:4] * 5
    sums = torch.zeros(4, dtype=torch.float64)
    add_batch(sums, torch.tensor(1.5), torch.cat([clean, wrong, wrong]), torch.arange(4))
    assert sums.tolist() == [6.0, 4.0, 4.0, 4.0]
    add_batch(sums, torch.tensor(1.5), torch.cat([wrong, clean, clean]), torch.arange(4))
    assert sums.tolist() == [12.0, 4.0, 4.0, 8.0]


def test_a_deep_copy_of_method_and_network_is_independent_of_the_original():
    net, method = network(), make_method("prune_score", prune_rate_epoch=10)
    method.prepare(net)
    other_net, other = copy.deepcopy((net, method))
    other.before_epoch(other_net, 0)
    assert other_net[0].constraint.selection.density == 0.5 and net[0].constraint.selection.density == 0.2


@pytest.mark.parametrize("trainer", ["prune_score", "ss"])
@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv", "SampleSubnetConv"])
def test_a_training_step_reads_no_value_from_the_device(conv_type, trainer):
    """The meta device has no values: .item(), int(tensor) and boolean indexing fail there."""
    net = network(conv_type).to("meta")
    method = make_method(trainer)
    method.prepare(net)
    method.before_epoch(net, 0)
    sums = torch.zeros(4, dtype=torch.float64, device="meta")
    for _ in range(2):
        logits, labels = net(torch.zeros(8, 6, device="meta")), torch.zeros(8, dtype=torch.long, device="meta")
        loss = method.loss(logits, labels)
        loss.backward()
        add_batch(sums, loss.detach(), logits.detach(), labels)
    assert all(layer.constraint.scores.grad is not None for layer in constrained_layers(net).values())
