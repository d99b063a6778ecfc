"""`bench.py --strengths`: the cost of the connection strengths of one sparse layer, relative to its training step.

A run computes the strengths in every UPDATE_INTERVAL-th step. 64 → 64 channels, 3×3 kernel, 16×16 images, float32.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.apply import constrain
from models.constraints.hebbian_stats import coactivation, correlation
from scripts.benchmarks.contenders import RATE
from trainers.optimizers import make_optimizer
from utils.config.option_groups import ConstraintOptions
from utils.distributed.runtime import Runtime
from utils.timing import Sampler, timed

CHANNELS, SIDE, BATCH = 64, 16, 128
UPDATE_INTERVAL = ConstraintOptions.update_interval
CONDITIONS = {"channels": CHANNELS, "side": SIDE, "batch": BATCH, "update_interval": UPDATE_INTERVAL}
TARGET = 5.0  # % of a step


def samplers(runtime: Runtime, channels: int = CHANNELS, side: int = SIDE, batch: int = BATCH) -> dict[str, Sampler]:
    """Return functions that time a training step and the computation of the connection strengths, by name."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    model = constrain(nn.Sequential(layer), "SparseConv", density=0.1)
    sparse: Any = model.get_submodule("0")
    runtime.put(model)
    optimizer = make_optimizer("sgd", [{"params": [*model.parameters()]}], lr=RATE, momentum=0.9)
    x = torch.randn(batch, channels, side, side).relu().to(runtime.device, memory_format=torch.channels_last)
    y = model(x).detach()
    inputs = x.clone().requires_grad_()  # the backward pass computes the gradient of the inputs, as in a deep network

    def step() -> None:
        out: Tensor = model(inputs)
        optimizer.zero_grad()
        torch.autograd.backward(out, torch.ones_like(out))
        optimizer.step()

    jobs = {
        "step": step,
        "coactivation": lambda: coactivation(sparse, x, y),
        "correlation": lambda: correlation(sparse, x, y),
    }
    return {name: timed(job, wait=runtime.wait) for name, job in jobs.items()}


def table(summaries: dict[str, dict[str, float]]) -> str:
    """Return one line per sampler: its ms, and for connection strengths the cost in % of a training step."""
    lines = []
    for name, s in summaries.items():
        share = 100 * s["median"] / summaries["step"]["median"] / UPDATE_INTERVAL
        cost = "" if name == "step" else f"  {share:.1f} % of a step, computed every {UPDATE_INTERVAL} steps"
        lines.append(f"{name:>12}  {1e3 * s['median']:.1f} ms (IQR {1e3 * s['iqr']:.1f}, n {s['n']}){cost}")
    return "\n".join([*lines, f"target for co-activation: {TARGET:g} %"])
