"""How long a norm takes on a GPU, forward and backward, in syncmark and in PyTorch: alternating runs, paired ratios.

    python scripts/pytorch/gpu_norm_speed.py [SHAPE ...] [--norms batch layer] [--pairs 1] [--seconds 0.5] [--syncmark target/release/syncmark]

Contract: both sides normalize one batch again and again on the first GPU in fp32, in training mode, with affine parameters, forward and backward
to the input and the parameters. Images are (256, 64, 112, 112), 784 MiB a value, and (1024, 256, 28, 28), as many; tokens are 32 or 256 sequences
of 512 positions of 768 features, 48 and 384 MiB. A norm's input, output and both gradients are at least four times the cache of a GPU that holds 50 MB.
PyTorch's layout is the faster of contiguous and channels_last, its modules those of norm_speed.py, found by a first round; its time is that
between CUDA events, the median of forward and backward together, in iterations that wait on the GPU for the host to have enqueued them. Syncmark's is that of the
norm's node in a training step of a model of all of them, one behind the other (kind layer-cost), between CUDA events as well, the sum of the medians
of both directions. Before each, another kernel has written the norm's input.
The last columns are what the pass table of METHODOLOGY.md says must be moved, over syncmark's time, and that as a share of `memory-read-write`
as the same runs measured it. Below 1 syncmark is faster. One pair of everything takes about a minute; more give a range, six an interval. Kernels should have been compiled before (`syncmark doctor` does not;
any run with `--backend cuda` does).

Reference: METHODOLOGY.md, "Against PyTorch on a GPU" and "Cost by node".
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from norm_speed import LAYOUTS, MODULES, PASSES
from paired import Served, alternate
from syncmark import BINARY, ran, rows

# Iterations that are enqueued before the GPU begins with the first, and for how long it is kept from it, in cycles: some milliseconds.
TOGETHER = 10
HELD_CYCLES = 10_000_000
WARM_UP_TIMES = 2
LEAST_TIMES = 2


@dataclass(frozen=True)
class Shape:
    """A batch, the norms that are read on it, and the layers that make it of what the data has."""

    batch: int
    dims: tuple[int, ...]
    norms: tuple[str, ...]
    model: str

    def elements(self) -> int:
        """How many values a norm has."""
        product = self.batch
        for side in self.dims:
            product *= side
        return product


# The first layer has parameters, so that the norm behind it has an input whose gradient is wanted.
IMAGES = 'input = [4, {1}, {2}]\nclasses = 2\nlayers = [{{ conv2d = {{ channels = {0}, kernel = 1 }} }}, {norms}, "global-average-pool", {{ linear = {{ features = "classes" }} }}]'
TOKENS = 'input = [{0}]\nclasses = 64\nlayers = [{{ embedding = {{ vocabulary = "classes", features = {1}, padding = 0 }} }}, {norms}, {{ linear = {{ features = "classes" }} }}]'
SHAPES = {
    "images-64": Shape(256, (64, 112, 112), tuple(PASSES), IMAGES),
    "images-256": Shape(1024, (256, 28, 28), tuple(PASSES), IMAGES),
    "tokens-32": Shape(32, (512, 768), ("layer", "rms"), TOKENS),
    "tokens-256": Shape(256, (512, 768), ("layer", "rms"), TOKENS),
}
SCENARIO = """
name = "norm-speed"
question = "How long does a norm take?"
kind = "layer-cost"
[model]
{model}
[data]
source = "synthetic"
batch_size = {batch}
[measure]
smoke = true
repeats = 1
steps = 10
min_time = "{seconds}s"
warmup_steps = 5
warmup_time = "100ms"
trace_steps = 0
timeout = "10m"
"""


def prepare(norm: str, shape: Shape, layout: str, how: str):  # noqa: ANN201
    """Return a function that enqueues an iteration and returns its events: before and behind forward, before and behind backward."""
    import torch

    from model import build

    if shape.model == TOKENS:
        width = shape.dims[-1]
        module = torch.nn.LayerNorm(width) if norm == "layer" else torch.nn.RMSNorm(width)
    elif how == "GroupNorm(1)":
        module = torch.nn.GroupNorm(1, shape.dims[0])
    else:
        module = build({"name": "norm", "input": list(shape.dims), "classes": 2, "layers": ["norm"]}, norm)
    module = module.cuda().train()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    make = lambda: torch.randn(shape.batch, *shape.dims, device="cuda").to(memory_format=memory_format)  # noqa: E731
    before, x, d_y = make(), make().requires_grad_(), make()

    def iteration() -> list[torch.cuda.Event]:
        x.grad = None
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch.clamp_min(before, 0.0, out=x.detach())
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        marks[0].record()
        y = module(x)
        marks[1].record()
        with torch.no_grad():
            y.mean(tuple(range(2, y.dim())))
        marks[2].record()
        y.backward(d_y)
        marks[3].record()
        return marks

    return iteration


def serve() -> None:
    """Answer each line of standard input, a task, with the milliseconds of a forward and a backward."""
    import torch

    for line in sys.stdin:
        norm, shape, layout, how, seconds = json.loads(line)
        iteration = prepare(norm, SHAPES[shape], layout, how)

        def together(iteration=iteration) -> list[float]:  # noqa: ANN001
            torch.cuda._sleep(HELD_CYCLES)  # noqa: SLF001
            found = [iteration() for _ in range(TOGETHER)]
            torch.cuda.synchronize()
            return [marks[0].elapsed_time(marks[1]) + marks[2].elapsed_time(marks[3]) for marks in found]

        for _ in range(WARM_UP_TIMES):
            took = together()
        rounds = max(LEAST_TIMES, int(seconds * 1e3 / (2 * TOGETHER * statistics.median(took))))
        print(statistics.median(itertools.chain.from_iterable(together() for _ in range(rounds))), flush=True)
        # Memory is syncmark's meanwhile.
        del iteration, together
        torch.cuda.empty_cache()


def run_syncmark(name: str, norms: list[str], options: argparse.Namespace, bandwidths: list[float]) -> dict[str, float]:
    """Milliseconds of each norm's node, forward and backward; what the GPU's memory carries meanwhile is added to `bandwidths`."""
    shape = SHAPES[name]
    layers = ", ".join(f"{{ {norm}-norm = {{}} }}" for norm in norms)
    scenario = SCENARIO.format(model=shape.model.format(*shape.dims, norms=layers), batch=shape.batch, seconds=options.seconds)
    with ran(options.syncmark, scenario, "layers.csv", further=("--backend", "cuda")) as table:
        nodes = [row for row in rows(table) if row["layer"].endswith("-norm")]
        ceilings = [row for row in rows(table.parent / "ceilings.csv") if row["ceiling"] == "memory-read-write"]
    found = {norm: {row["direction"]: int(row["time_ns_p50"]) for row in nodes if row["layer"] == f"{norm}-norm"} for norm in norms}
    if any(times.keys() != {"forward", "backward"} for times in found.values()):
        sys.exit(f"not every norm's node was timed in both directions: {nodes}")
    bandwidths += [float(row["median"]) for row in ceilings]
    return {norm: sum(times.values()) / 1e6 for norm, times in found.items()}


def compare(name: str, torch: Served, options: argparse.Namespace) -> None:
    """Print a shape's rows of the table."""
    shape = SHAPES[name]
    norms = [norm for norm in shape.norms if norm in options.norms]
    images = shape.model == IMAGES
    peers: dict[str, tuple[str, str]] = {}
    for norm in norms:
        candidates = list(itertools.product(MODULES.get(norm, ("",)) if images else ("",), LAYOUTS if images else ("contiguous",)))
        first = lambda peer, norm=norm: torch.ask(json.dumps([norm, name, peer[1], peer[0], options.seconds / 4]))  # noqa: E731
        peers[norm] = min(candidates, key=first) if len(candidates) > 1 else candidates[0]
    bandwidths: list[float] = []
    found = alternate(
        lambda: run_syncmark(name, norms, options, bandwidths),
        lambda: {norm: torch.ask(json.dumps([norm, name, peers[norm][1], peers[norm][0], options.seconds / 2])) for norm in norms},
        options.pairs,
    )
    where = "×".join(map(str, (shape.batch, *shape.dims)))
    for norm in norms:
        rate = PASSES[norm] * shape.elements() * 4 / (found[norm].ours * 1e-3)
        peer = ", ".join(filter(None, peers[norm]))
        share = rate / statistics.median(bandwidths)
        print(f"| {norm}, {where} | {peer} | {found[norm].cells()} | {rate / 1e9:.3g} | {share:.0%} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], help="shapes; all unless given")
    parser.add_argument("--norms", nargs="+", choices=list(PASSES), default=list(PASSES), help="rows; all unless given")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side of a pair")
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        serve()
        return
    torch = Served(__file__, "serve")
    print("| norm | PyTorch | syncmark / PyTorch | ms | PyTorch's ms | GB/s | of the ceiling |\n|---|---|---:|---:|---:|---:|---:|", flush=True)
    for name in options.shapes or SHAPES:
        if set(SHAPES[name].norms) & set(options.norms):
            compare(name, torch, options)
    torch.end()


if __name__ == "__main__":
    main()
