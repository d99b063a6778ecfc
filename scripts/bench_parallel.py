"""What `bench.py --parallel` lets run against each other: one process alone, several that never speak, and several that
train one network. A thread and a core each; the loop, its replicas and its all-reduce are those of a run.

B images a batch, N processes. Started by torchrun, as a run is: `bench` does it.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up, and the tuning comes before numpy and torch
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import process_setup

    process_setup.tune(distributed=True)

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.constraints import constrained_layers
from scripts.benchmarks.contenders import STEPS, NullCallbacks, Samples, Work, measure, network, our_work, parts, timed
from trainers.loop import TrainingSetup, train_one_epoch
from trainers.training_state import TrainingState
from utils import exit_codes
from utils.distributed import launcher_env, rendezvous
from utils.distributed import runtime as runtimes
from utils.distributed.runtime import Runtime

NET = "Conv4"
TARGET = 0.9  # efficiency of two processes on two cores
TRIES, DISTURBED = 30, 0.15  # the threads of one process take their core from each other for up to a tenth
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Way:
    """Who takes a step on how many images: B a process where `whole`, else B/N; where not `together`, no process knows
    of another; the `first` alone while the others sleep, or all at once."""

    whole: bool
    together: bool = False
    first: bool = False
    compression: str = "none"


WAYS = {
    "alone": Way(True, first=True),
    "alone, B/N": Way(False, first=True),
    "apart": Way(True),
    "apart, B/N": Way(False),
    "strong": Way(False, together=True),
    "weak": Way(True, together=True),
    "strong, bf16 sent": Way(False, together=True, compression="bf16"),
    "weak, bf16 sent": Way(True, together=True, compression="bf16"),
}
DENSE = ("alone", "strong", "weak")  # what of it the network of free weights is measured at


@dataclass(frozen=True)
class Job:
    """What is measured: B is `batch`, N `processes`; `repeat` samples of each contender."""

    net: str
    batch: int
    processes: int
    precisions: Sequence[str]
    repeat: int
    threads: int = 1
    device: str = "cpu"


def bench(job: Job) -> dict[str, Any]:
    """Measure in processes of its own: seconds a step by contender, `efficiency` by kind, bytes a step by who sends."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}"]
        env = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        subprocess.run([*launch, __file__, json.dumps(asdict(job)), str(out)], check=True, cwd=ROOT, env=env)
        found = json.loads(out.read_text(encoding="utf-8"))
    return {**asdict(job), "target": TARGET, **found, "efficiency": efficiencies(found["samples"], job.processes)}


def main(argv: Sequence[str]) -> int:
    """One of the processes: the job as JSON, and the file that the first process writes. Returns the exit code."""
    return exit_codes.run_program(lambda: work(argv), interrupted=exit_codes.INTERRUPTED)


def work(argv: Sequence[str]) -> None:
    """What `main` does, failures as exceptions."""
    job, out = Job(**json.loads(argv[0])), Path(argv[1])
    process = launcher_env.detect_process(os.environ)
    if job.device == "cpu":
        pin(process.local_rank, job.threads)
    here = runtimes.choose(job.device, "fp32", None, deterministic=False, process=process)
    with rendezvous.process_group(here, 60):
        sent = {who: sent_by(job, here, who) for who in ("ours", "dense", "ours, bf16 sent")}
        samples = measure(works(job, here), job.repeat)
        if here.first:
            out.write_text(json.dumps({"sent": sent, "samples": samples}))


def pin(number: int, threads: int) -> None:
    """Give this process cores that no other one has, where there are as many."""
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))[number * threads : (number + 1) * threads]
        if len(own) == threads:
            os.sched_setaffinity(0, own)


def works(job: Job, here: Runtime) -> dict[str, Work]:
    """Every contender by name, `who/precision/way`: samplers of the seconds a step takes, to be called by all processes
    in the same order. `selection` is what the masks take of a step, whatever the batch."""
    found: dict[str, Work] = {}
    for precision in job.precisions:
        for who in ("ours", "dense"):
            for name in WAYS if who == "ours" else DENSE:
                works_here = here.first or not WAYS[name].first
                loop = assembled(job, here.at(precision), WAYS[name], dense=who == "dense") if works_here else None
                found[f"{who}/{precision}/{name}"] = at_once(here, our_work(loop)[0] if loop else None)
    found["ours/fp32/selection"] = at_once(here, selection(job.net, here) if here.first else None)
    return found


def assembled(job: Job, here: Runtime, way: Way, *, dense: bool) -> TrainingSetup:
    """What the loop needs on this process."""
    runtime = here if way.together else replace(here, process=launcher_env.ALONE)
    mine = job.batch if way.whole else job.batch // job.processes
    model, batch = network(job.net, dense=dense), mine * runtime.process.world
    return parts(model, "sgd", runtime, batch, dense=dense, compression=way.compression)


def selection(net: str, here: Runtime) -> Work:
    """The effective weights of all layers, once."""
    model = network(net, dense=False).train()
    here.put(model)
    layers: list[Any] = list(constrained_layers(model).values())
    return timed(lambda: [layer.constraint(layer.weight) for layer in layers], wait=here.wait)


