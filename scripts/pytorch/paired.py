"""Two sides measured in turn: the median of their paired ratios and its interval.

Contract: side A and side B run one right after the other, in the other order every second time, so that a machine whose speed
drifts drifts for both. The interval is the 95 % percentile bootstrap over pairs, from a fixed seed.

Reference: METHODOLOGY.md, "Against PyTorch".
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

RESAMPLES = 10_000

# What PyTorch's processes may run with besides nothing. Glibc gives every large tensor back to the kernel and takes new pages for the
# next, which it has to clear: more than half of the time of a norm over large images. A peer at its fastest keeps its memory, in huge
# pages, as syncmark does; and threads that wait for each other spin or sleep, whichever is faster here.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28), "THP_MEM_ALLOC_ENABLE": "1"}
SLEEPING = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
SURROUNDINGS = {"": {}, "memory kept": MALLOC}
SURROUNDINGS_OF_THREADS = SURROUNDINGS | {"threads sleep": SLEEPING, "memory kept, threads sleep": MALLOC | SLEEPING}


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
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return Paired(
        ratio=statistics.median(ratios),
        low=medians[int(0.025 * RESAMPLES)],
        high=medians[int(0.975 * RESAMPLES)],
        ours=statistics.median(ours for ours, _ in pairs),
        theirs=statistics.median(theirs for _, theirs in pairs),
    )


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
