"""`bench.py`: training and evaluation of this program, compared with the reference and with a dense network."""

from collections.abc import Sequence
from typing import Any

from scripts.benchmarks.contenders import OPTIMIZER, network, our_samplers, parts, reference_samplers
from scripts.benchmarks.progress import progress
from utils.distributed.runtime import Runtime
from utils.tables import aligned
from utils.timing import Sampler, measure, summary

PRECISIONS = ("bf16", "fp32")
# Reference over ours for (training bf16, training fp32, evaluation), and ours over dense; for MPT-1/32, 2 cores with
# avx512_bf16.
TARGETS = {
    "Conv2": (7, 4, 20, 1.12),
    "Conv4": (4.5, 2.5, 9, 1.10),
    "Conv8": (3.8, 2.4, 8, 1.10),
    "VGG_Small": (3.3, 1.8, 5, 1.05),
}


def arch_of(net: str, act: str) -> str:
    """Return the architecture of the network `net` with real ("1/32") or binary ("1/1") activations."""
    return f"{net}_BinAct" if act == "1/1" else net


def contenders(arch: str, act: str, runtimes: dict[str, Runtime], batch: int) -> dict[str, Sampler]:
    """Return the functions that time the network `arch`, by name, such as "ours/fp32/train" or "reference/fp32/eval".

    runtimes: Precision -> runtime. The reference runs in fp32 on the first one's device. The dense network only trains.
    """
    samplers: dict[str, Sampler] = {}
    first = next(iter(runtimes.values()))
    train, test = reference_samplers(arch, OPTIMIZER[act], first, batch)
    samplers["reference/fp32/train"], samplers["reference/fp32/eval"] = train, test
    for precision, runtime in runtimes.items():
        ours, dense = (
            our_samplers(parts(network(arch, dense=is_dense), OPTIMIZER[act], runtime, batch, dense=is_dense))
            for is_dense in (False, True)
        )
        samplers[f"ours/{precision}/train"], samplers[f"ours/{precision}/eval"] = ours
        samplers[f"dense/{precision}/train"] = dense[0]
    return samplers


def bench(net: str, act: str, runtimes: dict[str, Runtime], batch: int, repeat: int) -> dict[str, Any]:
    """Measure one network. Return its row of the report: all samples, their summaries, the ratios and the targets."""
    arch = arch_of(net, act)
    samples = measure(contenders(arch, act, runtimes, batch), repeat, progress(f"{net} {act}"))
    summaries = {name: summary(values) for name, values in samples.items()}
    medians = {name: s["median"] for name, s in summaries.items()}
    row = {"net": net, "act": act, "arch": arch, "targets": targets(net, act)}
    return {**row, "ratios": ratios(medians, list(runtimes)), "summary": summaries, "samples": samples}


def ratios(medians: dict[str, float], precisions: Sequence[str]) -> dict[str, float]:
    """Return the ratios of median times: reference over this program, and in training also this program over dense."""
    found = {}
    for precision in precisions:
        for phase in ("train", "eval"):
            found[f"{phase}/{precision}"] = medians[f"reference/fp32/{phase}"] / medians[f"ours/{precision}/{phase}"]
        ours, dense = medians[f"ours/{precision}/train"], medians[f"dense/{precision}/train"]
        found[f"train/{precision}/over_dense"] = ours / dense
    return found


def targets(net: str, act: str) -> dict[str, float]:
    """Return the target of each ratio by name, or an empty dict if the network has no targets."""
    if act != "1/32" or net not in TARGETS:
        return {}
    bf16, fp32, evaluation, dense = TARGETS[net]
    over_dense = {f"train/{precision}/over_dense": dense for precision in PRECISIONS}
    return {"train/bf16": bf16, "train/fp32": fp32, "eval/bf16": evaluation, **over_dense}


def table(rows: Sequence[dict[str, Any]], precisions: Sequence[str]) -> str:
    """Return the rows as a text table: ms per batch as median±IQR, then the ratios with their [targets]."""
    names = ["reference/fp32/train", *(f"ours/{p}/train" for p in precisions)]
    kinds = [f"{phase}/{p}" for phase in ("train", "eval") for p in precisions]
    kinds += [f"train/{p}/over_dense" for p in precisions]
    head = ["net", "kind", *(f"{name.removesuffix('/train')} ms" for name in names)]
    head += [kind if "over" in kind else f"{kind} gain" for kind in kinds]
    lines = [head]
    for row in rows:
        line = [row["net"], row["act"]]
        line += [f"{1e3 * s['median']:.1f}±{1e3 * s['iqr']:.1f}" for s in (row["summary"][name] for name in names)]
        goals = row["targets"]
        line += [f"{row['ratios'][kind]:.2f}" + (f" [{goals[kind]:g}]" if kind in goals else "") for kind in kinds]
        lines.append(line)
    return aligned(lines, right=True)
