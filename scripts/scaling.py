"""Write the tables of docs/scaling.md: measured efficiencies, message sizes, and predictions for many GPUs.

    python scripts/scaling.py [--check]
    python scripts/scaling.py --flops 8e13 --layer 1e-4 --between 5e10     prints the prediction for other machines

The measurements are scripts/records/bench_parallel_*.json (scripts/bench.py --parallel --out). Message sizes and
operations are counted on the networks. `Cluster` holds the assumptions about the machines.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=True)

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import models
from data import SETS
from models.constraints.attachment import weight_layers
from models.layers import SingleValueBatchNorm
from scripts import RECORDS, ROOT
from scripts.parts.pages import markdown, update
from utils.config.script_parser import Parser, command, count, limited
from utils.console import say
from utils.torch_compat import ddp_buckets

PAGE = ROOT / "docs" / "scaling.md"
GPUS = (8, 64, 512)
FP32, BF16 = 4, 2  # bytes per number in a message
NETS = {  # name -> (arch, data set, images per batch and in the test set, as in the configurations)
    "Conv4": ("Conv4", "CIFAR10", 128, 10_000),
    "ResNet-18": ("cResNet18", "CIFAR10", 256, 10_000),
    "ResNet-50": ("ResNet50", "ImageNet", 256, 50_000),
}

RATE, DURATION, NUMBER = limited(float, ">= 1 and <= 1e30"), limited(float, ">= 0 and <= 1e30"), count(1_000_000)


def _assumed(default: Any, kind: Callable[[str], Any], meaning: str) -> Any:
    """Declare a field of `Cluster`. `kind` is the argparse type of its option; a `RATE` is divided by."""
    return field(default=default, metadata={"help": meaning, "kind": kind})


@dataclass(frozen=True)
class Cluster:
    """Assumptions about a cluster of GPUs."""

    flops: float = _assumed(5e13, RATE, "operations per second that one GPU sustains in a training step")
    layer: float = _assumed(
        1.5e-4, DURATION, "seconds per layer and step for launches, mask and optimizer, whatever the batch"
    )
    node: int = _assumed(8, NUMBER, "GPUs per node")
    inside: float = _assumed(2e11, RATE, "bytes per second of each GPU within a node")
    between: float = _assumed(2.5e10, RATE, "bytes per second of a whole node to other nodes: 200 Gb/s")
    latency_inside: float = _assumed(5e-6, DURATION, "seconds per message within a node")
    latency_between: float = _assumed(1.5e-5, DURATION, "seconds per message between nodes")


@dataclass(frozen=True)
class Net:
    """Sizes of a network with SubnetConv layers that determine its speed in parallel training."""

    flops: float  # operations per step and image
    buckets: tuple[int, ...]  # scores in each of DDP's buckets, in the order of sending
    layers: int  # layers with scores
    norms: int  # batch norms without parameters
    batch: int  # images
    images: int  # in the test set

    @property
    def trained(self) -> int:
        """Number of trained scores."""
        return sum(self.buckets)


def count_sizes(name: str) -> Net:
    """Count the operations, layers and gradient buckets of the network `name` on a forward and backward pass."""
    arch, data_set, batch, images = NETS[name]
    spec = SETS[data_set]
    with torch.device("meta"):
        model = models.build(arch, num_classes=spec.num_classes, in_shape=spec.in_shape, bn_type="NonAffineBatchNorm")
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(model(torch.zeros(2, *spec.in_shape)), torch.zeros(2, dtype=torch.int64)).backward()
    weights = [layer.weight for layer in weight_layers(model).values()]
    norms = sum(isinstance(module, SingleValueBatchNorm) for module in model.modules())
    return Net(counter.get_total_flops() / 2, buckets(weights), len(weights), norms, batch, images)


def buckets(weights: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Return the number of gradients in each of DDP's buckets, in the order of sending.

    DDP fills a bucket of 1 MiB with the layers nearest to the input, which it sends last, and buckets of 25 MiB with
    the other layers.
    """
    scores = [torch.empty_like(weight, dtype=torch.float32) for weight in weights]
    return tuple(sum(scores[i].numel() for i in bucket) for bucket in reversed(ddp_buckets(scores, 25 << 20)))


