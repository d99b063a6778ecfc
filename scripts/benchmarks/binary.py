"""`bench.py --binary`: training steps of the weight-invariant binary network, of its authors' code and a dense network.

784-4000-4000-4000-10, batch 200, float32; ours also in bfloat16 if the device has it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from data import Split, spec
from data.device_batches import DeviceBatches
from models.constraints.apply import constrain
from models.constraints.attachment import weight_layers
from models.initial import initialise
from scripts.benchmarks.contenders import RATE, STEPS, our_samplers
from trainers.loop import TrainingSetup
from trainers.methods.base import Method
from trainers.methods.binary import Binary
from trainers.methods.default import Default
from trainers.optimizers import make_optimizer
from utils.distributed.runtime import Runtime, has_bf16
from utils.timing import Sampler, timed

WIDTH, BATCH = 4000, 200
TARGET = 5.0  # time of the authors' step over ours
ONES = (0.0016, 0.0016, 0.0016, 0.012)  # fraction of ones per layer after ten epochs on MNIST at width 1000
CONDITIONS = {"width": WIDTH, "batch": BATCH, "ones": ONES}
NORM = {"eps": 1e-4, "momentum": 0.15}
SPEC = spec("MNIST", "", pixels="binary")


class Source(nn.Module):
    """Network of the authors' notebook (arXiv 1909.00052), with the layer and the norm that its forward never uses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [(784, width), (width, width), (width, width), (width, 10), (width, width)]
        self.layers = nn.ModuleList([nn.Linear(ins, outs, bias=False) for ins, outs in sizes])
        self.norms = nn.ModuleList([nn.BatchNorm1d(outs, **NORM) for _, outs in sizes])  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers[:4], self.norms[:4], strict=True):
            x = norm(torch.tanh(layer(x)))
        return F.log_softmax(x, dim=1)


class SourceStep:
    """Training step of the authors' notebook (arXiv 1909.00052).

    The step replaces the weights by binarised copies, computes the gradients, restores the real weights, and applies
    Adam and a clamp to one tensor after the other.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.model = Source(width).to(device)
        self.weights: list[nn.Parameter] = [layer.weight for layer in self.model.layers]  # type: ignore[misc]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        kept = [weight.data.clone() for weight in self.weights]
        for weight in self.weights:
            weight.data = torch.where(weight.data.abs() >= 0.5, 1.0, 0.0).to(weight.dtype)
        F.nll_loss(self.model(images), labels).backward()
        for weight, real in zip(self.weights, kept, strict=True):
            weight.data.copy_(real)
        self.optimizer.step()
        for weight in self.weights:
            weight.data.clamp_(0, 1)


def draw_ones(weights: Sequence[Tensor]) -> None:
    """Fill the weights with random zeros and ones. ONES has the fraction of ones per layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight, fraction in zip(weights, [*ONES, ONES[1]], strict=False):
            weight.copy_(torch.empty(weight.shape).bernoulli_(fraction, generator=generator))


def loop_parts(conv_type: str, width: int, batch: int, runtime: Runtime) -> TrainingSetup:
    """Return this program's training setup for the network with layers of `conv_type`, on random images."""
    model = models.build("CircuitMLP", num_classes=10, in_shape=SPEC.in_shape, hidden=(width,) * 3)
    initialise(model, "standard", bn_eps=NORM["eps"], bn_momentum=NORM["momentum"])
    constrain(model, conv_type)
    method: Method = Default()
    if conv_type == "BinaryConv":
        method = Binary(epsilon=1.0, random_mag=0.0, sweep_on="none", sweep_every=1)
    method.prepare(model)
    if conv_type == "BinaryConv":
        draw_ones([layer.weight for layer in weight_layers(model).values()])
    runtime.put(model)
    random, images = np.random.default_rng(0), batch * STEPS
    split = Split(random.integers(0, 256, (images, 28, 28, 1), np.uint8), random.integers(0, 10, images))
    batches = partial(DeviceBatches, split, SPEC, device=runtime.device, batch_size=batch, seed=0, limit=STEPS)
    optimizer = make_optimizer("adam", method.parameter_groups(model), lr=RATE)
    here = (runtime, batches(train=True), batches(train=False))
    return TrainingSetup(model, method, optimizer, *here, learning_rate=lambda _epoch: RATE)


def samplers(runtime: Runtime, width: int = WIDTH, batch: int = BATCH) -> dict[str, Sampler]:
    """Return functions that time a training step, by contender: source, ours and dense."""
    source = SourceStep(width, runtime.device)
    draw_ones(source.weights)
    images, labels = torch.rand(batch, 784).ge(0.5).float(), torch.randint(0, 10, (batch,))
    images, labels = images.to(runtime.device), labels.to(runtime.device)
    loops = {"ours": ("BinaryConv", runtime), "dense": ("DenseConv", runtime)}
    if has_bf16(runtime.device):
        loops["ours, bf16"] = ("BinaryConv", replace(runtime, dtype=torch.bfloat16))
    ours = {name: our_samplers(loop_parts(kind, width, batch, here))[0] for name, (kind, here) in loops.items()}
    return {"source": timed(lambda: source(images, labels), wait=runtime.wait), **ours}


def table(summaries: dict[str, dict[str, float]]) -> str:
    """Return one line per contender: ms per step, and the ratio to this program's step."""
    lines = []
    for name, s in summaries.items():
        step = f"{1e3 * s['median']:.0f} ms per step (min {1e3 * s['min']:.0f}, IQR {1e3 * s['iqr']:.0f}, n {s['n']})"
        lines.append(f"{name:>10}  {step}  {s['median'] / summaries['ours']['median']:.2f}x ours")
    target = f"target for the source: {TARGET:g}x"
    if fast := summaries.get("ours, bf16"):
        target += f"; to ours in bf16 the ratio is {summaries['source']['median'] / fast['median']:.2f}x"
    return "\n".join([*lines, target])
