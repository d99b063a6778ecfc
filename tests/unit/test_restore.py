"""Resumption refuses a checkpoint with any missing or wrong entry in one line."""

import copy
import math
from pathlib import Path

import pytest
import torch

import args
from trainers import resume
from trainers.build import assemble, build, load_set
from trainers.restore import restore
from utils.config.yaml_loader import load_yaml
from utils.distributed.runtime import ALONE
from utils.errors import UsageError
from utils.records import checkpoints

PATH = Path("last.pt")
LARGE = 10**9
KINDS = {
    "ticket": {"optimizer": "adam", "lr": 0.01},
    "sgd": {},
    "sparse": {"conv_type": "SparseConv", "freeze_weights": None, "progress_interval": 5, "update_interval": 1},
}
# Any value of these entries is accepted. The learning rate is set in every epoch. The options supply a missing setting.
# A CPU ignores the generator of a GPU. Event files have separate tests. Times may have any value. Resumption does not
# read the descriptions of the network and of the data set.
FREE = {"events", "network", "data", "cuda", "seconds", "train_seconds", "train_images", "loss"}


def others(value):
    """Yield invalid replacements of `value`."""
    yield from (None, "text", -1, LARGE, [], {"a": {}}, torch.full((3,), 2.0), torch.tensor(1j))
    if isinstance(value, torch.Tensor) and value.ndim:
        yield value[..., :1].clone()
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        yield torch.full_like(value, math.nan)
    if isinstance(value, float):
        yield math.nan


def places(content, *above):
    """Yield the path of every entry in nested dictionaries and short lists."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield (*above, key)
        if not isinstance(value, list) or len(value) < 9:
            yield from places(value, *above, key)


def changed(content, place, *new):
    """Return a copy with another value at `place`, or without the entry."""
    made = copy.copy(content)
    if len(place) > 1:
        made[place[0]] = changed(content[place[0]], place[1:], *new)
    elif new:
        made[place[0]] = new[0]
    else:
        del made[place[0]]
    return made


def is_free(place, new, value):
    names = {*map(str, place)}
    number = [*map(type, new)] == [int]
    if (new and new[0] is value) or (new == ({"a": {}},) and place[0] == "method"):
        return True
    if place[0] == "options" and len(place) > 1:  # a missing option has its default, as in any configuration
        return place[1] not in ("lr", "seed", "arch", "prune_rate", "conv_type", "epochs") or not new
    if place[:3] in [("rng", "numpy", 4), ("rng", "python", 2)]:  # the cached second Gaussian number of the generator
        return number
    same_count = number and place[0] == "state" and new[0] == LARGE and not names & {"acc@1", "acc@5", "epoch"}
    rate = "lr" in names and "param_groups" in names and number and new[0] == LARGE
    return bool(names & FREE) or (not new and "param_groups" in names) or same_count or rate


@pytest.fixture
def made(program, config, tmp_path):
    """Return a function that trains a run for an epoch and returns (options, parts to restore, checkpoint)."""

    def make(kind, **changes):
        path = config(**{"name": f"{kind}.yml", "epochs": 1} | changes)
        assert program("--config", path)[0] == 0
        options = args.parse(["--config", path])
        (last,) = tmp_path.glob(f"runs/{kind}/**/last.pt")
        theirs = args.from_flat(load_yaml(last.parents[1] / "config.yaml"))
        model, method = build(options)
        parts = assemble(options, ALONE, model, method, load_set(options))
        return theirs, parts, torch.load(last, weights_only=True)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_or_wrong_entry_is_refused_in_one_line(made, kind):
    theirs, parts, whole = made(kind, **KINDS[kind])

    def go_on(content):
        checkpoints.checked(content, PATH)
        resume.check_same_run(content, PATH, theirs)
        return restore(parts, content, PATH, best_epoch=None)

    wrong = []
    for place in places(whole):
        value = whole
        for key in place:
            value = value[key]
        for new in ((), *((other,) for other in others(value))):
            if is_free(place, new, value):
                continue
            try:
                go_on(changed(whole, place, *new))
            except UsageError as error:
                assert "last.pt is" in str(error) and len(str(error).splitlines()) == 1, error
            else:
                wrong.append((place, *new))
    assert not wrong, "\n".join(map(str, wrong))
    assert go_on(whole).epoch == whole["epoch"]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_lottery_run_resumes_after_its_weight_phase_and_after_its_score_phase(made, tmp_path, epochs):
    theirs, parts, _ = made("lottery", trainer="lottery", dense_epochs=1, epochs=2, save_every=1)
    (path,) = tmp_path.rglob(f"epoch_{epochs}.pt")
    whole = torch.load(path, weights_only=True)
    resume.check_same_run(whole, PATH, theirs)
    assert restore(parts, whole, PATH, best_epoch=None).epoch == epochs
    of_weights = {index for index, entry in whole["optimizer"]["state"].items() if entry}
    assert len(of_weights) == 3 * epochs


def test_more_epochs_than_planned_are_reported_and_fewer_refused(made):
    theirs, _, whole = made("sgd")
    assert resume.check_same_run(whole, PATH, theirs.replace(epochs=2)) == 1
    with pytest.raises(UsageError, match="its epoch, 9, is above its number of epochs, 1"):
        resume.check_same_run(whole | {"epoch": 9}, PATH, theirs)
    with pytest.raises(UsageError, match=r"epochs: 1 in the checkpoint, 0 in config\.yaml"):
        resume.check_same_run(whole, PATH, theirs.replace(epochs=0))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "radam", "adadelta"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_optimizer_is_restored(made, optimizer, momentum):
    theirs, parts, whole = made("all", optimizer=optimizer, momentum=momentum, lr=0.01)
    resume.check_same_run(whole, PATH, theirs)
    restore(parts, whole, PATH, best_epoch=None)
    back = parts.optimizer.state_dict()
    assert back["param_groups"] == whole["optimizer"]["param_groups"]
    assert back["state"].keys() == whole["optimizer"]["state"].keys()
    for index, entry in whole["optimizer"]["state"].items():
        assert entry.keys() == back["state"][index].keys()
        assert all(torch.equal(value, back["state"][index][name]) for name, value in entry.items())


def test_a_run_with_start_epoch_resumes_from_its_initial_checkpoint(made, tmp_path):
    theirs, parts, _ = made("later", epochs=3, start_epoch=2)
    (path,) = tmp_path.rglob("initial.pt")
    initial = torch.load(path, weights_only=True)
    assert resume.check_same_run(initial, PATH, theirs) == 3
    state = restore(parts, initial, PATH, best_epoch=None)
    assert (state.epoch, state.last, state.best) == (2, {}, {})
