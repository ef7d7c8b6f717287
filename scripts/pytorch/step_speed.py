"""How long a training step takes in syncmark and in PyTorch: alternating runs, the median of paired ratios and its interval.

    python scripts/pytorch/step_speed.py [WORK ...] [--pairs 10] [--seconds 3] [--syncmark target/release/syncmark]

Contract: both sides train the same model file at the same batch with the same optimizer on the same single core, in a process
of its own for every measurement. A step is: copy the batch to where the model reads it, zero the gradients, forward, mean
cross-entropy, backward, update; nobody reads the loss. PyTorch runs as it is fastest here: contiguous or channels_last,
foreach or fused optimizer, gradients set to none; which one that is, a first round finds out and the table says. `torch.compile`
is a row of its own (--compile). Below 1 syncmark is faster.

Reference: METHODOLOGY.md, "Against PyTorch"; torch.optim.SGD's arguments foreach and fused.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from paired import alternate

ROOT = Path(__file__).resolve().parent.parent.parent
WARM_UP_SECONDS = 1.0
WARM_UP_STEPS = 3
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    model: str
    norm: str
    batch: int
    threads: int = 1

    @property
    def name(self) -> str:
        """Name it as on the command line."""
        return f"{self.model}-{self.norm}-{self.batch}" + (f"-{self.threads}-threads" if self.threads > 1 else "")


WORKS = {
    work.name: work
    for work in (
        Work("mlp", "batch", 128),
        Work("resnet20", "batch", 64),
        Work("resnet20", "group", 64),
        Work("resnet18", "batch", 8),
    )
}


@dataclass(frozen=True)
class Peer:
    """One way to run PyTorch."""

    memory_format: str
    implementation: str
    compiled: bool = False

    @property
    def name(self) -> str:
        """Name it as in the table."""
        return f"{self.memory_format}, {self.implementation}" + (", compiled" if self.compiled else "")


PEERS = [Peer(layout, how) for layout, how in itertools.product(("contiguous", "channels_last"), ("foreach", "fused"))]


def time_pytorch(work: Work, peer: Peer, seconds: float, core: int) -> float:
    """Milliseconds of a step of PyTorch in this process, which is its own."""
    os.sched_setaffinity(0, range(core, core + work.threads))
    import torch  # after the affinity, which its thread pools inherit
    from torch.nn import functional

    from model import build, preset
    from training import Source, initialize

    torch.set_num_threads(work.threads)
    torch.set_num_interop_threads(1)
    spec = preset(work.model)
    model = build(spec, work.norm)
    initialize(model, 0)
    layout = torch.channels_last if peer.memory_format == "channels_last" else torch.contiguous_format
    shape = tuple(spec["input"])
    images = len(shape) == 3
    if images:
        model = model.to(memory_format=layout)
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
        foreach=peer.implementation == "foreach", fused=peer.implementation == "fused",
    )  # fmt: skip
    inputs, labels = Source("synthetic", shape, spec["classes"]).batch(0, work.batch)
    here = torch.empty_like(inputs, memory_format=layout) if images else torch.empty_like(inputs)
    forward = torch.compile(model) if peer.compiled else model

    def step() -> None:
        here.copy_(inputs)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(forward(here), labels).backward()
        optimizer.step()

    def window(least_seconds: float, least_steps: int) -> float:
        begin, steps = time.perf_counter(), 0
        while steps < least_steps or time.perf_counter() - begin < least_seconds:
            step()
            steps += 1
        return (time.perf_counter() - begin) / steps * 1e3

    window(WARM_UP_SECONDS, WARM_UP_STEPS)
    return window(seconds, 5)


def run_pytorch(work: Work, peer: Peer, seconds: float, core: int) -> float:
    """The same in a new process."""
    task = json.dumps({"work": asdict(work), "peer": asdict(peer), "seconds": seconds, "core": core})
    done = subprocess.run([sys.executable, __file__, "--task", task], check=True, capture_output=True, text=True)
    return float(done.stdout)


SCENARIO = """
name = "step-speed"
question = "How long does a step take?"
kind = "train"
[model]
preset = "{model}"
norm = "{norm}"
[data]
source = "synthetic"
batch_size = {batch}
[train]
optimizer = {{ sgd = {{ learning_rate = {learning_rate}, momentum = {momentum}, weight_decay = {weight_decay} }} }}
[parallel]
strategy = "single"
devices = 1
[measure]
smoke = true
repeats = 1
steps = 5
min_time = "{seconds}s"
warmup_steps = {warm_up_steps}
warmup_time = "{warm_up_seconds}s"
trace_steps = 0
timeout = "10m"
"""


def run_syncmark(work: Work, seconds: float, binary: Path) -> float:
    """Milliseconds of a step of syncmark."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "step-speed.toml"
        scenario.write_text(
            SCENARIO.format(
                model=work.model, norm=work.norm, batch=work.batch, seconds=seconds, learning_rate=LEARNING_RATE,
                momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, warm_up_steps=WARM_UP_STEPS, warm_up_seconds=WARM_UP_SECONDS,
            )  # fmt: skip
        )
        out = Path(folder) / "out"
        command = [str(binary), "run", "--quiet", "--out", str(out), str(scenario)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        (table,) = out.glob("*/repeats.csv")
        (row,) = csv.DictReader(table.open())
        return int(row["window_ns"]) / int(row["steps"]) / 1e6


def compare(work: Work, options: argparse.Namespace) -> None:
    """Print a row of the table."""
    peers = PEERS if work.model != "mlp" else PEERS[:2]
    if options.compile:
        peers = [replace(peer, compiled=True) for peer in peers]
    trials = {peer: run_pytorch(work, peer, options.seconds / 2, options.core) for peer in peers}
    peer = min(trials, key=trials.__getitem__)
    found = alternate(
        lambda: {"step": run_syncmark(work, options.seconds, options.syncmark)},
        lambda: {"step": run_pytorch(work, peer, options.seconds, options.core)},
        options.pairs,
    )
    print(f"| {work.name} | {peer.name} | {found['step'].cells()} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], help="rows; all unless given")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--core", type=int, default=0, help="where PyTorch runs; syncmark takes the first of its affinity mask")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--syncmark", type=Path, default=ROOT / "target" / "release" / "syncmark")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        print(time_pytorch(Work(**task["work"]), Peer(**task["peer"]), task["seconds"], task["core"]))
        return
    print("| step | PyTorch | syncmark / PyTorch | ms | PyTorch's ms |\n|---|---|---:|---:|---:|", flush=True)
    for name in options.works or WORKS:
        compare(WORKS[name], options)


if __name__ == "__main__":
    main()
