"""Trainer `sparse`: counting of strengths, moves of connections and their optimizer state, resumption."""

import copy

import pytest
import torch
from torch import nn

from models.constraints import bake, constrain, constrained_layers, layer_counts
from models.constraints.connection_update import filter_counts, filter_shape, kept_per_layer
from models.constraints.hebbian_stats import coactivation, correlation
from models.constraints.sparse import SparseWeight
from models.constraints.topk_mask import kept_count
from tests.cases import SPARSE_RULES
from tests.rewiring import rewiring_rules
from tests.steps import make_method
from trainers.loop import TrainingSetup, fit
from trainers.methods.sparse import Sparse
from trainers.optimizers import make_optimizer
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
DENSITY = 0.3
STEPS = 6
CUBIC = {"density_schedule": "cubic"}


def network(density=1.0, seed=0):
    torch.manual_seed(seed)
    convs = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, groups=2)]
    net = nn.Sequential(*convs, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 5))
    return constrain(net, "SparseConv", density=density, generator=torch.Generator().manual_seed(seed))


class Batches:
    """Six random batches, the same in every epoch."""

    samples = 8 * STEPS

    def __len__(self):
        return STEPS

    def epoch(self, epoch, start=0):
        for number in range(start, STEPS):
            generator = torch.Generator().manual_seed(number)
            yield torch.randn(8, 2, 4, 4, generator=generator), torch.randint(0, 5, (8,), generator=generator)


class EpochObserver:
    """Callbacks that keep the result of `observe()` of every epoch, and ask to stop when `stop()` is true."""

    def __init__(self, observe=lambda: None, stop=lambda: False):
        self.observe, self.observed, self.stop_asked = observe, [], stop

    def save_due(self):
        return False

    def tables(self, epoch, tables): ...

    def epoch_done(self, state, train, held_out, rate, *, is_best):
        self.observed.append(self.observe())

    def stopped(self, state): ...


class ObservedSparse(Sparse):
    """Method that calls `look(method, when, step)` before, within and after a step (within: "trained")."""

    look = staticmethod(lambda method, when, step: None)

    def before_step(self, model, step):
        super().before_step(model, step)
        self.look(self, "before", step)

    def after_step(self, model, step):
        self.look(self, "trained", step)
        super().after_step(model, step)
        self.look(self, "after", step)


def setup_of(net, kind=Sparse, optimizer="sgd", weight_decay=1e-2, **rules):
    method = make_method(kind, weight_decay=weight_decay, **rules)
    method.prepare(net)
    made_optimizer = make_optimizer(optimizer, method.parameter_groups(net), lr=0.05, momentum=0.9)
    CPU.put(net)  # channels_last, as in every run
    return TrainingSetup(net, method, made_optimizer, CPU, Batches(), Batches(), learning_rate=lambda _: 0.05)


def run(net, epochs=2, look=None, state=None, **rules):
    kind = type("Looking", (ObservedSparse,), {"look": staticmethod(look)}) if look else Sparse
    setup = setup_of(net, kind, **rules)
    fit(setup, state or TrainingState(), epochs, EpochObserver())
    return setup


def layers(net):
    return constrained_layers(net).values()


# counting of strengths


def strengths_of(method):
    return {name: value.clone() for name, value in method._strengths.sums.items()}


@pytest.mark.parametrize(("drop", "strength"), [("hebbian", coactivation), ("correlation", correlation)])
def test_strengths_are_summed_every_update_interval_and_cleared_when_connections_move(drop, strength):
    net, found = network(), []

    def look(method, when, step):
        if when == "before":
            found.append((step, copy.deepcopy(net)))
        elif when == "trained":
            found[-1] = (*found[-1], strengths_of(method))
        elif step == STEPS - 1:
            assert not method._strengths.sums

    run(net, 2, look, drop=drop, update_interval=4)
    assert [step for step, *_ in found] == [*range(STEPS)] * 2
    expected = {}
    for step, before, after in found:
        if step == 0:
            expected = {}
        if step % 4 == 0:
            x, _ = next(Batches().epoch(0, step))
            for name, child in before.named_children():
                y = child(x)
                if type(child).__name__.startswith("Constrained"):
                    expected[name] = expected.get(name, 0) + strength(child, x, y.clone())
                x = y
        assert after.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=0 if drop == "hebbian" else 1e-6)


