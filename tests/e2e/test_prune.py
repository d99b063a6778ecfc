"""scripts/prune.py on real runs of a few epochs: files, correct numbers and refused input."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import main
from models.constraints import weight_layers
from models.layers import BatchNorm1d, use_batch_statistics
from models.pruning import channel_groups, compact, criteria
from scripts import prune
from scripts.parts import prune_levels, prune_report
from utils.distributed import runtime as runtimes
from utils.records import plots

ROOT = Path(__file__).parents[2]
DIGITS = {"set": "digits", "epochs": 3, "seed": 1, "precision": "fp32", "batch_size": 32, "optimizer": "adam"}
DIGITS |= {"lr": 0.003, "weight_decay": 0.0}
TICKET = {"conv_type": "GlobalSubnetConv", "prune_rate": 0.3, "prune_rate_epoch": 2, "freeze_weights": True}
TICKET |= {"optimizer": "sgd", "lr": 0.1}
RUNS = {
    "mlp": {"arch": "MLP", "hidden": [64, 48], "bias": True},
    "conv": {"arch": "Conv2", "epochs": 1},
    "norms": {"arch": "Wide_VGG_Small_132"},
    "residual": {"arch": "cResNet20", "low_data": 0.3, "epochs": 2},
    "ticket": {"arch": "FC", **TICKET},
}

FILES = {"mlp": "configs/prune/fashionmnist_mlp_pruning.yml"}  # the config whose published curves are drawn


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function from name to the directory of a finished run, which is trained on first use."""
    home, found = tmp_path_factory.mktemp("runs"), {}

    def of(name):
        if name not in found:
            config = home / FILES.get(name, f"{name}.yml")
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(yaml.safe_dump(DIGITS | RUNS[name]))
            words = ["--config", str(config), "--log-dir", str(home), "--results", str(home / "results.csv")]
            assert main.main(words) == 0
            (found[name],) = (home / config.stem).rglob("config.yaml")
        return found[name].parent

    return of


