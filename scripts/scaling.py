"""Write docs/scaling.md's tables: what was measured here, what is sent, and what that would give on many GPUs.

    python scripts/scaling.py [--check]
    python scripts/scaling.py --flops 8e13 --layer 1e-4 --between 5e10     prints the last table for other machines

Measured are scripts/records/bench_parallel_*.json (scripts/bench.py --parallel --out). Message sizes and operations are
counted on the networks themselves. What is assumed of the machines stands in `Cluster`.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: the project is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import models
from data import SPECS
from models.constraints import weight_layers
from models.layers import SingleValueBatchNorm
from scripts.readme import RECORDS, ROOT, filled
from utils import exit_codes
from utils.config.script_parser import Parser, limited
from utils.console import say

PAGE = ROOT / "docs" / "scaling.md"
GPUS = (8, 64, 512)
FP32, BF16 = 4, 2  # bytes of a number as it is sent
NETS = {  # name -> (arch, data set, images of a batch and of its test set, as in the configurations)
    "Conv4": ("Conv4", "CIFAR10", 128, 10_000),
    "ResNet-18": ("cResNet18", "CIFAR10", 256, 10_000),
    "ResNet-50": ("ResNet50", "ImageNet", 256, 50_000),
}

LIMITS = {float: limited(float, ">= 0 and <= 1e30"), int: limited(int, ">= 1 and <= 1e6")}  # of what is assumed


def _usual(value: Any, meaning: str) -> Any:
    return field(default=value, metadata={"help": meaning})


@dataclass(frozen=True)
class Cluster:
    """What is assumed, for want of such machines."""

    flops: float = _usual(5e13, "operations per second that one GPU sustains in a training step")
    layer: float = _usual(
        1.5e-4, "seconds that a layer takes of a step however few the images: launches, mask, optimizer"
    )
    node: int = _usual(8, "GPUs per node, which reach each other without the network")
    inside: float = _usual(2e11, "bytes per second of each GPU within a node")
    between: float = _usual(2.5e10, "bytes per second of a whole node to others: 200 Gb/s")
    latency_inside: float = _usual(5e-6, "seconds per message within a node")
    latency_between: float = _usual(1.5e-5, "seconds per message between nodes")


@dataclass(frozen=True)
class Net:
    """A ticket as it is trained: `flops` of a step an image, scores in each of DDP's `buckets` in the order of sending,
    `layers` with scores, `norms` without parameters, `batch` and test `images`."""

    flops: float
    buckets: tuple[int, ...]
    layers: int
    norms: int
    batch: int
    images: int

    @property
    def trained(self) -> int:
        return sum(self.buckets)


def counted(name: str) -> Net:
    """The network of that name, counted: operations of forward and backward pass, scores, buckets."""
    arch, of, batch, images = NETS[name]
    spec = SPECS[of]
    with torch.device("meta"):
        model = models.build(arch, num_classes=spec.num_classes, in_shape=spec.in_shape, bn_type="NonAffineBatchNorm")
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(model(torch.zeros(2, *spec.in_shape)), torch.zeros(2, dtype=torch.int64)).backward()
    weights = [layer.weight for layer in weight_layers(model).values()]
    norms = sum(isinstance(module, SingleValueBatchNorm) for module in model.modules())
    return Net(counter.get_total_flops() / 2, buckets(weights), len(weights), norms, batch, images)


def buckets(weights: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """How many numbers DDP sends together: 1 MiB for the layers nearest to the input, which are last, then 25 MiB."""
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 << 20]
    scores = [torch.empty_like(weight, dtype=torch.float32) for weight in weights]
    found, _ = dist._compute_bucket_assignment_by_size(scores, limits, [False] * len(scores))
    return tuple(sum(scores[i].numel() for i in bucket) for bucket in reversed(found))


def all_reduce(size: float, gpus: int, c: Cluster) -> float:
    """Seconds to sum `size` bytes over so many GPUs: a ring in each node, then trees between the nodes.

    2 (k − 1) (size / (k · inside) + latency), then 2 (m − 1)/m · size / between + 2 ⌈log₂ m⌉ latency; k GPUs a node, m
    nodes.
    """
    here, nodes = min(gpus, c.node), max(1, gpus // c.node)
    ring = 2 * (here - 1) * (size / here / c.inside + c.latency_inside)
    return ring + 2 * (nodes - 1) / nodes * size / c.between + 2 * math.ceil(math.log2(nodes)) * c.latency_between


def compute(net: Net, images: float, c: Cluster) -> float:
    """Seconds of a step on one GPU: what a layer takes anyway, and the operations of these images."""
    return net.layers * c.layer + images * net.flops / c.flops


def exposed(net: Net, images: float, gpus: int, c: Cluster, number: int) -> float:
    """Seconds that a step waits for all-reduce: what does not hide behind the backward pass, two thirds of the step, at
    least the last bucket; then which scores had a gradient, an int32 each."""
    sums = [all_reduce(number * bucket, gpus, c) for bucket in net.buckets]
    backward = compute(net, images, c) * 2 / 3
    return max(sum(sums) - backward, sums[-1]) + all_reduce(4 * net.layers, gpus, c)


def step(net: Net, images: float, gpus: int, c: Cluster, number: int = FP32) -> float:
    """Seconds of a step with so many images on each GPU, gradients sent as `number` bytes each."""
    return compute(net, images, c) + exposed(net, images, gpus, c, number)


def strong(net: Net, gpus: int, c: Cluster, number: int = FP32) -> float:
    """Efficiency at the one batch, shared."""
    return compute(net, net.batch, c) / (gpus * step(net, net.batch / gpus, gpus, c, number))


def weak(net: Net, gpus: int, c: Cluster, number: int = FP32) -> float:
    """Efficiency where each GPU has a whole batch."""
    return compute(net, net.batch, c) / step(net, net.batch, gpus, c, number)


def limit(net: Net, c: Cluster, least: float = 0.5) -> int:
    """The most GPUs, a power of two that divides the batch, that share one batch at this efficiency at least."""
    counts = [2**i for i in range(1, 13) if net.batch % 2**i == 0]
    return max([1, *(n for n in counts if strong(net, n, c) >= least)])


def messages(nets: dict[str, Net]) -> str:
    """A line a network: what every step sends."""
    lines = [
        "| ticket | scores | fp32 | bf16 | buckets, in the order of sending | operations an image |",
        "|" + "---|" * 6,
    ]
    for name, net in nets.items():
        parts = " + ".join(f"{FP32 * bucket / 1e6:.2f}" for bucket in net.buckets)
        sizes = " | ".join(f"{number * net.trained / 1e6:.2f} MB" for number in (FP32, BF16))
        lines.append(f"| {name} | {net.trained:,} | {sizes} | {parts} MB | {net.flops / 1e9:.2f}·10⁹ |")
    return "\n".join(lines)


def many(nets: dict[str, Net], c: Cluster) -> str:
    """A line for each network and number of GPUs, strong and weak."""
    lines = [
        "| ticket | GPUs | images a GPU | step, ms | of it waiting | efficiency | bf16 sent "
        "| batch | step, ms | of it waiting | efficiency | bf16 sent | `--sync-bn` adds, ms |",
        "|" + "---|" * 13,
    ]
    for name, net in nets.items():
        lines += [f"| {name} | {n} | {_shared(net, n, c)} | {_grown(net, n, c)} |" for n in GPUS]
    told = ", ".join(f"{name} to {limit(net, c)}" for name, net in nets.items())
    return "\n".join([*lines, "", f"One batch keeps half of the efficiency on as many GPUs as this: {told}."])


def _shared(net: Net, n: int, c: Cluster) -> str:
    if net.batch < n:
        return f"{net.batch / n:g}: refused | – | – | – | –"
    images = net.batch / n
    return f"{images:g} | {_times(net, images, n, c)} | {strong(net, n, c):.2f} | {strong(net, n, c, BF16):.2f}"


def _grown(net: Net, n: int, c: Cluster) -> str:
    synced = 1e3 * 2 * net.norms * all_reduce(0, n, c)  # forward and backward each have a message that nothing hides
    shares = f"{weak(net, n, c):.2f} | {weak(net, n, c, BF16):.2f}"
    return f"{net.batch * n:,} | {_times(net, net.batch, n, c)} | {shares} | {synced:.1f}"


def _times(net: Net, images: float, n: int, c: Cluster) -> str:
    return f"{1e3 * step(net, images, n, c):.2f} | {1e3 * exposed(net, images, n, c, FP32):.2f}"


def evaluation(nets: dict[str, Net]) -> str:
    """A line a network: how well whole batches of the test set deal out."""
    lines = ["| test set in batches | " + " | ".join(f"{n} processes" for n in GPUS) + " |", "|---" * 4 + "|"]
    for name, net in nets.items():
        count = math.ceil(net.images / net.batch)
        shares = " | ".join(f"{count / n / math.ceil(count / n):.2f}" for n in GPUS)
        lines.append(f"| {name}: {count} of {net.batch} | {shares} |")
    return "\n".join(lines)


def measured() -> str:
    """A line a contender of the records: ms a step alone and together, efficiency and where the rest of it goes."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("bench_parallel_*.json"))]
    lines = [
        _conditions(records),
        "",
        "| step | alone, ms | one batch shared, ms | efficiency | ≈ unshrunk · machine · together "
        "| a batch each, ms | efficiency | ≈ machine · together |",
        "|" + "---|" * 8,
    ]
    for record in records:
        found = record["parallel"]
        (precision,) = found["precisions"]
        for who, sent in (("ours", ""), ("ours", ", bf16 sent"), ("dense", "")):
            lines.append(_line(found, f"{who}/{precision}", sent))
    return "\n".join([*lines, "", *(_unshrinking(record["parallel"]) for record in records)])


