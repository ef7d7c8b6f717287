"""How long an all-reduce between two processes takes in syncmark and in PyTorch's Gloo: alternating runs, paired ratios.

    python scripts/pytorch/collective_speed.py [--pairs 10] [--ranks 2] [--transport shared] [--syncmark target/release/syncmark]

Contract: both sides reduce the same number of float32 in place between processes pinned to a core each, back to back: time is
the median of many calls, on the rank where it is longest. Gloo runs over its TCP pair on the loopback interface, which is the only
transport of PyTorch's build. Below 1 syncmark is faster. Syncmark also checks every result; the check is not in its time.

Reference: METHODOLOGY.md, "Against PyTorch"; torch.distributed's backend gloo.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paired import alternate

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = {"4 KiB": 4 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20}
WARM_UP = 5


def rank_of_gloo(rank: int, ranks: int, port: int, seconds: float) -> None:
    """Print seconds per call for each size, in the process of one rank."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))]})
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
    )
    for size in SIZES.values():
        values = torch.zeros(size // 4)
        for _ in range(WARM_UP):
            distributed.all_reduce(values)
        # All ranks must make as many calls: rank 0's warm speed decides.
        begin = time.perf_counter()
        distributed.all_reduce(values)
        calls = torch.tensor([max(5, int(seconds / (time.perf_counter() - begin)))])
        distributed.broadcast(calls, 0)
        distributed.barrier()
        times = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            distributed.all_reduce(values)
            times.append(time.perf_counter() - begin)
        took = torch.tensor([statistics.median(times)], dtype=torch.float64)
        distributed.all_reduce(took, distributed.ReduceOp.MAX)
        if rank == 0:
            print(took.item(), flush=True)
    distributed.destroy_process_group()


def run_gloo(ranks: int, seconds: float) -> dict[str, float]:
    """Microseconds per call by size."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(rank), "--ranks", str(ranks), "--port", str(port),
             "--seconds", str(seconds)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for rank in range(ranks)
    ]
    told = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        sys.exit("a rank of PyTorch failed")
    return {name: float(line) * 1e6 for name, line in zip(SIZES, told[0].split(), strict=True)}


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
    with tempfile.TemporaryDirectory() as folder:
        scenario, out = Path(folder) / "collective-speed.toml", Path(folder) / "out"
        scenario.write_text(
            SCENARIO.format(
                ranks=options.ranks, transport=options.transport, seconds=options.seconds, factor=4, warm_up=WARM_UP
            )
        )
        subprocess.run(
            [options.syncmark, "run", "--quiet", "--out", out, scenario], check=True, capture_output=True, text=True
        )
        (table,) = out.glob("*/collectives.csv")
        by_size = {int(row["size_bytes"]): row for row in csv.DictReader(table.open())}
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
    parser.add_argument("--syncmark", type=Path, default=ROOT / "target" / "release" / "syncmark")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank_of_gloo(options.rank, options.ranks, options.port, options.seconds)
        return
    print("| all-reduce | peer | syncmark / PyTorch | µs | PyTorch's µs |\n|---|---|---:|---:|---:|", flush=True)
    found = alternate(
        lambda: run_syncmark(options), lambda: run_gloo(options.ranks, options.seconds), options.pairs
    )
    for size, figures in found.items():
        print(f"| {options.transport}, {options.ranks} ranks, {size} | gloo | {figures.cells()} |", flush=True)


if __name__ == "__main__":
    main()
