"""`bench.py --parallel`: training by one process, by several independent processes, and by several on one network.

Each process has its own cores. The loop, its replicas and its all-reduce are those of a run. B is the number of images
per batch, N the number of processes. `bench` starts this module in N processes with torchrun.
"""

import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # one of the processes: before numpy and torch are loaded
    from utils import process_setup

    process_setup.tune(distributed=True)

import torch

from models.constraints.attachment import constrained_layers
from scripts import ROOT
from scripts.benchmarks.contenders import STEPS, network, our_samplers, parts
from scripts.benchmarks.progress import progress
from trainers.loop import Callbacks, TrainingSetup, train_one_epoch
from trainers.training_state import TrainingState
from utils.config.script_parser import command
from utils.distributed import launcher_env, rendezvous
from utils.distributed import runtime as runtimes
from utils.distributed.runtime import Runtime
from utils.timing import Sampler, Samples, measure, summary, timed
from utils.torch_compat import TorchDispatchMode

NET = "Conv4"
TARGET = 0.9  # efficiency of two processes on two cores
# A sample is repeated up to TRIES times if a process waited for its core longer than MOST_WAITING of the time. The
# threads of one process alone make each other wait for up to a tenth.
TRIES, MOST_WAITING = 30, 0.15


@dataclass(frozen=True)
class Way:
    """Way to divide a training step among the processes."""

    whole: bool  # B images per process, else B/N
    together: bool = False  # the processes train one network, else independent ones
    first_only: bool = False  # the first process works while the others sleep
    compression: str = "none"  # of the gradients in all-reduce


WAYS = {
    "alone": Way(True, first_only=True),
    "alone, B/N": Way(False, first_only=True),
    "apart": Way(True),
    "apart, B/N": Way(False),
    "strong": Way(False, together=True),
    "weak": Way(True, together=True),
    "strong, bf16 sent": Way(False, together=True, compression="bf16"),
    "weak, bf16 sent": Way(True, together=True, compression="bf16"),
}
DENSE = ("alone", "strong", "weak")  # the ways that the dense network is measured in


@dataclass(frozen=True)
class Job:
    """Settings of a measurement, stored in its record."""

    net: str
    batch: int  # B
    processes: int  # N
    precisions: Sequence[str]
    repeat: int
    threads: int = 1
    device: str = "cpu"


def bench(job: Job) -> dict[str, Any]:
    """Measure in N new processes. Return the record: settings, samples, summaries, efficiencies and message sizes."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}"]
        program = ["-m", "scripts.benchmarks.parallel", json.dumps(asdict(job)), str(out)]
        env = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        subprocess.run([*launch, *program], check=True, cwd=ROOT, env=env)
        found = json.loads(out.read_text(encoding="utf-8"))
    ratios = efficiencies(found["samples"], job.processes)
    return {
        **asdict(job),
        "target": TARGET,
        **found,
        "efficiency": {kind: summary(values) for kind, values in ratios.items()},
        "summary": {contender: summary(values) for contender, values in found["samples"].items()},
    }


@command
def main(argv: Sequence[str]) -> None:
    """Run one of the N processes. The arguments are the job as JSON and the path of the output file.

    The first process writes the samples and the message sizes to the file.
    """
    job, out = Job(**json.loads(argv[0])), Path(argv[1])
    process = launcher_env.detect_process(os.environ)
    if job.device == "cpu":
        pin(process.local_rank, job.threads)
    here = runtimes.choose(job.device, "fp32", None, deterministic=False, process=process)
    with rendezvous.process_group(here, 60):
        sent = {who: sent_by(job, here, who) for who in ("ours", "dense", "ours, bf16 sent")}
        shown = progress("parallel") if here.first else (lambda _: None)
        samples = measure(samplers(job, here), job.repeat, shown)
        if here.first:
            out.write_text(json.dumps({"sent": sent, "samples": samples}))


def pin(number: int, threads: int) -> None:
    """Pin process `number` to its own `threads` cores, if there are enough cores for that."""
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))[number * threads : (number + 1) * threads]
        if len(own) == threads:
            os.sched_setaffinity(0, own)


def samplers(job: Job, here: Runtime) -> dict[str, Sampler]:
    """Return functions that time a training step, by name `contender/precision/way`, such as "ours/fp32/strong".

    All processes must call the samplers in the same order. The sampler `selection` times the selection of the masks,
    which takes the same time for any batch.
    """
    found: dict[str, Sampler] = {}
    for precision in job.precisions:
        for who in ("ours", "dense"):
            for name in WAYS if who == "ours" else DENSE:
                works_here = here.first or not WAYS[name].first_only
                loop = assembled(job, here.at(precision), WAYS[name], dense=who == "dense") if works_here else None
                found[f"{who}/{precision}/{name}"] = synchronised(here, our_samplers(loop)[0] if loop else None)
    found["ours/fp32/selection"] = synchronised(here, selection(job.net, here) if here.first else None)
    return found


def assembled(job: Job, here: Runtime, way: Way, *, dense: bool) -> TrainingSetup:
    """Return this process's training setup for one way to divide a step."""
    runtime = here if way.together else replace(here, process=launcher_env.ALONE)
    images = job.batch if way.whole else job.batch // job.processes
    model, batch = network(job.net, dense=dense), images * runtime.process.world
    return parts(model, "sgd", runtime, batch, dense=dense, compression=way.compression)


def selection(net: str, here: Runtime) -> Sampler:
    """Return a function that times the computation of the effective weights of all layers."""
    model = network(net, dense=False).train()
    here.put(model)
    layers: list[Any] = list(constrained_layers(model).values())
    return timed(lambda: [layer.constraint(layer.weight) for layer in layers], wait=here.wait)


