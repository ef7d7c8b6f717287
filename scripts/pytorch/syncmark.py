"""The binary as the scripts run it: a scenario in a folder that goes away, and what its records say.

Contract: syncmark's own failure ends the script with its words. Nothing but the named table is read.

Reference: README.md, "Commands"; the run folder in ARCHITECTURE.md.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Exit status of a run that ctrl-C ended.
INTERRUPTED = 130
BINARY = ROOT / "target" / "release" / "syncmark"

# A training scenario whose window is all that is wanted: one repeat, no arm without synchronization, no traced steps.
TRAINING = """
name = "{name}"
question = "How long does a step take?"
kind = "train"
[model]
preset = "{model}"
norm = "{norm}"
[data]
source = "synthetic"
batch_size = {batch}
{data}
[train]
optimizer = {{ sgd = {{ learning_rate = 0.01, momentum = 0.9, weight_decay = 1e-4 }} }}
[parallel]
devices = {ranks}
threads = {threads}
{strategy}
[measure]
smoke = true
repeats = 1
steps = {steps}
min_time = "{seconds}s"
warmup_steps = {warm_up_steps}
warmup_time = "{warm_up_seconds}s"
trace_steps = 0
unsynchronized = false
timeout = "{timeout}s"
"""


def training(
    name: str, model: str, norm: str, batch: int, seconds: float, *, ranks: int = 1, threads: int = 1, transport: str = "shared",
    data: str = "", steps: int, warm_up_steps: int, warm_up_seconds: float,
) -> str:  # fmt: skip
    """The text of such a scenario: DDP of process ranks, or `single` for one."""
    strategy = f'strategy = "ddp"\nlaunch = "processes"\ntransport = "{transport}"' if ranks > 1 else 'strategy = "single"'
    return TRAINING.format(
        name=name, model=model, norm=norm, batch=batch, data=data, ranks=ranks, threads=threads, strategy=strategy, steps=steps,
        seconds=seconds, warm_up_steps=warm_up_steps, warm_up_seconds=warm_up_seconds, timeout=int(seconds) + 600,
    )  # fmt: skip


def rows(table: Path) -> Iterator[dict[str, str]]:
    """The rows of a table, one after the other."""
    with table.open() as file:
        yield from csv.DictReader(file)


@contextmanager
def ran(
    binary: Path, scenario: str, table: str, beside: Callable[[subprocess.Popen[str]], None] | None = None, *, interrupted: bool = False,
    further: tuple[str, ...] = (),
) -> Iterator[Path]:  # fmt: skip
    """Run a scenario; within the `with` its table is there. `beside` may watch the process, and interrupt it if that is wanted.

    `further` are more arguments of `syncmark run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scenario.toml", Path(folder) / "out"
        path.write_text(scenario)
        command = [binary, "run", "--quiet", "--out", out, *further, path]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if beside:
            beside(run)
        _, error = run.communicate()
        if run.returncode and not (interrupted and run.returncode == INTERRUPTED):
            trials = [row for folder in out.glob("*/trials.csv") for row in rows(folder)]
            reasons = "\n".join(f"{row['label']}: {row['outcome']}: {row['reason']}" for row in trials)
            sys.exit(f"syncmark ended with status {run.returncode}:\n{error}\n{reasons}")
        (found,) = out.glob(f"*/{table}")
        yield found


def ceiling(binary: Path, name: str, threads: int) -> float:
    """What this machine can do at best right now, as `syncmark ceilings` measures it: per second, of all threads together."""
    command = [binary, "ceilings", "--json", "--devices", str(max(2, threads))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)["ceilings"]
    (median,) = (row["median"] for row in found if (row["ceiling"], row["threads"]) == (name, threads))
    return float(median)
