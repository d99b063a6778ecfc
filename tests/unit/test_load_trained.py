"""`load_trained` loads the network of a run, a checkpoint or a file, with or without stored options."""

import shutil

import pytest
import torch

from args import parse
from tests.originals import original, write
from trainers.load_trained import load_trained
from utils.errors import UsageError
from utils.run_paths import RunPaths


@pytest.fixture
def run(program, config, tmp_path):
    """A finished run of two epochs."""
    assert program("--config", config(save_every=1))[0] == 0
    return RunPaths(tmp_path / "runs/ticket/prune-rate=0.5/ticket")


def outputs_equal(first, second):
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(first(images), second(images))


def state_of(path):
    return torch.load(path, weights_only=True)["model"]


def has_state(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def change(path, **changes):
    content = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in content.items() if value is not None}, path)


def test_a_run_directory_loads_its_newest_checkpoint(run):
    trained = load_trained(run.path)
    assert (trained.path, trained.epoch, trained.options.model.arch) == (run.last, 2, "FC")
    assert has_state(trained.model, state_of(run.last)) and not trained.model.training
    assert trained.report == "6 of 6 tensors match"


def test_best_loads_the_best_checkpoint(run):
    shutil.copy(run.initial, run.best)
    trained = load_trained(run.path, best=True)
    assert (trained.path, trained.epoch) == (run.best, 0) and has_state(trained.model, state_of(run.initial))


def test_best_needs_a_run_directory(run, tmp_path):
    for path in (run.last, tmp_path / "net.pth"):
        with pytest.raises(UsageError, match="is not a run directory; only a run directory has a best checkpoint"):
            load_trained(path, best=True)


def test_a_checkpoint_of_a_run_loads_by_its_path(run):
    trained = load_trained(str(run.epoch_checkpoint(1)))
    assert trained.epoch == 1 and has_state(trained.model, state_of(run.epoch_checkpoint(1)))


def test_a_checkpoint_loads_outside_its_run_directory(run, tmp_path):
    moved = tmp_path / "moved.pt"
    shutil.copy(run.last, moved)
    trained = load_trained(moved)
    assert trained.options.constraint.prune_rate == 0.5 and outputs_equal(trained.model, load_trained(run.path).model)


def test_a_file_of_biprop_loads_with_the_name_of_its_data_set(run, tmp_path):
    ours = load_trained(run.path).model
    path = write(original(ours, arch="FC", prune_rate=0.5), tmp_path / "model_best.pth")
    trained = load_trained(path, set="digits")
    assert trained.epoch == 7 and trained.options.constraint.conv_type == "SubnetConv"
    assert outputs_equal(trained.model, ours)
    with pytest.raises(UsageError, match="set: "):
        load_trained(path)


def test_options_of_another_run_are_refused(run):
    with pytest.raises(UsageError, match=r"prune_rate: 0\.3 in the run|prune_rate: 0\.5 in the run, 0\.3 now"):
        load_trained(run.path, prune_rate=0.3)


def test_checkpoints_describe_their_network_and_data_set(run):
    for path in (run.initial, run.last, run.best):
        content = torch.load(path, weights_only=True)
        assert content["network"] | {"name": "FC", "num_classes": 10, "in_shape": (1, 8, 8)} == content["network"]
        assert content["data"] == {
            "set": "digits",
            "classes": [*"0123456789"],
            "mean": [0.30588],
            "std": [0.37622],
            "binary": False,
            "image_size": [8, 8],
            "margin": None,
        }


def test_a_checkpoint_of_an_earlier_version_has_no_description_and_loads(run):
    change(run.last, network=None, data=None)
    assert has_state(load_trained(run.path).model, state_of(run.last))


@pytest.mark.parametrize(
    "entry", [{"network": {}}, {"data": 1}, {"data": {"set": "digits"}}, {"network": None}], ids=str
)
def test_a_damaged_description_is_refused_in_one_line(run, entry):
    change(run.last, **entry)
    with pytest.raises(
        UsageError, match=r"last\.pt is damaged: its entries network and data do not describe a network$"
    ):
        load_trained(run.path)


def test_an_image_folder_is_not_needed_to_load_its_network(program, config, tmp_path):
    from tests.folders import write_set

    folder = tmp_path / "images"
    write_set(folder)
    options = {"set": "ImageFolder", "data": str(folder), "image_size": 32, "arch": "Conv2", "epochs": 1, "workers": 0}
    code, _, err = program("--config", config("folder.yml", **options))
    assert code == 0, err
    run = RunPaths(next((tmp_path / "runs/folder").rglob("config.yaml")).parent)
    before = load_trained(run.path)
    shutil.rmtree(folder)
    trained = load_trained(run.path)
    assert trained.content["data"]["classes"] == ["ant", "bee", "cow"]
    assert trained.content["data"]["image_size"] == [32, 32] and trained.content["data"]["margin"] == 256 / 224
    assert has_state(trained.model, before.model.state_dict())
    assert parse(["--config", str(run.config)]).data.set == "ImageFolder"