@pytest.fixture
def run(capsys):
    """Return a function that runs the script and returns its exit code, standard output and standard error."""

    def call(*argv):
        capsys.readouterr()
        code = prune.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def table(folder):
    with (folder / "pruning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["method"], float(row["percent"])): row for row in rows}


def trained(path):
    return prune_levels.opened(str(path), None, runtimes.choose("cpu", "fp32", None, deterministic=False))


def accuracy(model, of):
    hits = torch.cat([model(images).argmax(1) == labels for images, labels in of.test.epoch(0)])
    return 100 * hits.double().mean().item()


@pytest.mark.parametrize("name", RUNS)
def test_levels_are_written_as_a_table_and_two_charts_with_correct_numbers(runs, run, tmp_path, name):
    code, out, err = run(runs(name), "--percent", 0, 50, 95, "--repeat", 1, "--out", tmp_path)
    assert (code, err) == (0, "")
    rows, of = table(tmp_path), trained(runs(name))
    assert list(rows) == [("unpruned", 0), *((m, p) for m in ("weight", "unit") for p in (0, 50, 95))]
    before = rows["unpruned", 0]
    assert all(rows[m, 0][field] == before[field] for m in ("weight", "unit") for field in ("accuracy", "loss", "kept"))
    with (runs(name) / "metrics.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert float(before["accuracy"]) == pytest.approx(float(last["test/acc@1"]), abs=0.01)
    assert float(before["accuracy"]) == pytest.approx(accuracy(of.model, of))
    assert 0.25 < int(rows["unit", 50]["parameters"]) / int(before["parameters"]) < 0.6
    assert int(rows["unit", 95]["bytes"]) < int(rows["unit", 50]["bytes"]) < int(before["bytes"])
    assert rows["weight", 50]["parameters"] == before["parameters"] > rows["weight", 50]["kept"]
    assert all(float(row["ms_per_image"]) > 0 for row in rows.values())
    assert (tmp_path / "pruning.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "pruning.html").read_text()
    assert page.count('"dash":"dash"') == (2 if name in FILES else 0)
    assert "<script src=" not in page and "units" in page and len(page) > 1_000_000
    assert "accuracy" in out and sorted(p.name for p in tmp_path.iterdir()) == [
        f"pruning.{kind}" for kind in ("csv", "html", "png")
    ]


@pytest.mark.parametrize("name", RUNS)
def test_the_compact_network_is_smaller_and_equivalent(runs, run, tmp_path, name):
    file = tmp_path / "small.pt"
    code, out, err = run(runs(name), "--method", "unit", "--percent", 50, "--compact", file, "--repeat", 1)
    assert (code, err) == (0, "") and "largest difference" in out
    assert float(re.search(r"([\d.e+-]+) in float64", out)[1]) < 1e-9
    smaller, of = compact.load_compact(file), trained(runs(name))
    images, _ = next(iter(of.test.epoch(0)))
    groups = channel_groups.unit_groups(of.model, images)
    kept = criteria.keep_masks(criteria.unit_scores(criteria.hidden_weights(of.model, images), groups), 50)
    channel_groups.zero_units(of.model, groups, kept)
    with torch.no_grad():
        assert (smaller(images) - of.model(images)).abs().max() < 1e-4
    assert accuracy(smaller, of) == pytest.approx(accuracy(of.model, of))
    assert sum(p.numel() for p in smaller.parameters()) < 0.6 * sum(p.numel() for p in of.model.parameters())
    assert torch.load(file, weights_only=True)["percent"] == 50
    assert not (runs(name) / "pruning").exists()


def test_a_checkpoint_is_opened_at_the_density_of_its_epoch(runs, run, tmp_path):
    for name, kept in (("initial.pt", "50.00 %"), ("last.pt", "30.00 %")):  # the density schedule starts at one half
        file = runs("ticket") / "checkpoints" / name
        code, out, err = run(file, "--percent", 0, "--repeat", 1, "--out", tmp_path / name)
        assert (code, err) == (0, "") and out.startswith(str(file)) and f"weights kept ({kept})" in out.splitlines()[0]


def test_a_compact_network_with_other_logits_is_not_written(runs, run, tmp_path, monkeypatch):
    unpack = compact.unpack_network

    def broken(stored):
        model = unpack(stored)
        with torch.no_grad():
            model.linear[0].weight[0, 5] += 0.1
        return model

    monkeypatch.setattr(compact, "unpack_network", broken)
    file = tmp_path / "small.pt"
    code, _, err = run(runs("mlp"), "--method", "unit", "--percent", 50, "--compact", file, "--repeat", 1)
    assert code == 1 and "nothing is written" in err and err.count("\n") == 1 and not file.exists()


def test_a_network_that_rounds_its_inputs_is_pruned_but_not_written_compactly(runs, run, tmp_path, monkeypatch):
    def rounding(*words):
        of = trained_before(*words)
        of.model.linear[2].register_forward_pre_hook(lambda _layer, inputs: (inputs[0].mul(8).floor() / 8,))
        return of

    trained_before = prune_levels.opened
    monkeypatch.setattr(prune_levels, "opened", rounding)
    words = ("--method", "unit", "--percent", 50, "--repeat", 1)
    code, _, err = run(runs("mlp"), *words, "--compact", tmp_path / "small.pt")
    assert code == 2 and "round their inputs" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert run(runs("mlp"), *words, "--out", tmp_path)[0] == 0


def test_scope_criterion_and_seed_change_the_result(runs, run, tmp_path):
    found, random = {}, ("--criterion", "random")
    asked = [(), ("--scope", "global"), ("--criterion", "taylor"), random, random, (*random, "--seed", 1)]
    for number, words in enumerate(asked):
        code, _, err = run(runs("mlp"), "--percent", 70, "--repeat", 1, "--out", tmp_path / str(number), *words)
        assert (code, err) == (0, "")
        rows = table(tmp_path / str(number))
        found[number] = tuple(rows[method, 70]["loss"] for method in ("weight", "unit"))
    usual, together, taylor, random, again, other = found.values()
    assert random == again
    assert all(len(set(losses)) == 5 for losses in zip(usual, together, taylor, random, other, strict=True))


def test_fine_tuning_keeps_the_zeros_and_improves_the_accuracy(runs, run, tmp_path):
    run(runs("norms"), "--method", "unit", "--percent", 70, "--repeat", 1, "--out", tmp_path / "plain")
    more = ("--finetune", 2, "--compact", tmp_path / "small.pt")
    code, out, err = run(runs("norms"), "--method", "unit", "--percent", 70, "--repeat", 1, *more)
    assert (code, err) == (0, "")
    assert float(re.search(r"([\d.e+-]+) in float64", out)[1]) < 1e-9
    better = float(re.search(r"compact +70 % +([\d.]+) %", out)[1])
    assert better > float(table(tmp_path / "plain")["unit", 70]["accuracy"]) + 10


def test_pruned_weights_stay_zero_during_fine_tuning(runs):
    of = trained(runs("mlp"))
    pruner = prune_levels.weight_pruner(of, None)
    model, kept = prune_levels.pruned(of, pruner, 80, scope="layer", epochs=1)
    for (name, layer), mask in zip(list(weight_layers(model).items())[:-1], kept, strict=True):
        assert not layer.weight[~mask].any()
        assert not torch.equal(layer.weight, of.model.get_submodule(name).weight * mask)


def test_running_statistics_are_recomputed_on_request(runs):
    of = trained(runs("norms"))
    pruner = prune_levels.unit_pruner(of, None)
    plain, kept = prune_levels.pruned(of, pruner, 50, scope="layer")
    recomputed, _ = prune_levels.pruned(of, pruner, 50, scope="layer", bn_batches=4)
    assert not recomputed.training and torch.equal(plain.convs[0].weight, recomputed.convs[0].weight)
    before = [of.model.convs[1].running_mean * kept[0], recomputed.convs[1].running_mean]
    assert not torch.allclose(*before) and not recomputed.convs[1].running_mean[~kept[0]].any()
    batches = torch.cat([images for (images, _), _ in zip(of.train.epoch(0), range(4), strict=False)])
    with torch.no_grad():
        expected = recomputed.convs[0](batches).mean((0, 2, 3))
    assert torch.allclose(recomputed.convs[1].running_mean, expected, atol=1e-5)


def test_published_curves_are_dashed_for_their_configuration_only(runs, monkeypatch, tmp_path):
    rows = [
        prune_report.Row(m, p, 80.0 - p, 1.0, 9, 9, 36, 0.1) for m in ("unpruned", "weight", "unit") for p in (0, 50)
    ]
    config = "/any/where/configs/prune/fashionmnist_mlp_pruning.yml"
    for path in (config, "configs/prune/fashionmnist_mlp_pruning.yml"):
        lines = prune_report.curves(rows, path)
        assert [(line.label, line.style) for line in lines] == [
            ("weights", "C0-"),
            ("weights, published", "C0--"),
            ("units", "C1-"),
            ("units, published", "C1--"),
        ]
    assert lines[0].xs == [0, 50] and lines[0].ys == [80, 30]
    assert (lines[3].xs[2], lines[3].ys[2]) == (50, 87.96) and (lines[1].xs[-1], lines[1].ys[-1]) == (99, 8.28)
    for path in (None, "", "mlp_pruning.yml", "configs/prune/quick.yml"):
        assert [line.label for line in prune_report.curves(rows, path)] == ["weights", "units"]
    assert plots.line_page(tmp_path / "page.html", lines, "x", "y", "title")
    assert (tmp_path / "page.html").read_text().count('"dash":"dash"') == 2


# bad input

BAD = [  # (words after RUN, parts of the message)
    (("--percent", 101), ["--percent", "101", ">= 0 and <= 100"]),
    (("--percent", "half"), ["--percent", "half"]),
    (("--method", "neuron"), ["--method", "neuron", "weight", "unit"]),
    (("--criterion", "l7"), ["--criterion", "l7"]),
    (("--scope", "net"), ["--scope", "net"]),
    (("--data", "nowhere", "--set", "x"), ["unrecognized"]),
    (("--repeat", 0), ["--repeat"]),
    (("--finetune", -1), ["--finetune"]),
    (("--recalibrate-bn", 2), ["--recalibrate-bn", "no batch norm with running statistics"]),
    (("--compact", "out.pt", "--method", "weight", "--percent", 50), ["--compact", "--method unit"]),
    (("--compact", "out.pt"), ["--compact", "--method unit", "one --percent"]),
    (("--compact", "out.pt", "--method", "unit", "--percent", 10, 20), ["--compact", "one --percent"]),
    (("--compact", "gone/out.pt", "--method", "unit", "--percent", 50), ["--compact", "gone"]),
    (("--compact", ".", "--method", "unit", "--percent", 50), ["--compact", "is a directory"]),
    (("--compact", "a.pt", "--out", "b", "--method", "unit", "--percent", 50), ["--out", "--compact"]),
    (("--out", "/dev/null/x"), ["--out", "/dev/null"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=[" ".join(map(str, row[0])) for row in BAD])
def test_bad_input_is_reported_in_one_line_and_writes_nothing(runs, run, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(runs("mlp"), *words)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(part in err for part in parts), err
    assert "accuracy" not in out and not list(tmp_path.iterdir())


def test_norms_with_batch_statistics_have_no_running_statistics_to_recompute():
    norm = torch.nn.Sequential(BatchNorm1d(3))
    assert prune_levels.has_norms(norm)
    use_batch_statistics(norm)
    assert not prune_levels.has_norms(norm)


def test_a_path_that_is_not_a_run_is_refused(runs, run, tmp_path):
    empty, text, foreign, other = (tmp_path / name for name in ("empty", "text.pt", "foreign.pt", "no_checkpoint"))
    empty.mkdir()
    text.write_text("a network")
    torch.save({"state_dict": {"a": torch.rand(2)}, "arch": "MLP"}, foreign)
    shutil.copytree(runs("mlp"), other, ignore=shutil.ignore_patterns("*.pt"))
    cut = tmp_path / "cut.pt"
    cut.write_bytes((runs("mlp") / "checkpoints/last.pt").read_bytes()[:5000])
    for path, told in (
        (empty, f"{empty} is not a run: it has no readable checkpoint"),
        (text, f"{text} is not a checkpoint: torch.save did not write it"),
        (foreign, f"{foreign}: set: no value in the stored configuration"),
        (cut, f"{cut} cannot be read: damaged or cut short"),
        (tmp_path / "gone", f"{tmp_path / 'gone'} does not exist"),
        (other, "has no readable checkpoint"),
    ):
        code, out, err = run(path, "--repeat", 1)
        assert (code, out, err.count("\n")) == (2, "", 1) and told in err, err
    inside = other / "checkpoints" / "last.pt"
    torch.save({"state_dict": {"a": torch.rand(2)}}, inside)
    code, _, err = run(inside)
    assert code == 2 and "is not a checkpoint of this program" in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("--out", "report")])
def test_a_checkpoint_outside_of_a_run_is_pruned_like_the_one_in_the_run(runs, run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    alone = tmp_path / "alone.pt"
    shutil.copy(runs("mlp") / "checkpoints/last.pt", alone)
    levels = ("--method", "weight", "--percent", 50, "--repeat", 1)
    code, _, err = run(alone, *levels, *words)
    assert (code, err) == (0, "")
    assert run(runs("mlp"), *levels, "--out", tmp_path / "same")[0] == 0
    found = table(tmp_path / (words[1] if words else "pruning"))
    assert found["weight", 50]["accuracy"] == table(tmp_path / "same")["weight", 50]["accuracy"]


def test_a_folder_of_data_has_no_effect_on_a_bundled_set(runs, run, tmp_path):
    words = ("--percent", 50, "--repeat", 1, "--out", tmp_path / "out", "--data", tmp_path)
    code, _, err = run(runs("mlp"), *words)
    told = f"warning: --data: {tmp_path} has no effect, because the images of digits are bundled\n"
    assert (code, err) == (0, told)


def test_an_unwritable_report_folder_is_refused_before_the_network_is_read(runs, run, monkeypatch):
    monkeypatch.setattr(prune_levels, "load_trained", lambda *_, **_more: pytest.fail("the network was read"))
    code, out, err = run(runs("mlp"), "--percent", 50, "--out", "/proc/report")
    assert (code, out) == (2, "")
    assert err == "error: --out: /proc/report cannot be written; pass a folder with write permission\n"


def test_a_missing_data_set_is_reported_in_one_line(runs, run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(runs("conv"), copied)
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("set: digits", "set: MNIST"))
    code, out, err = run(copied, "--data", tmp_path / "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1), err


def test_an_existing_file_is_kept_without_force(runs, run, tmp_path):
    file = tmp_path / "small.pt"
    file.write_text("mine")
    words = (runs("mlp"), "--method", "unit", "--percent", 50, "--repeat", 1, "--compact", file)
    code, _, err = run(*words)
    assert code == 2 and "--force" in err and file.read_text() == "mine"
    assert run(*words, "--force")[0] == 0 and compact.load_compact(file)
    assert [p.name for p in tmp_path.iterdir()] == ["small.pt"]


@pytest.mark.parametrize(("library", "ending"), [("plotly", "html"), ("matplotlib", "png")])
def test_the_table_is_written_without_a_plotting_library(runs, run, tmp_path, monkeypatch, library, ending):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "matplotlib.style", raising=False)
    code, out, err = run(runs("mlp"), "--percent", 50, "--repeat", 1, "--out", tmp_path / "out")
    picture = tmp_path / f"out/pruning.{ending}"
    assert code == 0 and err.startswith(f"warning: cannot write {picture}: ") and err.count("\n") == 1
    there = {"pruning.csv", "pruning.html", "pruning.png"} - {picture.name}
    assert {path.name for path in picture.parent.iterdir()} == there and str(picture) not in out


def test_an_unfinished_run_is_pruned_with_a_warning(runs, run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(runs("mlp"), copied)
    (copied / "status.json").write_text('{"status": "stopped"}')
    code, _, err = run(copied, "--percent", 50, "--repeat", 1)
    assert code == 0 and re.fullmatch(
        r"warning: \S+ is not finished, says its status.json: \S+last.pt is from epoch 3 of 3\n", err
    )
    assert (copied / "pruning" / "pruning.csv").exists()


def test_a_full_disk_leaves_no_file(runs, run, tmp_path, monkeypatch):
    def full(content, target, **_):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    file = tmp_path / "small.pt"
    code, _, err = run(runs("mlp"), "--method", "unit", "--percent", 50, "--repeat", 1, "--compact", file)
    assert (code, err) == (1, f"failed: cannot write {file}: No space left on device\n")
    assert not list(tmp_path.iterdir())


def test_the_script_runs_as_a_file_from_any_folder(runs, tmp_path):
    command = [sys.executable, ROOT / "scripts/prune.py", runs("mlp"), "--percent", "30", "--repeat", "1"]
    done = subprocess.run([*command, "--out", "here"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "here" / "pruning.csv").exists()
    again = subprocess.run([*command, "--percent", "300"], cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (
        2,
        "error: argument --percent: '300' given, a float >= 0 and <= 100 expected; see --help\n",
    )


def test_an_existing_result_is_replaced_only_with_force(runs, run, tmp_path):
    words = ("--method", "unit", "--percent", 50, "--repeat", 1, "--out", tmp_path)
    assert run(runs("mlp"), *words)[0] == 0
    before = (tmp_path / "pruning.csv").read_text()
    code, _, err = run(runs("mlp"), "--percent", 20, *words[4:])
    told = f"error: {tmp_path / 'pruning.csv'} exists already; --force replaces it, --out DIR writes elsewhere\n"
    assert (code, err) == (2, told) and (tmp_path / "pruning.csv").read_text() == before
    assert run(runs("mlp"), "--percent", 20, *words[4:], "--force")[0] == 0
    assert (tmp_path / "pruning.csv").read_text() != before


def test_nan_logits_exceed_the_tolerated_difference():
    one, images = torch.nn.Identity(), [torch.ones(2, 3), torch.full((2, 3), torch.nan)]
    assert not prune_levels.largest_difference(one, torch.nn.Flatten(), images) <= 1e-6
    assert prune_levels.largest_difference(one, torch.nn.Flatten(), images[:1]) == 0