def test_layers_have_hooks_in_counted_training_steps_only():
    net, hooked = network(), []

    def look(method, when, step):
        assert when != "after" or not any(layer._forward_hooks for layer in layers(net))
        hooked.append(step) if when == "before" and all(layer._forward_hooks for layer in layers(net)) else None

    run(net, 1, look, update_interval=4)
    assert hooked == [0, 4]
    hooked.clear()
    run(network(DENSITY), 1, look, prune_rate=DENSITY, drop="magnitude", grow="gradient", progress_interval=2)
    assert hooked == []  # these rules read no strengths


def test_no_strengths_are_counted_after_the_last_move():
    counted = []

    def look(method, when, step):
        counted.append(bool(method._strengths._hooks)) if when == "before" else None

    run(network(DENSITY), 2, look, prune_rate=DENSITY, progress_interval=2, update_interval=1, progress_until=0.5)
    assert counted == [True] * STEPS + [False] * STEPS


@pytest.mark.parametrize("drop", ["hebbian", "correlation"])
def test_a_run_that_starts_between_two_moves_counts_its_first_step(drop):
    """With --start-epoch 1 six steps are done. Connections move after four more, none of which is a twentieth step."""
    counted = []

    def look(method, when, step):
        counted.append(bool(method._strengths._hooks)) if when == "before" else None

    rules = {"drop": drop, "progress_interval": 10, "update_interval": 20, "progress_until": 1.0}
    run(network(DENSITY), 4, look, TrainingState(epoch=1), prune_rate=DENSITY, **rules)
    assert [6 + step for step, was in enumerate(counted) if was] == [6, 10]


# times of rewiring


def moves(epochs, density, **rules):
    """Return the numbers of steps after which the masks change."""
    net, moved, masks, done = network(density or 1.0), [], [], []

    def look(method, when, step):
        now = [layer.constraint.mask.clone() for layer in layers(net)]
        if when == "after":
            done.append(step)
            if not all(map(torch.equal, now, masks)):
                moved.append(len(done))
        masks[:] = now

    run(net, epochs, look, prune_rate=density, **rules)
    return moved


def test_with_a_density_connections_move_every_progress_interval_until_three_quarters_of_the_run():
    assert moves(4, DENSITY, progress_interval=3, drop_fraction=0.9) == [3, 6, 9, 12, 15]  # at 18 the fraction is 0
    assert moves(4, DENSITY, progress_interval=5, drop_fraction=0.9, progress_until=0.5) == [5, 10]


def test_without_a_density_connections_move_at_the_end_of_every_epoch(capsys):
    assert moves(3, None, keep_share=0.3, live_share=0.6) == [6, 12, 18]
    assert moves(3, None, keep_share=0.3, live_share=0.6, progress_until=0.7) == [6, 12]
    assert capsys.readouterr().err == ""


def test_a_run_without_moves_causes_a_warning(capsys):
    assert moves(1, DENSITY) == []
    told = "no rewiring takes place: the first is due at step 100, the last at 4"
    assert f"{told}\n" in capsys.readouterr().err
    assert moves(1, 0.1, density_schedule="cubic") == []
    assert f"{told}; the density stays at 50 %\n" in capsys.readouterr().err


@pytest.mark.parametrize("grow", ["gradient", "random", "hebbian"])
def test_the_replaced_share_follows_rigls_cosine(grow):
    net, replaced, before = network(0.5), [], []

    def look(method, when, step):
        mask = net[5].constraint.mask
        if when == "after" and (mask != before[-1]).any():
            replaced.append(int((mask > before[-1]).sum()))
        before.append(mask.clone())

    run(net, 4, look, prune_rate=0.5, drop="magnitude", grow=grow, progress_interval=6, progress_until=1.0)
    most = [int(0.3 * share * 60) for share in (0.85355, 0.5, 0.146447)]  # ½(1 + cos(π t / T)) at t/T = ¼, ½, ¾
    assert all(n <= m for n, m in zip(replaced, most, strict=True)) and replaced[0] > replaced[-1]
    if grow == "random":
        assert replaced[0] >= most[0] / 4  # a dropped connection may grow again in the same move


# rules


@pytest.mark.parametrize(("drop", "grow", "density"), SPARSE_RULES)
def test_every_pair_of_rules_trains_and_keeps_its_number_of_connections(drop, grow, density):
    net = network(density or 1.0)
    run(net, 3, drop=drop, grow=grow, prune_rate=density, progress_interval=4, update_interval=2, progress_until=1.0)
    for layer in layers(net):
        assert layer.weight.isfinite().all() and not layer.weight[layer.constraint.mask == 0].any()
        rows, n = filter_shape(layer.weight)
        k1, k2 = filter_counts(n, 0.1, 0.15)
        if density is None and drop != "random":
            assert layer.constraint.kept == rows * (k1 if grow == "none" else k2)
    if density:
        assert sum(layer.constraint.kept for layer in layers(net)) == kept_count(300, density)