def _conditions(records: Sequence[dict[str, Any]]) -> str:
    one, found = records[0], records[0]["parallel"]
    samples = " and ".join(str(record["parallel"]["repeat"]) for record in records)
    return (
        f"{found['net']}, batch {found['batch']}, {found['processes']} processes of {found['threads']} thread on as "
        f"many cores beside one such process on one core; {one['device']}, torch {one['torch']}; median ± "
        f"interquartile range of {samples} interleaved samples of {one['batches_per_sample']['train']} steps "
        f"(`python scripts/bench.py --parallel`). The target is an efficiency of {found['target']:g}."
    )


def _line(found: dict[str, Any], at: str, sent: str) -> str:
    seconds, shares = found["summary"], found["efficiency"]

    def cells(way: str) -> str:
        kinds = [f"{at}/{way}: {why}" for why in ("unshrunk", "machine")] + [f"{at}/{way}{sent}: together"]
        factors = [f"{shares[kind]['median']:.2f}" for kind in kinds if kind in shares]
        parts = " · ".join(factors) if len(factors) > 1 else ""
        return f"{_ms(seconds[f'{at}/{way}{sent}'])} | {_share(shares[f'{at}/{way}{sent}'])} | {parts}"

    return f"| {at.replace('/', ', ')}{sent} | {_ms(seconds[f'{at}/alone'])} | {cells('strong')} | {cells('weak')} |"


