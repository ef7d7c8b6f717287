"""How long a training step takes on a GPU in syncmark and in PyTorch: alternating runs, the median of paired ratios and its interval.

    python scripts/pytorch/gpu_step_speed.py [WORK ...] [--pairs 6] [--seconds 3] [--precision tf32|fp32|bf16] [--matmul cublas|cublaslt]
        [--syncmark target/release/syncmark]

Contract: both sides train the same model file at the same batch with the same optimizer in the same precision on the first GPU. A step is: copy
the batch from host memory to the GPU, zero the gradients, forward, mean cross-entropy, backward, update; nobody reads the loss. A window
ends when the GPU has done all of it. PyTorch copies from pinned memory without waiting, and runs as it is fastest here: contiguous or
channels_last, foreach or fused SGD, with cudnn.benchmark, gradients set to none, and its own scaled_dot_product_attention; a first round finds
which. In bf16 its forward and loss run under torch.autocast, as its users have it: it rounds each weight once a step, and keeps the results
of layer norm, group norm and embeddings in fp32, which syncmark rounds. With --compile the peer is `torch.compile` of the same, a row of its
own. PyTorch stays in one process that measures a window when it is asked to; syncmark starts anew for each, and both GPUs' clocks are as they
are. Below 1 syncmark is faster.

Reference: METHODOLOGY.md, "Against PyTorch"; torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32; torch.autocast.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from paired import Served, alternate, fastest
from step_speed import LEAST_STEPS, LEARNING_RATE, MOMENTUM, WARM_UP_SECONDS, WARM_UP_STEPS, WEIGHT_DECAY, Work, random_batch
from syncmark import BINARY, ran, rows, training

WORKS = {
    work.name: work
    for work in (
        Work("mlp", "batch", 1024),
        Work("resnet18", "batch", 256),
        Work("resnet50", "batch", 256),
        Work("resnet50", "group", 256),
        Work("bert-mini", "layer", 32),
        Work("bert-base", "layer", 32),
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


def serve(work: Work, peer: Peer, precision: str) -> None:
    """Answer each line of standard input, a number of seconds, with the milliseconds of a step in a window that long."""
    import torch

    from layers import Embedding
    from model import build, preset
    from training import loss_of

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    spec = preset(work.model)
    layout = torch.channels_last if peer.memory_format == "channels_last" else torch.contiguous_format
    images = len(spec["input"]) == 3
    model = build(spec, work.norm).cuda()
    if images:
        model = model.to(memory_format=layout)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
        if isinstance(module, Embedding):
            module.padding_idx = None
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
        foreach=peer.implementation == "foreach", fused=peer.implementation == "fused",
    )  # fmt: skip
    inputs, labels = random_batch(work, spec)
    if images:
        inputs = inputs.to(memory_format=layout)
    inputs, labels = inputs.pin_memory(), labels.pin_memory()
    here, answers = torch.empty_like(inputs, device="cuda"), torch.empty_like(labels, device="cuda")
    forward = torch.compile(model) if peer.compiled else model

    narrow = torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        here.copy_(inputs, non_blocking=True)
        answers.copy_(labels, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with narrow:
            loss = loss_of(forward(here), answers)
        loss.backward()
        optimizer.step()

    def window(steps: int) -> float:
        """Milliseconds of a step of so many, which the host enqueues without waiting for any."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps * 1e3

    def window_of(seconds: float) -> float:
        return window(max(LEAST_STEPS, int(seconds * 1e3 / window(LEAST_STEPS))))

    for _ in range(WARM_UP_STEPS):
        step()
    for line in sys.stdin:
        window_of(WARM_UP_SECONDS)
        print(window_of(float(line)), flush=True)


def served(work: Work, peer: Peer, precision: str) -> Served:
    """Start PyTorch."""
    return Served(__file__, json.dumps({"work": asdict(work), "peer": asdict(peer), "precision": precision}))


def run_syncmark(work: Work, options: argparse.Namespace) -> float:
    """Milliseconds of a step of syncmark."""
    scenario = training(
        "gpu-step-speed", work.model, work.norm, work.batch, options.seconds, data='predict = "all"' if work.tokens else "",
        steps=LEAST_STEPS, warm_up_steps=WARM_UP_STEPS, warm_up_seconds=WARM_UP_SECONDS,
    )  # fmt: skip
    further = ("--backend", "cuda", "--set", f"train.precision={options.precision}")
    if options.matmul != "cublas":
        further += ("--set", f"train.cuda_matmul={options.matmul}")
    with ran(options.syncmark, scenario, "repeats.csv", further=further) as table:
        (row,) = rows(table)
    if row["outcome"] not in ("passed", "unsteady", "disturbed"):
        sys.exit(f"syncmark: {work.name} {row['outcome']}: {row['reason']}")
    return int(row["window_ns"]) / int(row["steps"]) / 1e6


def compare(work: Work, options: argparse.Namespace) -> None:
    """Print a row of the table."""
    layouts = ("contiguous",) if work.tokens or work.model == "mlp" else ("contiguous", "channels_last")
    peers = [Peer(layout, how, options.compile) for layout, how in itertools.product(layouts, ("foreach", "fused"))]

    def once(peer: Peer) -> float:
        torch = served(work, peer, options.precision)
        took = torch.ask(options.seconds / 2)
        torch.end()
        return took

    peer = fastest(peers, once) if options.peer is None else Peer(*options.peer.split(","), options.compile)
    torch = served(work, peer, options.precision)
    found = alternate(
        lambda: {"step": run_syncmark(work, options)}, lambda: {"step": torch.ask(options.seconds)}, options.pairs
    )
    torch.end()
    ours = options.precision if options.matmul == "cublas" else f"{options.precision}, {options.matmul}"
    print(f"| {work.name}, {ours} | {peer.name} | {found['step'].cells()} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], help="rows; all unless given")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="tf32")
    parser.add_argument("--matmul", choices=["cublas", "cublaslt"], default="cublas", help="of syncmark; not with fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--peer", help="instead of a first round: channels_last,fused")
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        serve(Work(**task["work"]), Peer(**task["peer"]), task["precision"])
        return
    print("| step | PyTorch | syncmark / PyTorch | ms | PyTorch's ms |\n|---|---|---:|---:|---:|", flush=True)
    for name in options.works or WORKS:
        compare(WORKS[name], options)


if __name__ == "__main__":
    main()
