"""An hour of steps without a pause: whether memory grows, and whether steps become slower.

    python scripts/steady.py [--minutes 60] [--pairs 10] [--model resnet20] [--batch 32] [--devices 2] [--syncmark target/release/syncmark]

Contract: one repeat of one trial takes the whole time: DistributedDataParallel of that many ranks, processes over shared memory, or `single`
for one device. Every ten seconds the kernel says what each rank holds (/proc/PID/status): RssAnon, its own memory, and RssShmem, what
it shares with others. RssFile, the program and the spool, is shown apart: the spool is a mapped file of 64 bytes an event, so it
has to grow by those. Step times are the whole of `steps.csv`; a minute's figure is their median. Growth and drift are the slopes of
Theil and Sen over the minutes, the first two left out, with their 95 % intervals.

Machines drift too. So when the time is over, the old ranks and new ones take turns: the old ones are stopped (SIGSTOP) while a new run of the
same trial takes its steps, and go on when it has ended. The figure is the median of the paired ratios, old over new, with its interval: above 1
the hour has made steps slower, whatever the machine did meanwhile.

Reference: METHODOLOGY.md, "An hour of steps"; Sen 1968, https://doi.org/10.1080/01621459.1968.10480934; scipy.stats.theilslopes.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parent / "pytorch"))

from paired import paired  # noqa: E402
from syncmark import BINARY, ran, rows, training  # noqa: E402

KINDS = ("RssAnon", "RssShmem", "RssFile")
SAMPLING_SECONDS = 10.0
NS_PER_MINUTE = 60_000_000_000
# A step that takes longer was stopped in between.
STOPPED_MS = 5_000.0
WINDOW_SECONDS = 15.0

def children(parent: int) -> list[int]:
    """The processes that `parent` started."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(child) for child in text.split()]


def held(process: int) -> dict[str, int]:
    """KiB that a process holds by kind; nothing when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = dict(line.split(":", 1) for line in lines)
    return {kind: int(found[kind].split()[0]) for kind in KINDS if kind in found}


def sample(run: subprocess.Popen[str], seconds: float, samples: dict[int, list[dict[str, int]]]) -> None:
    """Add what every rank holds, every ten seconds, until the time is over or the run ends."""
    begin = time.monotonic()
    while run.poll() is None and time.monotonic() - begin < seconds:
        for process in children(run.pid):
            if now := held(process):
                samples[process].append(now)
        time.sleep(SAMPLING_SECONDS)


def take_turns(run: subprocess.Popen[str], pairs: int, fresh: Callable[[], float]) -> list[float]:
    """Stop the old ranks while a new run takes its steps, and let them go on, again and again; return the new runs' milliseconds."""
    found = []
    for _ in range(pairs):
        ranks = children(run.pid)
        for process in ranks:
            os.kill(process, signal.SIGSTOP)
        try:
            found.append(fresh())
        finally:
            for process in ranks:
                os.kill(process, signal.SIGCONT)
        time.sleep(WINDOW_SECONDS)
    return found


def between_stops(table: Path) -> tuple[dict[int, list[float]], list[list[float]]]:
    """Milliseconds of rank 0's steps by minute until the first stop, and between the stops."""
    minutes: dict[int, list[float]] = defaultdict(list)
    windows: list[list[float]] = []
    for row in rows(table):
        if row["pass"] != "window" or row["rank"] != "0":
            continue
        took = int(row["step_ns"]) / 1e6
        if took > STOPPED_MS:
            windows.append([])
        elif windows:
            windows[-1].append(took)
        else:
            minutes[int(row["start_ns"]) // NS_PER_MINUTE].append(took)
    return minutes, windows


def slope(values: list[float], per_hour: float) -> str:
    """A slope an hour with its interval; `per_hour` values make an hour."""
    if len(values) < 3:
        return "too short to tell"
    found = theilslopes(values)
    return f"{found.slope * per_hour:+.3g} [{found.low_slope * per_hour:+.3g}, {found.high_slope * per_hour:+.3g}]"


def report_memory(samples: dict[int, list[dict[str, int]]]) -> None:
    """Print what each rank held and how that grew."""
    skip = int(120 / SAMPLING_SECONDS)
    print("\n| rank | memory | KiB after two minutes | KiB at the end | growth, KiB an hour |\n|---|---|---:|---:|---:|")
    # Processes that end within two minutes are no ranks of this measurement: gates, for example.
    for rank, of in enumerate(of for of in samples.values() if len(of) > skip):
        for kind in KINDS:
            values = [float(now[kind]) for now in of[skip:-1]]
            growth = slope(values, 3600 / SAMPLING_SECONDS)
            print(f"| {rank} | {kind} | {values[0]:.0f} | {values[-1]:.0f} | {growth} |")


def report_steps(minutes: dict[int, list[float]]) -> None:
    """Print rank 0's step times by ten minutes, and their drift."""
    print("\n| minutes | steps | ms, median of steps | fastest 5 % | lowest and highest minute |\n|---|---:|---:|---:|---:|")
    # The last minute is not whole.
    whole = sorted(minutes)[:-1]
    medians = {minute: statistics.median(minutes[minute]) for minute in whole}
    for start in range(0, len(whole), 10):
        some = whole[start : start + 10]
        steps = sorted(step for minute in some for step in minutes[minute])
        of = [medians[minute] for minute in some]
        print(
            f"| {some[0]} to {some[-1] + 1} | {len(steps)} | {statistics.median(steps):.3f} | {steps[len(steps) // 20]:.3f} | "
            f"{min(of):.3f} to {max(of):.3f} |"
        )
    relative = [medians[minute] / statistics.median(medians.values()) * 100 for minute in whole[2:]]
    print(f"\ndrift in % of the median step an hour, the machine's with it: {slope(relative, 60)}")


def report_turns(windows: list[list[float]], fresh: list[float]) -> None:
    """Print old steps over new ones."""
    # The last window may have been too short for a step.
    pairs = [(statistics.median(old), new) for old, new in zip(windows, fresh, strict=False) if old]
    if not pairs:
        print("\nthe run ended before old and new ranks could take turns")
        return
    found = paired(pairs)
    print(
        f"\nold ranks' steps over new ones', {len(pairs)} pairs: {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}] "
        f"({found.ours:.1f} ms and {found.theirs:.1f} ms)"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=10, help="of old and new ranks")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32, help="of each rank")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    options = parser.parse_args()
    def scenario(seconds: float) -> str:
        return training(
            "steady", options.model, "batch", options.batch, seconds, ranks=options.devices,
            steps=5, warm_up_steps=5, warm_up_seconds=2,
        )  # fmt: skip

    def fresh() -> float:
        with ran(options.syncmark, scenario(WINDOW_SECONDS), "steps.csv") as table:
            of_rank = [row for row in rows(table) if row["pass"] == "window" and row["rank"] == "0"]
            return statistics.median(int(row["step_ns"]) / 1e6 for row in of_rank)

    samples: dict[int, list[dict[str, int]]] = defaultdict(list)
    found: list[float] = []

    def watch(run: subprocess.Popen[str]) -> None:
        sample(run, options.minutes * 60, samples)
        if run.poll() is None:
            found.extend(take_turns(run, options.pairs, fresh))
            run.send_signal(signal.SIGINT)

    # Twice as long as is wanted: it is interrupted when all is seen, and keeps its records.
    with ran(options.syncmark, scenario(options.minutes * 120 + 600), "steps.csv", watch, interrupted=True) as table:
        report_memory(samples)
        minutes, windows = between_stops(table)
        report_steps(minutes)
        report_turns(windows, found)


if __name__ == "__main__":
    main()
