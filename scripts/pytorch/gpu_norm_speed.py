"""How long a norm takes on a GPU, forward and backward, in syncmark and in PyTorch: alternating runs, paired ratios.

    python scripts/pytorch/gpu_norm_speed.py [NORM ...] [--channels 64] [--pairs 6] [--seconds 1] [--syncmark target/release/syncmark]

Contract: both sides normalize one batch of images again and again on the first GPU, in training mode, with affine parameters, forward and
backward to the input and the parameters. (256, 64, 112, 112) is 784 MiB and (256, 256, 28, 28) 196 MiB: the caches of GPUs hold 50 to 126. PyTorch's
layout is the faster of contiguous and channels_last, its modules those of norm_speed.py, found by a first round; its time is that
between CUDA events, the median of forward and backward together. Syncmark's is that of the norm's node in a training step of a model that
is little else (kind layer-cost), between CUDA events as well, the sum of the medians of both directions. Before each, another kernel has
written the norm's input.
The last columns are what the pass table of METHODOLOGY.md says must be moved, over syncmark's time, and that as a share of `memory-read-write`
as the same runs measured it. Below 1 syncmark is faster.

Reference: METHODOLOGY.md, "Against PyTorch on a GPU" and "Cost by node".
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

from norm_speed import LAYOUTS, MODULES, PASSES, SCENARIO, SHAPES
from paired import Served, alternate, fastest
from syncmark import BINARY, ran, rows

BATCH = 256
WARM_UP_TIMES = 15
LEAST_TIMES = 20


def serve(norm: str, shape: tuple[int, int, int], layout: str, how: str) -> None:
    """Answer each line of standard input, a number of seconds, with the milliseconds of a forward and a backward."""
    import torch

    from model import build

    spec = {"name": "norm", "input": list(shape), "classes": 2, "layers": ["norm"]}
    module = (build(spec, norm) if how != "GroupNorm(1)" else torch.nn.GroupNorm(1, shape[0])).cuda().train()
    memory_format = getattr(torch, "channels_last" if layout == "channels_last" else "contiguous_format")
    make = lambda: torch.randn(BATCH, *shape, device="cuda").to(memory_format=memory_format)  # noqa: E731
    before, x, d_y = make(), make().requires_grad_(), make()
    event = lambda: torch.cuda.Event(enable_timing=True)  # noqa: E731

    def once() -> float:
        x.grad = None
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch.clamp_min(before, 0.0, out=x.detach())
        marks = [event() for _ in range(4)]
        marks[0].record()
        y = module(x)
        marks[1].record()
        with torch.no_grad():
            y.mean((2, 3))
        marks[2].record()
        y.backward(d_y)
        marks[3].record()
        torch.cuda.synchronize()
        return marks[0].elapsed_time(marks[1]) + marks[2].elapsed_time(marks[3])

    for _ in range(WARM_UP_TIMES):
        once()
    for line in sys.stdin:
        times = [once() for _ in range(LEAST_TIMES)]
        times += [once() for _ in range(int(float(line) * 1e3 / max(0.5, statistics.median(times)) / 4))]
        print(statistics.median(times), flush=True)


def served(norm: str, shape: tuple[int, int, int], peer: tuple[str, str]) -> Served:
    """Start PyTorch; the peer is a module and a layout."""
    how, layout = peer
    return Served(__file__, json.dumps([norm, shape, layout, how]))


def run_syncmark(norm: str, shape: tuple[int, int, int], options: argparse.Namespace, bandwidths: list[float]) -> float:
    """Milliseconds of the norm's node, forward and backward; what the GPU's memory carries meanwhile is added to `bandwidths`."""
    scenario = SCENARIO.format(norm=norm, shape=list(shape), batch=BATCH, seconds=options.seconds / 2)
    with ran(options.syncmark, scenario, "layers.csv", further=("--backend", "cuda")) as table:
        nodes = [row for row in rows(table) if row["node"] == "1"]
        ceilings = [row for row in rows(table.parent / "ceilings.csv") if row["ceiling"] == "memory-read-write"]
    if {row["direction"] for row in nodes} != {"forward", "backward"}:
        sys.exit(f"the norm's node was not timed in both directions: {nodes}")
    bandwidths += [float(row["median"]) for row in ceilings]
    return sum(int(row["time_ns_p50"]) for row in nodes) / 1e6


def compare(norm: str, shape: tuple[int, int, int], options: argparse.Namespace) -> None:
    """Print a row of the table."""

    def once(peer: tuple[str, str]) -> float:
        torch = served(norm, shape, peer)
        took = torch.ask(options.seconds / 4)
        torch.end()
        return took

    peer = fastest(itertools.product(MODULES.get(norm, ("",)), LAYOUTS), once)
    torch = served(norm, shape, peer)
    bandwidths: list[float] = []
    found = alternate(
        lambda: {"norm": run_syncmark(norm, shape, options, bandwidths)},
        lambda: {"norm": torch.ask(options.seconds)},
        options.pairs,
    )["norm"]
    torch.end()
    elements = BATCH * shape[0] * shape[1] * shape[2]
    rate = PASSES[norm] * elements * 4 / (found.ours * 1e-3)
    where = "×".join(map(str, (BATCH, *shape)))
    name = ", ".join(filter(None, peer))
    share = rate / statistics.median(bandwidths)
    print(f"| {norm}, {where} | {name} | {found.cells()} | {rate / 1e9:.3g} | {share:.0%} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("norms", nargs="*", choices=[*PASSES, []], help="rows; all unless given")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--channels", type=int, choices=[shape[0] for shape in SHAPES], help="only the images of so many")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side of a pair")
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        norm, shape, layout, how = json.loads(options.task)
        serve(norm, tuple(shape), layout, how)
        return
    print("| norm | PyTorch | syncmark / PyTorch | ms | PyTorch's ms | GB/s | of the ceiling |\n|---|---|---:|---:|---:|---:|---:|", flush=True)
    for shape in (shape for shape in SHAPES if options.channels in (None, shape[0])):
        for norm in options.norms or PASSES:
            compare(norm, shape, options)


if __name__ == "__main__":
    main()
