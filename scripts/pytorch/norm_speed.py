"""How long a norm takes forward and backward in syncmark and in PyTorch: alternating runs, paired ratios.

    python scripts/pytorch/norm_speed.py [NORM ...] [--channels 64] [--pairs 10] [--seconds 2] [--syncmark target/release/syncmark]

Contract: both sides normalize one batch of images again and again on one core, in training mode, with affine parameters, forward and
backward to the input and the parameters. The images are large: (64, 64, 112, 112) is 196 MiB and (64, 256, 28, 28)
49 MiB. PyTorch's layout is the faster of contiguous and channels_last, its memory given back or kept, whichever is faster, found
by a first round. PyTorch has no module of LayerNorm or RMSNorm over images with a scale per channel: they are composed of
functional.layer_norm or rms_norm and what the scale takes, or where that is faster GroupNorm of one group, which is the same LayerNorm. Both are warm before they are timed.
Syncmark's time is that of the norm's node in a training step of a model that is little else (kind layer-cost), the sum of the medians of
forward and backward; PyTorch's is the median of both together, module and autograd.
The last columns are what the pass table of METHODOLOGY.md says must be moved, over syncmark's time, and that as a share of
`memory-read-write` as `syncmark ceilings` measured it before and after the pairs. Below 1 syncmark is faster.

Reference: METHODOLOGY.md, "Against PyTorch" and "Cost by node".
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from paired import SURROUNDINGS, alternate, beside, fastest
from syncmark import BINARY, ceiling, ran, rows

BATCH = 64
SHAPES = ((64, 112, 112), (256, 28, 28))
PASSES = {"batch": 8, "layer": 5, "instance": 5, "group": 5, "rms": 5}
LAYOUTS = ("contiguous", "channels_last")
# One module that computes the same as the builder's composition, where there is one.
MODULES = {"layer": ("composed", "GroupNorm(1)"), "rms": ("composed",)}
WARM_UP_SECONDS = 0.5
# PyTorch takes new memory now and then in its first iterations, and a page that is touched for the first time costs more than the norm does: iterations of
# half a second between others of 70 ms, up to the ninth.
WARM_UP_TIMES = 15
LEAST_TIMES = 10


def time_pytorch(norm: str, shape: tuple[int, int, int], layout: str, how: str, seconds: float, core: int) -> float:
    """Milliseconds of a forward and a backward of PyTorch in this process, which is its own."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    import torch  # after the affinity, which its thread pools inherit

    from model import build

    torch.set_num_threads(1)
    spec = {"name": "norm", "input": list(shape), "classes": 2, "layers": ["norm"]}
    module = build(spec, norm).train() if how != "GroupNorm(1)" else torch.nn.GroupNorm(1, shape[0])
    memory_format = getattr(torch, "channels_last" if layout == "channels_last" else "contiguous_format")
    make = lambda: torch.randn(BATCH, *shape).to(memory_format=memory_format)  # noqa: E731
    before, x, d_y = make(), make().requires_grad_(), make()
    after = torch.randn(BATCH, shape[0], 1, 1)
    times: list[float] = []
    warm = 0
    begin = time.perf_counter()
    while warm == 0 or len(times) < warm + LEAST_TIMES or time.perf_counter() - begin < seconds:
        x.grad = None
        module.zero_grad(set_to_none=True)
        # What the layers around it do in a step, which is not timed: lines that they have just written are in the cache, and whoever
        # comes next has to write them back.
        with torch.no_grad():
            torch.clamp_min(before, 0.0, out=x.detach())
        start = time.perf_counter()
        y = module(x)
        forward = time.perf_counter() - start
        with torch.no_grad():
            y.mean((2, 3))
            d_y.copy_(after.expand_as(d_y))
        start = time.perf_counter()
        y.backward(d_y)
        times.append(forward + time.perf_counter() - start)
        if warm == 0 and len(times) >= WARM_UP_TIMES and time.perf_counter() - begin > WARM_UP_SECONDS:
            warm, begin = len(times), time.perf_counter()
    return statistics.median(times[warm:]) * 1e3