# densities


@pytest.mark.parametrize("spread", ["uniform", "erdos_renyi_kernel"])
@pytest.mark.parametrize(
    ("drop", "grow"), [("hebbian", "hebbian"), ("magnitude", "random"), ("correlation", "gradient")]
)
def test_a_constant_density_is_exact_in_every_step(spread, drop, grow):
    net = network(DENSITY)
    shapes = [layer.weight.shape for layer in layers(net)]
    expected = kept_per_layer(shapes, DENSITY, spread)
    seen = []

    def look(method, when, step):
        seen.append([count.kept for count in layer_counts(net)])
        assert all((layer.weight[layer.constraint.mask == 0] == 0).all() for layer in layers(net))

    rules = {"drop": drop, "grow": grow, "layer_density": spread, "progress_interval": 3}
    run(net, 2, look, prune_rate=DENSITY, **rules)
    assert all(kept == expected for kept in seen) and sum(expected) == kept_count(72 + 108 + 120, DENSITY)


@pytest.mark.parametrize("grow", ["none", "random"])
def test_a_cubic_density_falls_from_a_half_and_ends_exactly_at_the_final_density(grow):
    net, seen = network(0.1), []
    rules = {"drop": "magnitude", "grow": grow, "density_schedule": "cubic", "progress_interval": 3}
    setup = setup_of(net, prune_rate=0.1, **rules)
    callbacks = EpochObserver(lambda: sum(count.kept for count in layer_counts(net)))
    assert callbacks.observe() == 150
    fit(setup, TrainingState(), 4, callbacks)
    seen = callbacks.observed  # the last move is after 18 steps: 1/2, then 0.1 + 0.4 (1 − t/18)³
    assert seen == [pytest.approx(300 * (0.1 + 0.4 * (1 - t / 18) ** 3), abs=2) for t in (6, 12, 18, 18)]
    assert seen[2] == 30
    assert [setup.method.resets_best(epoch) for epoch in range(4)] == [False, False, True, False]


def test_best_is_reset_in_the_epoch_that_reaches_the_final_density():
    steady = {"prune_rate": DENSITY, "progress_interval": 5}
    free = {"sparse_hold": False, "progress_interval": 13}  # the network does not become sparser
    never = {"progress_interval": 13, "progress_until": 0.5}
    control = {"drop": "random", "grow": "random", "progress_interval": 13}
    late = [({"progress_interval": 13}, 2), (control, 2)]
    for rules, epoch in (({}, None), *late, (steady, None), (free, None), (control | free, None), (never, None)):
        setup = run(network(rules.get("prune_rate", 1.0)), 4, **rules)
        assert [e for e in range(4) if setup.method.resets_best(e)] == ([] if epoch is None else [epoch])


@pytest.mark.parametrize(
    ("rules", "note"),
    [
        ({}, "the density of SparseConv falls at the first rewiring"),
        ({"sparse_hold": False}, ""),
        ({"prune_rate": DENSITY}, ""),
        ({"prune_rate": 0.1, **CUBIC}, "the density of SparseConv falls to 10 %"),
    ],
)
def test_the_density_note_names_a_falling_density(rules, note):
    assert setup_of(network(rules.get("prune_rate", 1.0)), **rules).method.density_note() == note


def test_initial_weights_are_divided_by_the_root_of_the_density():
    dense, net = network(DENSITY), network(DENSITY)
    setup_of(net, prune_rate=DENSITY)
    for before, after in zip(layers(dense), layers(net), strict=True):
        scale = (before.weight.numel() / after.constraint.kept) ** 0.5
        torch.testing.assert_close(after.weight, before.weight * scale)
    setup_of(before := network())
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(before), layers(network()), strict=True))