def synchronised(here: Runtime, sampler: Sampler | None) -> Sampler:
    """Return a timing function that starts on all processes together and averages over the processes with a `sampler`.

    The sample is repeated, up to TRIES times, if another program has used the cores of a process, see MOST_WAITING.
    """

    def sample() -> float:
        seconds = workers = math.nan
        for _ in range(TRIES):
            here.total(torch.zeros(1, device=here.device))  # a barrier; gloo sleeps in it, so it uses no core
            started, before = time.perf_counter(), seconds_without_core()
            own = [sampler(), 1.0] if sampler else [0.0, 0.0]
            waited = seconds_without_core() - before > MOST_WAITING * (time.perf_counter() - started)
            values = torch.tensor([*own, bool(sampler) and waited], dtype=torch.float64, device=here.device)
            seconds, workers, disturbed = here.total(values).tolist()
            if not disturbed:
                break
        return seconds / workers

    return sample


def seconds_without_core() -> float:
    """Return the seconds that threads of this process were ready to run but had no core; 0 if not on Linux."""
    nanoseconds = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread may have ended since the listing
            nanoseconds += int(path.read_text(encoding="utf-8").split()[1])
    return nanoseconds / 1e9


class AllReduceRecorder(TorchDispatchMode):
    """Context that records (dtype, bytes) of each tensor that this process passes to all-reduce, also through DDP."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.tensors: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "c10d::allreduce_":
            self.tensors += [(str(tensor.dtype).removeprefix("torch."), tensor.nbytes) for tensor in args[0]]
        return func(*args, **(kwargs or {}))


def sent_by(job: Job, here: Runtime, who: str) -> dict[str, Any]:
    """Return the message sizes of a training step of contender `who`, and its number of trained parameters."""
    way = replace(WAYS["strong"], compression="bf16" if "bf16" in who else "none")
    loop = assembled(job, here, way, dense=who == "dense")
    with AllReduceRecorder() as sent, redirect_stderr(io.StringIO()):
        train_one_epoch(loop, TrainingState(), "counting", Callbacks())
    trained = sum(p.numel() for p in loop.model.parameters() if p.requires_grad)
    return {"trained": trained, **bytes_per_step(sent.tensors)}


def bytes_per_step(tensors: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return the bytes that each of STEPS steps passes to all-reduce.

    `gradients` has one entry per bucket. `used` is DDP's flag per parameter that it had a gradient (int32). The loop's
    sums (float64) are left out, because they are not sent in every step.
    """
    gradients = [size for dtype, size in tensors if dtype in ("float32", "bfloat16")]
    used = [size for dtype, size in tensors if dtype == "int32"]
    return {"gradients": gradients[: len(gradients) // STEPS], "used": sum(used) // STEPS}


def efficiencies(samples: Samples, processes: int) -> Samples:
    """Return the parallel efficiencies and their factors, one value per repeat.

    strong:   t(alone, B) / (N t(together, B)) = unshrunk · machine · together
    weak:     t(alone, B) / t(together, N B) = machine · together
    unshrunk: t(alone, B) / (N t(alone, B/N)), lost to work whose time does not depend on the batch
    machine:  t(alone) / t(apart), lost to the memory and clock rate that cores share
    together: t(apart) / t(together), lost to replicas and all-reduce
    """
    found: Samples = {}

    def ratio(name: str, above: str, below: str, times: int = 1) -> None:
        if above in samples and below in samples:
            found[name] = [a / (times * b) for a, b in zip(samples[above], samples[below], strict=True)]

    for contender in dict.fromkeys(name.rpartition("/")[0] for name in samples):
        for sent in ("", ", bf16 sent"):
            ratio(f"{contender}/strong{sent}", f"{contender}/alone", f"{contender}/strong{sent}", processes)
            ratio(f"{contender}/weak{sent}", f"{contender}/alone", f"{contender}/weak{sent}")
            ratio(f"{contender}/strong{sent}: together", f"{contender}/apart, B/N", f"{contender}/strong{sent}")
            ratio(f"{contender}/weak{sent}: together", f"{contender}/apart", f"{contender}/weak{sent}")
        ratio(f"{contender}/strong: unshrunk", f"{contender}/alone", f"{contender}/alone, B/N", processes)
        ratio(f"{contender}/strong: machine", f"{contender}/alone, B/N", f"{contender}/apart, B/N")
        ratio(f"{contender}/weak: machine", f"{contender}/alone", f"{contender}/apart")
    return found


def table(record: dict[str, Any]) -> str:
    """Return a record as text: ms per step of every contender, efficiencies with their factors, bytes per step."""
    lines = [f"{record['net']}, B = {record['batch']} images, N = {record['processes']} processes"]
    for name, s in record["summary"].items():
        lines.append(f"{name:>30}  {1e3 * s['median']:.1f} ms per step (IQR {1e3 * s['iqr']:.1f})")
    lines += [f"efficiency, median of {record['repeat']}; target for two processes: {record['target']:g}"]
    lines += [f"{name:>40}  {s['median']:.3f} (IQR {s['iqr']:.3f})" for name, s in record["efficiency"].items()]
    lines += ["bytes per step that each process passes to all-reduce"]
    for who, sent in record["sent"].items():
        buckets = " + ".join(f"{size:,}" for size in sent["gradients"])
        text = f"{buckets} for {sent['trained']:,} trained numbers, {sent['used']} to mark those that had a gradient"
        lines.append(f"{who:>20}  {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
