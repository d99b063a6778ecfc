"""bench.py --strengths: the samplers run, and the table has their cost relative to a step."""

import json

import torch

from scripts import bench
from scripts.benchmarks import strengths
from utils.distributed.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_the_cost_is_relative_to_the_steps_of_an_interval():
    summary = {"step": (0.1, 0.01), "coactivation": (0.05, 0.02), "correlation": (0.4, 0.03)}
    short = {name: {"median": median, "iqr": iqr, "n": 3} for name, (median, iqr) in summary.items()}
    lines = strengths.table(short).splitlines()
    assert lines[0].split() == ["step", "100.0", "ms", "(IQR", "10.0,", "n", "3)"]
    assert lines[1].endswith("2.5 % of a step, computed every 20 steps") and lines[2].endswith(
        "20.0 % of a step, computed every 20 steps"
    )


def test_every_sampler_takes_time_and_only_a_step_changes_the_weights(monkeypatch):
    models = []
    whole = strengths.constrain
    monkeypatch.setattr(strengths, "constrain", lambda *a, **k: models.append(whole(*a, **k)) or models[0])
    works = strengths.samplers(CPU, channels=3, side=5, batch=2)
    before = models[0][0].weight.detach().clone()
    assert list(works) == ["step", "coactivation", "correlation"]
    assert works["coactivation"]() > 0 and works["correlation"]() > 0
    assert torch.equal(models[0][0].weight, before)
    assert works["step"]() > 0 and not torch.equal(models[0][0].weight, before)


def test_the_record_has_every_sample(monkeypatch, tmp_path, capsys):
    whole = strengths.samplers
    monkeypatch.setattr(strengths, "samplers", lambda here: whole(here, channels=3, side=5, batch=2))
    assert bench.main(["--strengths", "--repeat", "2", "--out", str(tmp_path / "bench.json")]) == 0
    assert "coactivation" in capsys.readouterr().out
    record = json.loads((tmp_path / "bench.json").read_text())["strengths"]
    assert {name: len(values) for name, values in record["samples"].items()} == dict.fromkeys(record["summary"], 2)