# weights, masks and optimizer state


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "radam", "adadelta"])
@pytest.mark.parametrize("rules", [{}, {"drop": "magnitude", "grow": "gradient", "prune_rate": DENSITY}])
def test_dropped_connections_stay_zero_and_lose_their_optimizer_state(optimizer, rules):
    net, before, moved = network(rules.get("prune_rate", 1.0)), {}, []

    def look(method, when, step):
        for layer in layers(net):
            state = [v for v in method._optimizer.state[layer.weight].values() if v.shape == layer.weight.shape]
            assert state or (when == "before" and step == 0)
            dead = layer.constraint.mask == 0
            assert not layer.weight[dead].any()
            assert not any(value[dead].any() for value in state), "weight decay or momentum would move dropped weights"
            if when == "trained":
                assert dead.all() or all(value[~dead].any() for value in state)
                before[layer] = layer.weight.clone(), layer.constraint.mask.clone()
            if when == "after" and step in (2, 5):
                weight, mask = before[layer]
                new = (layer.constraint.mask > mask) | (layer.weight != weight)
                moved.append(bool(new.any()))
                assert not any(value[new].any() for value in state)

    run(net, 2, look, optimizer=optimizer, progress_interval=3, progress_until=1.0, drop_fraction=0.9, **rules)
    assert sum(moved) > 3


def test_without_hold_zeroed_weights_keep_training_with_their_optimizer_state():
    net, seen = network(), {}

    def look(method, when, step):
        state = method._optimizer.state[net[0].weight]
        if step == STEPS - 1:
            seen[when] = (net[0].weight.clone(), {key: v.clone() for key, v in state.items()})
        elif when == "trained" and "after" in seen:
            seen.setdefault("next", (net[0].weight.clone(), None))

    run(net, 2, look, sparse_hold=False)
    (weight, memory), (after, kept_memory) = seen["trained"], seen["after"]
    rows, n = filter_shape(weight)
    assert int(after.count_nonzero()) == rows * filter_counts(n, 0.1, 0.15)[1] and (weight != 0).all()
    assert all(torch.equal(memory[key], kept_memory[key]) for key in memory)
    assert (seen["next"][0] != 0).all() and all(count.kept == count.total for count in layer_counts(net))


def test_without_a_density_every_filter_keeps_its_strongest_connections():
    net, seen = network(), {}

    def look(method, when, step):
        if when == "trained" and step == STEPS - 1:
            seen["strengths"], seen["net"] = strengths_of(method), copy.deepcopy(net)

    run(net, 1, look, keep_share=0.2, live_share=0.4, update_interval=2)
    for (name, layer), before in zip(constrained_layers(net).items(), layers(seen["net"]), strict=True):
        rows, n = filter_shape(layer.weight)
        k1, k2 = filter_counts(n, 0.2, 0.4)
        order = seen["strengths"][name].reshape(rows, n).argsort(dim=1, descending=True, stable=True)
        old, new = (part.weight.detach().reshape(rows, n).gather(1, order) for part in (before, layer))
        assert torch.equal(new[:, :k1], old[:, :k1]) and not new[:, k2:].any()
        fresh = new[:, k1:k2]
        assert (fresh != old[:, k1:k2]).all() and fresh.abs().max() <= (6 / (k2 - k1)) ** 0.5
        assert layer.constraint.kept == rows * k2


@pytest.mark.parametrize("hold", [True, False])
def test_random_control_zeroes_all_but_the_live_share_and_redraws_kept_zeros(hold):
    net, moves = network(), []

    def look(method, when, step):
        if step == STEPS - 1:
            moves.append(torch.cat([layer.weight.detach().flatten() for layer in layers(net)]))

    run(net, 3, look, drop="random", grow="random", live_share=0.4, sparse_hold=hold)
    for before, after in zip(moves[1::3], moves[2::3], strict=True):
        lives = after != 0
        assert int(lives.sum()) == pytest.approx(120, abs=42)  # 300 weights, five standard deviations
        assert torch.equal(after[lives & (before != 0)], before[lives & (before != 0)])
        # At first, and without hold, no weight is 0.
        assert (lives & (before == 0)).any() == (hold and before is not moves[1])
    mask = torch.cat([layer.constraint.mask.flatten() for layer in layers(net)])
    assert torch.equal(mask > 0, moves[-1] != 0) if hold else mask.all()


def test_a_layer_emptied_by_the_random_control_has_connections_after_the_next_move():
    net, seen = network(), []
    rules = {"drop": "random", "grow": "random"}
    run(net, 3, lambda method, when, step: seen.append(net[5].constraint.kept), live_share=1e-9, **rules)
    assert seen[-1] == 0 and all(torch.isfinite(layer.weight).all() for layer in layers(net))
    weight, mask = net[5].weight, net[5].constraint.mask
    change = rewiring_rules(**rules).rewiring(weight, mask, None, None, target=0, fraction=0.0)
    net[5].constraint.rewire(weight, change, hold=True)
    assert net[5].constraint.kept > 0 and net[5].weight.count_nonzero() == net[5].constraint.kept