def run_pytorch(norm: str, shape: tuple[int, int, int], peer: tuple[str, str, str], seconds: float, core: int) -> float:
    """The same in a new process; the peer is a module, a layout and its surroundings."""
    how, layout, around = peer
    task = json.dumps([norm, shape, layout, how, seconds, core])
    done = subprocess.run(
        [sys.executable, __file__, "--task", task], capture_output=True, text=True, env=os.environ | SURROUNDINGS[around]
    )
    if done.returncode:
        sys.exit(f"PyTorch failed with status {done.returncode}:\n{done.stderr}")
    return float(done.stdout)


SCENARIO = """
name = "norm-speed"
question = "How long does a norm take?"
kind = "layer-cost"
[model]
norm = "{norm}"
input = {shape}
classes = 2
layers = ["relu", "norm", "global-average-pool", {{ linear = {{ features = "classes" }} }}]
[data]
source = "synthetic"
batch_size = {batch}
[measure]
smoke = true
repeats = 1
steps = 10
min_time = "{seconds}s"
warmup_steps = 15
warmup_time = "100ms"
trace_steps = 0
timeout = "10m"
"""


def run_syncmark(norm: str, shape: tuple[int, int, int], seconds: float, binary: Path) -> float:
    """Milliseconds of the norm's node, forward and backward."""
    scenario = SCENARIO.format(norm=norm, shape=list(shape), batch=BATCH, seconds=seconds / 2)
    with ran(binary, scenario, "layers.csv") as table:
        nodes = [row for row in rows(table) if row["node"] == "1"]
    if {row["direction"] for row in nodes} != {"forward", "backward"}:
        sys.exit(f"the norm's node was not timed in both directions: {nodes}")
    return sum(int(row["time_ns_p50"]) for row in nodes) / 1e6


def compare(norm: str, shape: tuple[int, int, int], options: argparse.Namespace) -> None:
    """Print a row of the table."""
    run = lambda peer: run_pytorch(norm, shape, peer, options.seconds / 2, options.core)  # noqa: E731
    peers = itertools.product(MODULES.get(norm, ("",)), LAYOUTS, ("memory kept",))
    how, layout, _ = fastest(peers, run)
    peer = fastest([(how, layout, around) for around in SURROUNDINGS], run)
    found, bandwidth = beside(
        lambda: ceiling(options.syncmark, "memory-read-write", 1),
        lambda: alternate(
            lambda: {"norm": run_syncmark(norm, shape, options.seconds, options.syncmark)},
            lambda: {"norm": run_pytorch(norm, shape, peer, options.seconds, options.core)},
            options.pairs,
        )["norm"],
    )
    elements = BATCH * shape[0] * shape[1] * shape[2]
    rate = PASSES[norm] * elements * 4 / (found.ours * 1e-3) / 1e9
    where = "×".join(map(str, (BATCH, *shape)))
    name = ", ".join(filter(None, peer))
    share = rate * 1e9 / bandwidth
    print(f"| {norm}, {where} | {name} | {found.cells()} | {rate:.3g} | {share:.0%} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("norms", nargs="*", choices=[*PASSES, []], help="rows; all unless given")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--channels", type=int, choices=[shape[0] for shape in SHAPES], help="only the images of so many")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side of a pair")
    parser.add_argument("--core", type=int, default=0, help="where PyTorch runs; syncmark takes the first of its affinity mask")
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        norm, shape, layout, how, seconds, core = json.loads(options.task)
        print(time_pytorch(norm, tuple(shape), layout, how, seconds, core))
        return
    print("| norm | PyTorch | syncmark / PyTorch | ms | PyTorch's ms | GB/s | of the ceiling |\n|---|---|---:|---:|---:|---:|---:|", flush=True)
    for shape in (shape for shape in SHAPES if options.channels in (None, shape[0])):
        for norm in options.norms or PASSES:
            compare(norm, shape, options)


if __name__ == "__main__":
    main()