def all_reduce_seconds(size: float, gpus: int, c: Cluster) -> float:
    """Predict the seconds of an all-reduce of `size` bytes, with a ring in each node and then trees between the nodes.

    2 (k − 1) (size / (k · inside) + latency) + 2 (m − 1)/m · size / between + 2 ⌈log₂ m⌉ latency, with k GPUs per node
    and m nodes.
    """
    here, nodes = min(gpus, c.node), max(1, gpus // c.node)
    ring = 2 * (here - 1) * (size / here / c.inside + c.latency_inside)
    return ring + 2 * (nodes - 1) / nodes * size / c.between + 2 * math.ceil(math.log2(nodes)) * c.latency_between


def compute_seconds(net: Net, images: float, c: Cluster) -> float:
    """Predict the seconds of a training step with `images` images on one GPU, without communication."""
    return net.layers * c.layer + images * net.flops / c.flops


def exposed_seconds(net: Net, images: float, gpus: int, c: Cluster, number: int) -> float:
    """Predict the seconds that a training step waits for communication, with `number` bytes per gradient.

    All-reduce overlaps with the backward pass, two thirds of the step, except for the last bucket. Then DDP sums one
    int32 per layer, which marks the scores that had a gradient.
    """
    sums = [all_reduce_seconds(number * bucket, gpus, c) for bucket in net.buckets]
    backward = compute_seconds(net, images, c) * 2 / 3
    return max(sum(sums) - backward, sums[-1]) + all_reduce_seconds(4 * net.layers, gpus, c)


def step_seconds(net: Net, images: float, gpus: int, c: Cluster, number: int = FP32) -> float:
    """Predict the seconds of a training step with `images` images per GPU and `number` bytes per gradient."""
    return compute_seconds(net, images, c) + exposed_seconds(net, images, gpus, c, number)


def strong_efficiency(net: Net, gpus: int, c: Cluster, number: int = FP32) -> float:
    """Predict the efficiency of strong scaling, where all GPUs share one batch."""
    return compute_seconds(net, net.batch, c) / (gpus * step_seconds(net, net.batch / gpus, gpus, c, number))


def weak_efficiency(net: Net, gpus: int, c: Cluster, number: int = FP32) -> float:
    """Predict the efficiency of weak scaling, where each GPU has a whole batch."""
    return compute_seconds(net, net.batch, c) / step_seconds(net, net.batch, gpus, c, number)


def largest_efficient(net: Net, c: Cluster, least: float = 0.5) -> int:
    """Return the largest number of GPUs that share one batch with an efficiency of at least `least`.

    Only powers of two that divide the batch are considered.
    """
    counts: list[int] = [2**i for i in range(1, 13) if net.batch % 2**i == 0]
    return max([1, *(n for n in counts if strong_efficiency(net, n, c) >= least)])


def messages(nets: dict[str, Net]) -> str:
    """Return a table of the message sizes per training step, one row per network."""
    lines = []
    for name, net in nets.items():
        parts = " + ".join(f"{FP32 * bucket / 1e6:.2f}" for bucket in net.buckets)
        sizes = " | ".join(f"{number * net.trained / 1e6:.2f} MB" for number in (FP32, BF16))
        lines.append(f"{name} | {net.trained:,} | {sizes} | {parts} MB | {net.flops / 1e9:.2f}·10⁹")
    head = "network | scores | fp32 | bf16 | buckets, in the order of sending | operations per image"
    return "\n".join(markdown(head, lines))


def predicted(nets: dict[str, Net], c: Cluster) -> str:
    """Return a table of the predicted strong and weak scaling, one row per network and number of GPUs."""
    head = (
        "network | GPUs | images per GPU | step, ms | waiting, ms | efficiency | bf16 sent "
        "| batch | step, ms | waiting, ms | efficiency | bf16 sent | `--sync-bn` adds, ms"
    )
    pairs = itertools.product(nets.items(), GPUS)
    lines = markdown(head, (f"{name} | {n} | {_shared(net, n, c)} | {_grown(net, n, c)}" for (name, net), n in pairs))
    limits = ", ".join(f"{name} {largest_efficient(net, c)}" for name, net in nets.items())
    return "\n".join(
        [*lines, "", f"Largest number of GPUs that share one batch with an efficiency of at least one half: {limits}."]
    )


def _shared(net: Net, n: int, c: Cluster) -> str:
    if net.batch < n:
        return f"{net.batch / n:g}: refused | – | – | – | –"
    images = net.batch / n
    shares = f"{strong_efficiency(net, n, c):.2f} | {strong_efficiency(net, n, c, BF16):.2f}"
    return f"{images:g} | {_times(net, images, n, c)} | {shares}"


def _grown(net: Net, n: int, c: Cluster) -> str:
    synced = 1e3 * 2 * net.norms * all_reduce_seconds(0, n, c)  # one message per norm in each pass, without overlap
    shares = f"{weak_efficiency(net, n, c):.2f} | {weak_efficiency(net, n, c, BF16):.2f}"
    return f"{net.batch * n:,} | {_times(net, net.batch, n, c)} | {shares} | {synced:.1f}"


def _times(net: Net, images: float, n: int, c: Cluster) -> str:
    return f"{1e3 * step_seconds(net, images, n, c):.2f} | {1e3 * exposed_seconds(net, images, n, c, FP32):.2f}"


def evaluation(nets: dict[str, Net]) -> str:
    """Return a table of the efficiency of an evaluation on several processes, which share out whole batches."""
    lines = []
    for name, net in nets.items():
        batches = math.ceil(net.images / net.batch)
        shares = " | ".join(f"{batches / n / math.ceil(batches / n):.2f}" for n in GPUS)
        lines.append(f"{name}: {batches} of {net.batch} | {shares}")
    return "\n".join(markdown(" | ".join(["test set in batches", *(f"{n} processes" for n in GPUS)]), lines))


def measured() -> str:
    """Return a table of the recorded benchmarks: ms per step, efficiency, and the factors of the efficiency."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_parallel_*.json"))]
    head = (
        "step | alone, ms | one batch shared, ms | efficiency | ≈ unshrunk · machine · together "
        "| one batch each, ms | efficiency | ≈ machine · together"
    )
    lines = []
    for record in records:
        found = record["parallel"]
        (precision,) = found["precisions"]
        for who, sent in (("ours", ""), ("ours", ", bf16 sent"), ("dense", "")):
            lines.append(_line(found, f"{who}/{precision}", sent))
    after = (_unshrinking(record["parallel"]) for record in records)
    return "\n".join([_conditions(records), "", *markdown(head, lines), "", *after])


def _conditions(records: Sequence[dict[str, Any]]) -> str:
    one, found = records[0], records[0]["parallel"]
    samples = " and ".join(str(record["parallel"]["repeat"]) for record in records)
    return (
        f"{found['net']}, batch {found['batch']}, {found['processes']} processes of {found['threads']} thread on as "
        f"many cores beside one such process on one core; {one['device']}, torch {one['torch']}; median ± "
        f"interquartile range of {samples} interleaved samples of {one['batches_per_sample']['train']} steps "
        f"(`python scripts/bench.py --parallel`). The target is an efficiency of {found['target']:g}."
    )


def _line(found: dict[str, Any], contender: str, sent: str) -> str:
    seconds, efficiencies = found["summary"], found["efficiency"]

    def cells(way: str) -> str:
        name = f"{contender}/{way}{sent}"
        kinds = (f"{contender}/{way}: unshrunk", f"{contender}/{way}: machine", f"{name}: together")
        factors = [f"{efficiencies[kind]['median']:.2f}" for kind in kinds if kind in efficiencies]
        parts = " · ".join(factors) if len(factors) > 1 else ""
        return f"{_ms(seconds[name])} | {_ratio(efficiencies[name])} | {parts}"

    alone = _ms(seconds[f"{contender}/alone"])
    return f"{contender.replace('/', ', ')}{sent} | {alone} | {cells('strong')} | {cells('weak')}"


def _unshrinking(found: dict[str, Any]) -> str:
    """Return a sentence on the part of the step time that does not shrink with the batch.

    With t(n) = fixed + variable / n seconds for a batch divided by n, fixed = (n · t(n) − t(1)) / (n − 1).
    """
    (precision,), n = found["precisions"], found["processes"]
    whole, part = (found["summary"][f"ours/{precision}/{way}"]["median"] for way in ("alone", "alone, B/N"))
    fixed, masks = (n * part - whole) / (n - 1), found["summary"]["ours/fp32/selection"]["median"]
    return (
        f"- {precision}: {1e3 * fixed:.0f} of {1e3 * whole:.0f} ms do not shrink with the batch. Of these, "
        f"{1e3 * masks:.0f} ms ({100 * masks / whole:.0f} % of the step) select the masks. Sharing one batch cannot "
        f"make the step more than {whole / fixed:.0f} times as fast."
    )


def _ms(s: dict[str, float]) -> str:
    return f"{1e3 * s['median']:.0f} ± {1e3 * s['iqr']:.0f}"


def _ratio(s: dict[str, float]) -> str:
    return f"{s['median']:.2f} ± {s['iqr']:.2f}"


def assumed(c: Cluster) -> str:
    """Return the assumptions about the cluster `c` as a sentence."""
    near, far = (1e6 * latency for latency in (c.latency_inside, c.latency_between))
    return (
        f"A GPU sustains {c.flops / 1e12:g}·10¹² operations per second and takes {1e3 * c.layer:g} ms per layer for "
        f"any number of images. A node has {c.node} GPUs, with {c.inside / 1e9:g} GB/s and {near:g} µs between them. "
        f"Between nodes there are {8 * c.between / 1e9:g} Gb/s per node and {far:g} µs."
    )


def parser() -> Parser:
    """Return the parser of the command line, with one option per field of Cluster."""
    top = Parser(__doc__)
    top.add_check()
    for entry in fields(Cluster):
        meaning = f"{entry.metadata['help']}; default: {entry.default:g}"
        top.add_argument(f"--{entry.name.replace('_', '-')}", type=entry.metadata["kind"], help=meaning)
    return top


@command
def main(argv: Sequence[str]) -> int:
    """Write the tables of docs/scaling.md, or print the prediction for another cluster.

    With --check write nothing and return 1 if the page is out of date.
    """
    options = vars(parser().parse_args(argv))
    check = options.pop("check")
    nets, c = {name: count_sizes(name) for name in NETS}, Cluster()
    if given := {name: value for name, value in options.items() if value is not None}:
        say(predicted(nets, Cluster(**given)))
        return 0
    tables = {
        "measured": measured,
        "messages": lambda: messages(nets),
        "assumed": lambda: assumed(c),
        "many": lambda: predicted(nets, c),
        "evaluation": lambda: evaluation(nets),
    }
    return update({PAGE: tables}, "scripts/scaling.py", check=check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
