"""How long a training step takes in syncmark and in PyTorch: alternating runs, the median of paired ratios and its interval.

    python scripts/pytorch/step_speed.py [WORK ...] [--pairs 10] [--seconds 3] [--syncmark target/release/syncmark]

Contract: both sides train the same model file at the same batch with the same optimizer on the same cores, in processes of their own
for every measurement: one thread on one core, two threads on two, or two ranks of DistributedDataParallel with a core each,
where PyTorch's talk through Gloo, syncmark's through shared memory (or TCP as Gloo does, with --transport tcp), and the batch
is that of a rank. A step is: copy the batch to where the model reads it, zero the gradients, forward, mean
cross-entropy, backward, update; nobody reads the loss. PyTorch has its inputs in its own layout, replaces what a ReLU reads, and runs as it
is fastest here: contiguous or channels_last, foreach or fused optimizer, gradients set to none, its memory given back or kept, threads
bound or not, spinning or asleep. A first round finds the layout and the optimizer, a second one the rest, and the table says which.
Ranks use `gradient_as_bucket_view`, a static graph where that is faster, and otherwise the defaults of both. With --compile the peer is `torch.compile` of the same.
PyTorch trains on one batch that stays where it is, syncmark on the next of as many as fit 256 MiB. Models of tokens predict every position of
sequences without padding, so PyTorch's attention gets no mask. Below 1 syncmark is faster.
The last column is the rate of syncmark's multiplications and additions in convolutions and linear layers over the whole step's time (counted by
PyTorch's FlopCounterMode) as a share of `multiply-add`, as `syncmark ceilings` measured it before and after the pairs.

Reference: METHODOLOGY.md, "Against PyTorch"; torch.optim.SGD's arguments foreach and fused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paired import SURROUNDINGS, SURROUNDINGS_OF_THREADS, alternate, beside, fastest, free_port, leave, told_by
from syncmark import BINARY, ceiling, ran, rows, training

if TYPE_CHECKING:
    from torch import Tensor

WARM_UP_SECONDS = 1.0
# PyTorch takes new memory now and then in its first steps, and pages that are touched for the first time make those of resnet18 5 % longer.
WARM_UP_STEPS = 10
# Of a window, where its seconds hold fewer.
LEAST_STEPS = 5
# Those of the scenario.
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
    ranks: int = 1

    @property
    def tokens(self) -> bool:
        """Say whether the model reads tokens."""
        return self.model.startswith("bert")

    @property
    def name(self) -> str:
        """Name it as on the command line."""
        threads = f"-{self.threads}-threads" if self.threads > 1 else ""
        return f"{self.model}-{self.norm}-{self.batch}{threads}" + (f"-{self.ranks}-ranks" if self.ranks > 1 else "")


ALONE = (
    Work("mlp", "batch", 128),
    Work("resnet20", "batch", 64),
    Work("resnet20", "group", 64),
    Work("resnet18", "batch", 8),
    Work("bert-mini", "layer", 8),
)
WORKS = {
    work.name: work
    for work in (
        *ALONE,
        *(replace(work, threads=2) for work in ALONE),
        *(replace(work, ranks=2) for work in ALONE),
    )
}


@dataclass(frozen=True)
class Peer:
    """One way to run PyTorch."""

    memory_format: str
    implementation: str
    compiled: bool = False
    surroundings: str = ""
    static_graph: bool = False

    @property
    def name(self) -> str:
        """Name it as in the table."""
        further = (", compiled" if self.compiled else "") + (f", {self.surroundings}" if self.surroundings else "")
        further += ", static graph" if self.static_graph else ""
        return f"{self.memory_format}, {self.implementation}{further}"


PEERS = [Peer(layout, how) for layout, how in itertools.product(("contiguous", "channels_last"), ("foreach", "fused"))]


def time_pytorch(work: Work, peer: Peer, seconds: float, core: int, rank: int, port: int) -> float:
    """Milliseconds of a step of PyTorch in this process, which is its own; of the slowest rank, on rank 0."""
    mask = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, mask[core + rank : core + rank + work.threads])
    import torch  # after the affinity, which its thread pools inherit
    from torch import distributed

    from layers import Embedding
    from model import build, preset
    from training import loss_of

    torch.set_num_threads(work.threads)
    torch.set_num_interop_threads(1)
    # Values don't matter here, and those that syncmark draws take seconds to make.
    torch.manual_seed(rank)
    spec = preset(work.model)
    model = build(spec, work.norm)
    layout = torch.channels_last if peer.memory_format == "channels_last" else torch.contiguous_format
    shape = tuple(spec["input"])
    images = len(shape) == 3
    if images:
        model = model.to(memory_format=layout)
    # Nobody else reads what a ReLU of these models replaces.
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
        if isinstance(module, Embedding):
            # There is no padding in these batches, and without any PyTorch needs no mask.
            module.padding_idx = None
    model.train()
    if work.ranks > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=work.ranks)
        model = torch.nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, static_graph=peer.static_graph
        )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
        foreach=peer.implementation == "foreach", fused=peer.implementation == "fused",
    )  # fmt: skip
    inputs, labels = random_batch(work, spec)
    if images:
        inputs = inputs.to(memory_format=layout)
    here = torch.empty_like(inputs)
    forward = torch.compile(model) if peer.compiled else model

    def step() -> None:
        here.copy_(inputs)
        optimizer.zero_grad(set_to_none=True)
        loss_of(forward(here), labels).backward()
        optimizer.step()

    def window(least_seconds: float, least_steps: int) -> float:
        begin, steps = time.perf_counter(), 0
        while steps < least_steps or time.perf_counter() - begin < least_seconds:
            step()
            steps += 1
        return (time.perf_counter() - begin) / steps * 1e3

    # Before the clock of the warm-up starts: compilation is no warm-up.
    for _ in range(WARM_UP_STEPS):
        step()
    if work.ranks == 1:
        window(WARM_UP_SECONDS, 0)
        return window(seconds, LEAST_STEPS)

    def agreed(value: float, how: distributed.ReduceOp) -> float:
        told = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(told, how)
        return float(told)

    # All ranks make as many steps: those that the slowest would take for each window.
    pace = agreed(window(0.0, 2), distributed.ReduceOp.MAX)
    window(0.0, max(1, int(WARM_UP_SECONDS * 1e3 / pace)))
    pace = agreed(window(0.0, 2), distributed.ReduceOp.MAX)
    distributed.barrier()
    took = window(0.0, max(LEAST_STEPS, int(seconds * 1e3 / pace)))
    return agreed(took, distributed.ReduceOp.MAX)


def random_batch(work: Work, spec: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch; of tokens, words at every position."""
    import torch

    shape, classes = (work.batch, *spec["input"]), spec["classes"]
    if work.tokens:
        return torch.randint(2, classes, shape), torch.randint(2, classes, shape)
    return torch.randn(shape), torch.randint(classes, (work.batch,))


