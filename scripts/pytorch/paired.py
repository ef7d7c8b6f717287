"""Two sides measured in turn: the median of their paired ratios and its interval.

Contract: side A and side B run one right after the other, in the other order every second time, so that a machine whose speed
drifts drifts for both. The interval is the 95 % expanded percentile bootstrap over pairs that reports use too, from a fixed seed; of fewer
than six pairs it is their range.

Reference: METHODOLOGY.md, "Against PyTorch".
"""

from __future__ import annotations

import itertools
import math
import os
import random
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from scipy.stats import norm, t

RESAMPLES = 10_000
TOLD = "told"
FEWEST_FOR_INTERVAL = 6

# What PyTorch's processes may run with besides nothing. Glibc gives every large tensor back to the kernel and takes new pages for the
# next, which it has to clear: more than half of the time of a norm over large images. A peer at its fastest keeps its memory, in huge
# pages, as syncmark does; and threads that wait for each other spin or sleep, whichever is faster here.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28), "THP_MEM_ALLOC_ENABLE": "1"}
SLEEPING = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
SURROUNDINGS = {"memory kept": MALLOC, "": {}}
SURROUNDINGS_OF_THREADS = SURROUNDINGS | {
    "memory kept, threads bound": MALLOC | BOUND,
    "memory kept, threads sleep": MALLOC | SLEEPING,
    "threads bound": BOUND,
    "threads sleep": SLEEPING,
}


@dataclass(frozen=True)
class Paired:
    """What came of it: ours over theirs, and the median of each side."""

    ratio: float
    low: float
    high: float
    ours: float
    theirs: float

    def cells(self) -> str:
        """Write them as cells of a table."""
        return f"{self.ratio:.3g} [{self.low:.3g}, {self.high:.3g}] | {self.ours:.4g} | {self.theirs:.4g}"


def paired(pairs: list[tuple[float, float]]) -> Paired:
    """Compare pairs of (ours, theirs)."""
    ratios = [ours / theirs for ours, theirs in pairs]
    low, high = min(ratios), max(ratios)
    if (n := len(ratios)) >= FEWEST_FOR_INTERVAL:
        source = random.Random(0)
        medians = sorted(statistics.median(source.choices(ratios, k=n)) for _ in range(RESAMPLES))
        tail = norm.cdf(-t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
        low, high = medians[int(tail * RESAMPLES)], medians[int((1 - tail) * RESAMPLES)]
    return Paired(
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        ours=statistics.median(ours for ours, _ in pairs),
        theirs=statistics.median(theirs for _, theirs in pairs),
    )


Peer = TypeVar("Peer")
Compared = TypeVar("Compared")


def fastest(peers: Iterable[Peer], run: Callable[[Peer], float]) -> Peer:
    """The peer that takes least; the two that took least in one run have a second one each, because one run is noisy."""
    times = {peer: run(peer) for peer in peers}
    best = sorted(times, key=times.__getitem__)[:2]
    return min(best, key=lambda peer: min(times[peer], run(peer)))


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Served:
    """A process of PyTorch's that measures when it is asked to: for each number on its standard input it prints one.

    Where a start takes longer than what is measured, as on a GPU, the process stays.
    """

    def __init__(self, script: str, task: str) -> None:
        """Start `script` with its `--task`."""
        command = [sys.executable, script, "--task", task]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, task: float | str) -> float:
        """What it measured: in so many seconds, or of what the line says."""
        assert self.process.stdin
        assert self.process.stdout
        print(task, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"PyTorch failed with status {self.process.wait()}")
        return float(line)

    def end(self) -> None:
        """End it, so that its memory is free."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def leave() -> NoReturn:
    """End this rank when all have told what they found (see `told_by`), without PyTorch's own end.

    A rank that leaves while another still talks to it takes that one down, and threads of Gloo that outlive it abort the process: a
    measurement that is over would be lost.
    """
    print(TOLD, flush=True)
    sys.stdin.read()
    os._exit(0)


def told_by(ranks: list[subprocess.Popen[str]]) -> str:
    """What rank 0 printed before it called `leave`, as all ranks do; their standard input, output and error are pipes."""
    told = [list(itertools.takewhile(lambda line: line.strip() != TOLD, rank.stdout or ())) for rank in ranks]
    for rank in ranks:
        _, error = rank.communicate()
        if rank.returncode:
            sys.exit(f"PyTorch failed with status {rank.returncode}:\n{error}")
    return "".join(told[0])


def alternate(
    ours: Callable[[], dict[str, float]], theirs: Callable[[], dict[str, float]], pairs: int
) -> dict[str, Paired]:
    """Run both sides `pairs` times in turn; each gives its figures by name."""
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    for pair in range(pairs):
        if pair % 2 == 0:
            first = ours()
            found.append((first, theirs()))
        else:
            first = theirs()
            found.append((ours(), first))
    return {name: paired([(a[name], b[name]) for a, b in found]) for name in found[0][0]}


def beside(ceiling: Callable[[], float], measure: Callable[[], Compared]) -> tuple[Compared, float]:
    """What was measured, and the mean of a ceiling measured right before and right after."""
    before = ceiling()
    found = measure()
    return found, (before + ceiling()) / 2
