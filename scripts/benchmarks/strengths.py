"""What `bench.py --strengths` lets run against each other: a training step of one sparse layer, and what counting its
connections' strengths takes, which is done on every UPDATE_INTERVAL-th step. 64 → 64 channels, 3×3, 16×16, float32."""

from typing import Any

import torch
from torch import Tensor, nn

from args import FIELDS
from models.constraints import constrain
from models.constraints.hebbian_stats import coactivation, correlation
from scripts.benchmarks.contenders import RATE, Work, timed
from trainers.optimizers import make_optimizer
from utils.distributed.runtime import Runtime

CHANNELS, SIDE, BATCH = 64, 16, 128
UPDATE_INTERVAL: int = FIELDS["update_interval"].default
FACTS = {"channels": CHANNELS, "side": SIDE, "batch": BATCH, "update_interval": UPDATE_INTERVAL}
TARGET = 5.0  # per cent of a step


def works(runtime: Runtime, channels: int = CHANNELS, side: int = SIDE, batch: int = BATCH) -> dict[str, Work]:
    """The contenders by name: samplers of the seconds that one takes."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    model = constrain(nn.Sequential(layer), "SparseConv", density=0.1)
    sparse: Any = model.get_submodule("0")
    runtime.put(model)
    optimizer = make_optimizer("sgd", [{"params": [*model.parameters()]}], lr=RATE)
    x = torch.randn(batch, channels, side, side).relu().to(runtime.device, memory_format=torch.channels_last)
    y = model(x).detach()
    moved = x.clone().requires_grad_()

    def step() -> None:
        out: Tensor = model(moved)
        optimizer.zero_grad()
        torch.autograd.backward(out, torch.ones_like(out))
        optimizer.step()

    jobs = {
        "step": step,
        "coactivation": lambda: coactivation(sparse, x, y),
        "correlation": lambda: correlation(sparse, x, y),
    }
    return {name: timed(job, wait=runtime.wait) for name, job in jobs.items()}


def table(short: dict[str, dict[str, float]]) -> str:
    """One line a contender: ms, and for strengths their share of a training step."""
    lines = []
    for name, s in short.items():
        share = 100 * s["median"] / short["step"]["median"] / UPDATE_INTERVAL
        told = "" if name == "step" else f"  {share:.1f} % of a step, counted every {UPDATE_INTERVAL}"
        lines.append(f"{name:>12}  {1e3 * s['median']:.1f} ms (IQR {1e3 * s['iqr']:.1f}, n {s['n']}){told}")
    return "\n".join([*lines, f"target for co-activation: {TARGET:g} %"])