def at_once(here: Runtime, work: Work | None) -> Work:
    """`work` of every process that has any, begun together; gives the mean of their samples on all processes.

    Taken anew, TRIES times at most, where another program has taken one of them more than DISTURBED of its core.
    """

    def sample() -> float:
        for _ in range(TRIES):
            here.total(torch.zeros(1, device=here.device))  # who waits here or below sleeps: gloo does not poll
            began, before = time.perf_counter(), kept_waiting()
            mine = [work(), 1.0] if work else [0.0, 0.0]
            lost = kept_waiting() - before > DISTURBED * (time.perf_counter() - began)
            told = torch.tensor([*mine, bool(work) and lost], dtype=torch.float64, device=here.device)
            seconds, workers, disturbed = here.total(told).tolist()
            if not disturbed:
                break
        return seconds / workers

    return sample


def kept_waiting() -> float:
    """Seconds that threads of this process were ready to run but had no core, as Linux counts them; elsewhere 0."""
    nanoseconds = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread may end between the two
            nanoseconds += int(path.read_text(encoding="utf-8").split()[1])
    return nanoseconds / 1e9


class Sent(TorchDispatchMode):
    """While it lasts: the tensors that this process hands to all-reduce, as (dtype, bytes), DDP's own included."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "c10d::allreduce_":
            self.tensors += [(str(tensor.dtype).removeprefix("torch."), tensor.nbytes) for tensor in args[0]]
        return func(*args, **(kwargs or {}))


def sent_by(job: Job, here: Runtime, who: str) -> dict[str, Any]:
    """What a step of the loop hands to all-reduce."""
    way = replace(WAYS["strong"], compression="bf16" if "bf16" in who else "none")
    loop = assembled(job, here, way, dense=who == "dense")
    with Sent() as sent, redirect_stderr(io.StringIO()):
        train_one_epoch(loop, TrainingState(), "counting", NullCallbacks())
    return {"trained": sum(p.numel() for p in loop.model.parameters() if p.requires_grad), **a_step(sent.tensors)}


def a_step(tensors: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Bytes that each of STEPS steps hands over: its `gradients` bucket by bucket, and `used`, a number for every
    parameter that says whether it had a gradient. The loop's sums, in float64, are not sent with every step."""
    gradients = [size for dtype, size in tensors if dtype in ("float32", "bfloat16")]
    used = [size for dtype, size in tensors if dtype == "int32"]
    return {"gradients": gradients[: len(gradients) // STEPS], "used": sum(used) // STEPS}


def efficiencies(samples: Samples, processes: int) -> Samples:
    """What share of N times one process's work N processes do, repeat by repeat, and where the rest goes:

    strong: t(alone, B) / (N t(together, B)) = unshrunk · machine · together
    weak:   t(alone, B) / t(together, N B) = machine · together
    unshrunk: t(alone, B) / (N t(alone, B/N)), for what takes its time whatever the batch; machine: alone over apart,
    for the memory and the clock that cores share; together: apart over together, for replicas and all-reduce.
    """
    found: Samples = {}

    def ratio(name: str, above: str, below: str, times: int = 1) -> None:
        if above in samples and below in samples:
            found[name] = [a / (times * b) for a, b in zip(samples[above], samples[below], strict=True)]

    for at in dict.fromkeys(name.rpartition("/")[0] for name in samples):
        for sent in ("", ", bf16 sent"):
            ratio(f"{at}/strong{sent}", f"{at}/alone", f"{at}/strong{sent}", processes)
            ratio(f"{at}/weak{sent}", f"{at}/alone", f"{at}/weak{sent}")
            ratio(f"{at}/strong{sent}: together", f"{at}/apart, B/N", f"{at}/strong{sent}")
            ratio(f"{at}/weak{sent}: together", f"{at}/apart", f"{at}/weak{sent}")
        ratio(f"{at}/strong: unshrunk", f"{at}/alone", f"{at}/alone, B/N", processes)
        ratio(f"{at}/strong: machine", f"{at}/alone, B/N", f"{at}/apart, B/N")
        ratio(f"{at}/weak: machine", f"{at}/alone", f"{at}/apart")
    return found


def table(found: dict[str, Any], short: dict[str, dict[str, float]], shares: dict[str, dict[str, float]]) -> str:
    """For a person: ms a step of every contender, efficiencies with their factors, bytes a step."""
    lines = [f"{found['net']}, B = {found['batch']} images, N = {found['processes']} processes"]
    lines += [f"{name:>30}  {1e3 * s['median']:.1f} ms a step (IQR {1e3 * s['iqr']:.1f})" for name, s in short.items()]
    lines += [f"efficiency, median of {found['repeat']}; target for two processes: {found['target']:g}"]
    lines += [f"{name:>40}  {s['median']:.3f} (IQR {s['iqr']:.3f})" for name, s in shares.items()]
    lines += ["bytes a step that each process hands to all-reduce"]
    for who, sent in found["sent"].items():
        buckets = " + ".join(f"{size:,}" for size in sent["gradients"])
        told = f"{buckets} for {sent['trained']:,} trained numbers, {sent['used']} to say which of them had a gradient"
        lines.append(f"{who:>20}  {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
