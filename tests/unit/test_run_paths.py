"""Kinds of paths to a trained network: a run directory, a checkpoint in a run directory, or any other file."""

import os
from pathlib import Path

import pytest

from utils.errors import UsageError
from utils.run_paths import RunPaths, locate, locate_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    paths = RunPaths(tmp_path / "run")
    paths.checkpoints.mkdir(parents=True)
    paths.config.write_text("")
    paths.last.write_text("")
    return paths


def test_a_run_directory_is_located(run):
    located, checkpoint = locate(run.path)
    assert located.path == run.path and checkpoint is None and located.exists


def test_a_checkpoint_is_located_in_its_run(run):
    for path in (run.last, run.best, run.epoch_checkpoint(3)):  # even if the file does not exist
        located, checkpoint = locate_run(path)
        assert (located.path, checkpoint) == (run.path, path)


def test_a_file_outside_a_run_belongs_to_no_run(run, tmp_path):
    run.config.unlink()
    for path in (run.last, tmp_path / "model_best.pth", Path("gone.pt")):
        assert locate(path) == (None, path)


def test_a_directory_named_like_a_checkpoint_is_a_run(tmp_path):
    paths = RunPaths(tmp_path / "checkpoints" / "run.pt")
    paths.path.mkdir(parents=True)
    paths.config.write_text("")
    assert locate_run(paths.path)[0].path == paths.path


def test_a_directory_without_a_configuration_is_no_run(tmp_path):
    with pytest.raises(UsageError, match=f"resume: {tmp_path} is neither a run directory nor a checkpoint in one"):
        locate_run(tmp_path, "resume: ")
    with pytest.raises(UsageError, match="gone does not exist"):
        locate_run(tmp_path / "gone")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_holds_no_run(run):
    run.path.chmod(0)
    try:
        assert locate(run.last) == (None, run.last)
    finally:
        run.path.chmod(0o700)


@pytest.mark.parametrize(
    "name", ["last.pt", "best.pt", "initial.pt", "status.json", "config.yaml", "metrics.csv", "checkpoints"]
)
def test_file_names_of_a_run_are_defined_only_in_run_paths(name):
    """The texts of messages and of the help may name a file, so only quoted names count."""
    owners = {"utils/run_paths.py"}
    files = [path for folder in ("trainers", "models", "data", "utils") for path in (ROOT / folder).rglob("*.py")]
    spelled = {str(path.relative_to(ROOT)) for path in files if f'"{name}"' in path.read_text()}
    assert spelled == owners
