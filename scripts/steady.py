"""An hour of steps without a pause: whether memory grows, and whether steps become slower.

    python scripts/steady.py [--minutes 60] [--model resnet20] [--batch 32] [--devices 2] [--syncmark target/release/syncmark]

Contract: one repeat of one trial takes the whole time: DistributedDataParallel of that many ranks, processes over shared memory, or `single`
for one device. Every ten seconds the kernel says what each rank holds (/proc/PID/status): RssAnon, its own memory, and RssShmem, what
it shares with others. RssFile, the program and the spool, is shown apart: the spool is a mapped file of 64 bytes an event, so it
has to grow by those. Step times are the whole of `steps.csv`; a minute's figure is their median. Growth and drift are the slopes of
Theil and Sen over the minutes, the first one left out, with their 95 % intervals. What the machine could do right before and right
after is what `syncmark ceilings` says.

Reference: METHODOLOGY.md, "An hour of steps"; Sen 1968, https://doi.org/10.1080/01621459.1968.10480934; scipy.stats.theilslopes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parent / "pytorch"))

from syncmark import BINARY, ran, rows, training  # noqa: E402

KINDS = ("RssAnon", "RssShmem", "RssFile")
SAMPLING_SECONDS = 10.0
NS_PER_MINUTE = 60_000_000_000

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


def sample(run: subprocess.Popen[str], samples: dict[int, list[dict[str, int]]]) -> None:
    """Add what every rank holds, every ten seconds until the run ends."""
    while run.poll() is None:
        for process in children(run.pid):
            if now := held(process):
                samples[process].append(now)
        time.sleep(SAMPLING_SECONDS)


def slope(values: list[float], per_hour: float) -> str:
    """A slope an hour with its interval; `per_hour` values make an hour."""
    if len(values) < 3:
        return "too short to tell"
    found = theilslopes(values)
    return f"{found.slope * per_hour:+.3g} [{found.low_slope * per_hour:+.3g}, {found.high_slope * per_hour:+.3g}]"


def minutes_of(table: Path) -> dict[int, dict[int, list[float]]]:
    """Milliseconds of all steps by rank and minute."""
    found: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(table):
        if row["pass"] == "window":
            minute = int(row["start_ns"]) // NS_PER_MINUTE
            found[int(row["rank"])][minute].append(int(row["step_ns"]) / 1e6)
    return found


def report_memory(samples: dict[int, list[dict[str, int]]]) -> None:
    """Print what each rank held and how that grew."""
    skip = int(60 / SAMPLING_SECONDS)
    print("\n| rank | memory | KiB after a minute | KiB at the end | growth, KiB an hour |\n|---|---|---:|---:|---:|")
    # Processes that end within a minute are no ranks of this measurement: gates, for example.
    for rank, of in enumerate(of for of in samples.values() if len(of) > skip):
        for kind in KINDS:
            values = [float(now[kind]) for now in of[skip:-1]]
            growth = slope(values, 3600 / SAMPLING_SECONDS)
            print(f"| {rank} | {kind} | {values[0]:.0f} | {values[-1]:.0f} | {growth} |")


def report_steps(ranks: dict[int, dict[int, list[float]]]) -> None:
    """Print each rank's step times by ten minutes, and their drift."""
    print("\n| rank | minutes | steps | ms, median of steps | lowest and highest minute |\n|---|---|---:|---:|---:|")
    drifts = []
    for rank, minutes in sorted(ranks.items()):
        # The last minute is not whole.
        whole = sorted(minutes)[:-1]
        medians = {minute: statistics.median(minutes[minute]) for minute in whole}
        for start in range(0, len(whole), 10):
            some = whole[start : start + 10]
            steps = [step for minute in some for step in minutes[minute]]
            of = [medians[minute] for minute in some]
            print(
                f"| {rank} | {some[0]} to {some[-1] + 1} | {len(steps)} | {statistics.median(steps):.3f} | "
                f"{min(of):.3f} to {max(of):.3f} |"
            )
        relative = [medians[minute] / statistics.median(medians.values()) * 100 for minute in whole[1:]]
        drifts.append(f"rank {rank}, drift in % of the median step an hour: {slope(relative, 60)}")
    print("\n" + "\n".join(drifts))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32, help="of each rank")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--syncmark", type=Path, default=BINARY)
    options = parser.parse_args()
    scenario = training(
        "steady", options.model, "batch", options.batch, options.minutes * 60, ranks=options.devices,
        steps=5, warm_up_steps=5, warm_up_seconds=2,
    )  # fmt: skip
    samples: dict[int, list[dict[str, int]]] = defaultdict(list)
    subprocess.run([options.syncmark, "ceilings"], check=True)
    with ran(options.syncmark, scenario, "steps.csv", lambda run: sample(run, samples)) as table:
        subprocess.run([options.syncmark, "ceilings"], check=True)
        report_memory(samples)
        report_steps(minutes_of(table))


if __name__ == "__main__":
    main()