def operations(work: Work) -> int:
    """Multiplications and additions of matrix products and convolutions in a step of all ranks, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from model import build, preset
    from training import loss_of

    spec = preset(work.model)
    inputs, labels = random_batch(work, spec)
    with FlopCounterMode(display=False) as counter:
        loss_of(build(spec, work.norm).train()(inputs), labels).backward()
    return counter.get_total_flops() * work.ranks


def run_pytorch(work: Work, peer: Peer, seconds: float, core: int) -> float:
    """The same in new processes."""
    task = {"work": asdict(work), "peer": asdict(peer), "seconds": seconds, "core": core, "port": free_port()}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "--task", json.dumps(task | {"rank": rank})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | SURROUNDINGS_OF_THREADS[peer.surroundings],
        )  # fmt: skip
        for rank in range(work.ranks)
    ]
    return float(told_by(ranks))


def run_syncmark(work: Work, seconds: float, binary: Path, transport: str) -> float:
    """Milliseconds of a step of syncmark."""
    scenario = training(
        "step-speed", work.model, work.norm, work.batch, seconds, ranks=work.ranks, threads=work.threads, transport=transport,
        data='predict = "all"' if work.tokens else "", steps=LEAST_STEPS, warm_up_steps=WARM_UP_STEPS,
        warm_up_seconds=WARM_UP_SECONDS,
    )  # fmt: skip
    with ran(binary, scenario, "repeats.csv") as table:
        (row,) = rows(table)
    if row["outcome"] not in ("passed", "unsteady", "disturbed"):
        sys.exit(f"syncmark: {work.name} {row['outcome']}: {row['reason']}")
    return int(row["window_ns"]) / int(row["steps"]) / 1e6


def compare(work: Work, options: argparse.Namespace) -> None:
    """Print a row of the table."""
    peers = PEERS if work.model != "mlp" and not work.tokens else PEERS[:2]
    peers = [replace(peer, compiled=options.compile, surroundings="memory kept") for peer in peers]
    run = lambda peer: run_pytorch(work, peer, options.seconds / 2, options.core)  # noqa: E731
    surroundings = SURROUNDINGS_OF_THREADS if work.threads > 1 else SURROUNDINGS
    peer = fastest(peers, run)
    peer = fastest([replace(peer, surroundings=around) for around in surroundings], run)
    if work.ranks > 1:
        peer = fastest([replace(peer, static_graph=static) for static in (False, True)], run)
    found, peak = beside(
        lambda: ceiling(options.syncmark, "multiply-add", work.threads * work.ranks),
        lambda: alternate(
            lambda: {"step": run_syncmark(work, options.seconds, options.syncmark, options.transport)},
            lambda: {"step": run_pytorch(work, peer, options.seconds, options.core)},
            options.pairs,
        ),
    )
    share = operations(work) / (found["step"].ours * 1e-3) / peak
    print(f"| {work.name} | {peer.name} | {found['step'].cells()} | {share:.0%} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], help="rows; all unless given")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--core", type=int, default=0, help="where PyTorch runs; syncmark takes the first of its affinity mask")
    parser.add_argument("--transport", choices=["shared", "tcp"], default="shared", help="of syncmark's ranks")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        work, peer = Work(**task["work"]), Peer(**task["peer"])
        print(time_pytorch(work, peer, task["seconds"], task["core"], task["rank"], task["port"]))
        leave()
    print("| step | PyTorch | syncmark / PyTorch | ms | PyTorch's ms | of the peak |\n|---|---|---:|---:|---:|---:|", flush=True)
    for name in options.works or WORKS:
        compare(WORKS[name], options)


if __name__ == "__main__":
    main()