def test_rigl_grows_by_the_dense_gradient_of_the_last_batch():
    net, seen = network(DENSITY), {}

    def look(method, when, step):
        assert all(layer.constraint.records_gradient == (step % 3 == 2 and when != "after") for layer in layers(net))
        if step == 2:
            seen[when] = copy.deepcopy(net)

    run(net, 1, look, prune_rate=DENSITY, drop="magnitude", grow="gradient", progress_interval=3, progress_until=1.0)
    x, labels = next(Batches().epoch(0, 2))
    plain = bake(seen["before"])
    nn.functional.cross_entropy(plain(x), labels).backward()
    for name, layer in constrained_layers(seen["after"]).items():
        old, gradient = seen["trained"].get_submodule(name), plain.get_submodule(name).weight.grad
        grown = (layer.constraint.mask > old.constraint.mask).flatten()
        off = ((layer.constraint.mask == 0) & (old.constraint.mask == 0)).flatten()
        values = gradient.abs().reshape(-1)
        assert not grown.any() or values[grown].min() >= values[off].max() * (1 - 1e-4)
        assert not layer.weight.flatten()[grown].any() and layer.constraint.dense_gradient is None
    assert any(
        (a.constraint.mask != b.constraint.mask).any() for a, b in zip(layers(net), layers(seen["before"]), strict=True)
    )


def test_a_layer_has_a_dense_gradient_only_while_watched():
    layer = SparseWeight(torch.empty(3, 4), density=0.5, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 4, requires_grad=True)
    (layer(weight) * 2).sum().backward()
    assert layer.dense_gradient is None and torch.equal(weight.grad, 2 * layer.mask)
    layer.records_gradient = True
    (layer(weight) * 3).sum().backward()
    assert torch.equal(layer.dense_gradient, torch.full((3, 4), 3.0))
    with torch.no_grad():
        assert torch.equal(layer(weight), weight * layer.mask)


# resumption


@pytest.mark.parametrize("stop", range(1, 2 * STEPS, 2))
@pytest.mark.parametrize(
    "rules",
    [
        {"update_interval": 2},
        {"drop": "correlation", "grow": "random", "prune_rate": DENSITY, "progress_interval": 4, "update_interval": 2},
        {"drop": "random", "grow": "random", "progress_interval": 4},
        {"drop": "magnitude_per_sign", "grow": "random", "prune_rate": DENSITY, "progress_interval": 4},
        {"drop": "magnitude", "grow": "gradient", "progress_interval": 5, "prune_rate": 0.2, **CUBIC},
    ],
)
def test_a_run_stopped_between_any_two_batches_resumes_to_the_bit(rules, stop):
    whole = run(network(rules.get("prune_rate", 1.0)), 2, **rules)
    first = setup_of(network(rules.get("prune_rate", 1.0)), **rules)
    state = TrainingState()
    fit(first, state, 2, EpochObserver(stop=lambda: STEPS * state.epoch + state.step >= stop))
    assert STEPS * state.epoch + state.step == stop
    snapshot = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict(), first.method.state_dict()))
    random = torch.get_rng_state()
    second = setup_of(network(rules.get("prune_rate", 1.0), seed=7), **rules)
    for part, stored in zip((second.model, second.optimizer, second.method), snapshot, strict=True):
        part.load_state_dict(stored)
    torch.set_rng_state(random)
    fit(second, state, 2, EpochObserver())
    for (name, one), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_state_of_the_method_has_the_strengths_of_every_layer():
    setup, state = setup_of(network()), TrainingState()
    fit(setup, state, 1, EpochObserver(stop=lambda: state.step == 2))
    state = setup.method.state_dict()
    assert {*state["strengths"]} == {"0", "2", "5"} and state["strengths"]["0"].sum() > 0


def test_restored_strengths_are_on_the_device_of_the_network():
    """A checkpoint is read onto the CPU. The meta device stands for a GPU here."""
    setup = setup_of(network())
    stored = {"strengths": {"0": torch.ones(setup.model[0].weight.shape, dtype=torch.float64)}}
    for layer in layers(setup.model):
        layer.to("meta")
    setup.method.load_state_dict(stored)
    assert setup.method.state_dict()["strengths"]["0"].is_meta


def test_a_network_without_sparse_layers_is_refused():
    with pytest.raises(ValueError, match=r"no layer has a mask; use conv_type SparseConv"):
        make_method("sparse").prepare(nn.Sequential(nn.Linear(2, 2)))
