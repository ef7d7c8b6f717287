"""How long an all-reduce between two processes takes in syncmark and in PyTorch's Gloo: alternating runs, paired ratios.

    python scripts/pytorch/collective_speed.py [--pairs 10] [--ranks 2] [--transport shared] [--syncmark target/release/syncmark]

Contract: both sides reduce the same number of float32 in place, back to back. Syncmark's processes are pinned to a core each and have up to 64
calls under way; time is that of all over their number, the median of such rounds on the rank where it is longest. Gloo has one call under
way or as many, is pinned or not, and gives its memory back or keeps it, whichever is fastest at each size (a first round of two runs each
finds out). It runs over its TCP pair on the loopback interface, which is the only transport of PyTorch's build. Below 1 syncmark is faster. Syncmark also checks every result; the check is not in its time. The last
column is a share of what `syncmark ceilings` measured before and after the pairs: of the largest size the bus bandwidth of `tcp-both-ways` or
`shared-copy`, of the smallest half of `tcp-round-trip` or `shared-round-trip` over the time of a call, which may be more than all of it
with many calls under way.

Reference: METHODOLOGY.md, "Against PyTorch"; torch.distributed's backend gloo.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from paired import SURROUNDINGS, alternate, beside, free_port, leave, told_by
from syncmark import BINARY, ceiling, ran, rows

SIZES = {"4 KiB": 4 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20}
WARM_UP = 5
# As many calls as syncmark has under way at most, unless their memory would be more than this.
UNDER_WAY = 64
LARGEST_UNDER_WAY = 64 << 20


def rank_of_gloo(rank: int, ranks: int, port: int, seconds: float, pinned: bool) -> None:
    """Print seconds per call for each size, in the process of one rank: of single calls, or of several under way, whichever is less."""
    if pinned:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
    )

    def several(tensors: list[torch.Tensor]) -> None:
        for work in [distributed.all_reduce(values, async_op=True) for values in tensors]:
            work.wait()

    def seconds_per_call(tensors: list[torch.Tensor]) -> float:
        for _ in range(WARM_UP):
            several(tensors)
        # All ranks must make as many calls: rank 0's warm speed decides.
        begin = time.perf_counter()
        several(tensors)
        rounds = torch.tensor([max(5, int(seconds / (time.perf_counter() - begin)))])
        distributed.broadcast(rounds, 0)
        distributed.barrier()
        times = []
        for _ in range(int(rounds)):
            begin = time.perf_counter()
            several(tensors)
            times.append((time.perf_counter() - begin) / len(tensors))
        took = torch.tensor([statistics.median(times)], dtype=torch.float64)
        distributed.all_reduce(took, distributed.ReduceOp.MAX)
        return took.item()

    for size in SIZES.values():
        under_way = (1, min(UNDER_WAY, max(1, LARGEST_UNDER_WAY // size)))
        took = min(seconds_per_call([torch.zeros(size // 4) for _ in range(calls)]) for calls in under_way)
        if rank == 0:
            print(took)
    leave()


def run_gloo(ranks: int, seconds: float, how: tuple[bool, str]) -> dict[str, float]:
    """Microseconds per call by size; how: pinned or not, and the surroundings."""
    pinned, around = how
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(rank), "--ranks", str(ranks), "--port", str(port),
             "--seconds", str(seconds), *(["--pinned"] if pinned else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | SURROUNDINGS[around],
        )  # fmt: skip
        for rank in range(ranks)
    ]
    return {name: float(line) * 1e6 for name, line in zip(SIZES, told_by(children).split(), strict=True)}


class Gloo:
    """Gloo as it is fastest at each size, which a first round finds."""

    def __init__(self, ranks: int, seconds: float) -> None:
        """Run the first round."""
        self.ranks, self.seconds = ranks, seconds
        hows = list(itertools.product((True, False), SURROUNDINGS))
        # Two runs each, because one is noisy.
        found = {how: [run_gloo(ranks, seconds, how) for _ in range(2)] for how in hows}
        least = {how: {size: min(run[size] for run in runs) for size in SIZES} for how, runs in found.items()}
        self.hows = {size: min(hows, key=lambda how: least[how][size]) for size in SIZES}

    def __call__(self) -> dict[str, float]:
        """Microseconds by size."""
        found = {how: run_gloo(self.ranks, self.seconds, how) for how in set(self.hows.values())}
        return {size: found[how][size] for size, how in self.hows.items()}

    def name(self, size: str) -> str:
        """What the peer of a row is."""
        pinned, around = self.hows[size]
        return ", ".join(filter(None, ("gloo", "pinned" if pinned else "not pinned", around)))


SCENARIO = """
name = "collective-speed"
question = "How long does an all-reduce take?"
kind = "collectives"
[parallel]
devices = {ranks}
launch = "processes"
transport = "{transport}"
[collectives]
operations = ["all-reduce"]
from = "4KiB"
to = "64MiB"
factor = {factor}
warmup = {warm_up}
iterations = 5
min_time = "{seconds}s"
[measure]
smoke = true
repeats = 1
timeout = "5m"
"""


def run_syncmark(options: argparse.Namespace) -> dict[str, float]:
    """Microseconds per call by size."""
    scenario = SCENARIO.format(
        ranks=options.ranks, transport=options.transport, seconds=options.seconds, factor=4, warm_up=WARM_UP
    )
    with ran(options.syncmark, scenario, "collectives.csv") as table:
        by_size = {int(row["size_bytes"]): row for row in rows(table)}
    for row in by_size.values():
        if row["checked"] != "true" or row["wrong_elements"] != "0":
            sys.exit(f"a result was wrong: {row}")
    return {name: float(by_size[size]["time_ns_p50"]) / 1e3 for name, size in SIZES.items()}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each size")
    parser.add_argument("--transport", choices=["shared", "tcp"], default="shared")
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank_of_gloo(options.rank, options.ranks, options.port, options.seconds, options.pinned)
    print("| all-reduce | peer | syncmark / PyTorch | µs | PyTorch's µs | of the ceiling |\n|---|---|---:|---:|---:|---:|", flush=True)
    floor = {"shared": "shared-copy", "tcp": "tcp-both-ways"}[options.transport]
    gloo = Gloo(options.ranks, options.seconds)
    (found, bandwidth), round_trip = beside(
        lambda: ceiling(options.syncmark, f"{options.transport}-round-trip", 2),
        lambda: beside(
            lambda: ceiling(options.syncmark, floor, 2),
            lambda: alternate(lambda: run_syncmark(options), gloo, options.pairs),
        ),
    )
    smallest, *_, largest = sorted(SIZES, key=SIZES.__getitem__)
    for size, figures in found.items():
        # Each rank sends (and receives) this many bytes: nccl-tests' bus bandwidth is these over time.
        moved = 2 * (options.ranks - 1) / options.ranks * SIZES[size]
        shares = {largest: moved / (figures.ours * 1e-6) / bandwidth, smallest: round_trip / 2 / (figures.ours * 1e3)}
        share = f"{shares[size]:.0%}" if size in shares else ""
        print(f"| {options.transport}, {options.ranks} ranks, {size} | {gloo.name(size)} | {figures.cells()} | {share} |", flush=True)


if __name__ == "__main__":
    main()