def _unshrinking(found: dict[str, Any]) -> str:
    """What a step takes that a smaller share of the batch does not shorten."""
    (precision,), n = found["precisions"], found["processes"]
    whole, part = (found["summary"][f"ours/{precision}/{way}"]["median"] for way in ("alone", "alone, B/N"))
    fixed, masks = (n * part - whole) / (n - 1), found["summary"]["ours/fp32/selection"]["median"]
    return (
        f"- {precision}: {1e3 * fixed:.0f} of {1e3 * whole:.0f} ms do not shrink with the batch; {1e3 * masks:.0f} of "
        f"them, {100 * masks / whole:.0f} % of the step, choose the masks. Were all else free, one batch could not be "
        f"trained more than {whole / fixed:.0f} times as fast."
    )


def _ms(s: dict[str, float]) -> str:
    return f"{1e3 * s['median']:.0f} ± {1e3 * s['iqr']:.0f}"


def _share(s: dict[str, float]) -> str:
    return f"{s['median']:.2f} ± {s['iqr']:.2f}"


def assumed(c: Cluster) -> str:
    """The assumptions in words."""
    near, far = (1e6 * latency for latency in (c.latency_inside, c.latency_between))
    return (
        f"A GPU sustains {c.flops / 1e12:g}·10¹² operations a second and takes {1e3 * c.layer:g} ms a layer however "
        f"few the images; {c.node} GPUs a node, {c.inside / 1e9:g} GB/s and {near:g} µs between them; "
        f"{8 * c.between / 1e9:g} Gb/s a node and {far:g} µs between nodes."
    )


def page(text: str) -> str:
    """`text` with its tables made anew."""
    nets, c = {name: counted(name) for name in NETS}, Cluster()
    tables = {
        "measured": measured,
        "messages": lambda: messages(nets),
        "assumed": lambda: assumed(c),
        "many": lambda: many(nets, c),
        "evaluation": lambda: evaluation(nets),
    }
    return filled(text, tables, "scripts/scaling.py")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    return exit_codes.run_program(lambda: work(argv), interrupted=exit_codes.INTERRUPTED)


def work(argv: Sequence[str]) -> int:
    """Write the page, or with --check say by 1 that it is not what would be written, or print for another cluster."""
    top = Parser((__doc__ or "").splitlines()[0])
    top.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    for entry in fields(Cluster):
        name, usual = entry.name.replace("_", "-"), entry.default
        top.add_argument(f"--{name}", type=LIMITS[type(usual)], help=f"{entry.metadata['help']}; default {usual:g}")
    options = vars(top.parse_args(argv))
    check = options.pop("check")
    if given := {name: value for name, value in options.items() if value is not None}:
        say(many({name: counted(name) for name in NETS}, Cluster(**given)))
        return 0
    text = page(PAGE.read_text(encoding="utf-8"))
    if check:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
