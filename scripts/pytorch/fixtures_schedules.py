"""Fixtures of learning-rate schedules: what PyTorch's schedulers give an optimizer, step by step.

Contract: tensor `rates` (steps,) in float64, metadata `learning_rate` (the base) and `schedule` (JSON, as in a scenario).
A cosine's fixture ends at its last step: past it PyTorch's rises again, and the engine stays at the minimum.

Reference: training.py maps schedules to torch.optim.lr_scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch

from fixture import Fixture
from training import Schedule, scheduler

STEPS = 60
SCHEDULES: dict[str, Schedule] = {
    "constant": "constant",
    "warm_up": {"warm-up": {"steps": 20, "start": 0.1}},
    "warm_up_from_zero": {"warm-up": {"steps": 7, "start": 0.0}},
    "step": {"step": {"every": 13, "factor": 0.1}},
    "step_each": {"step": {"every": 1, "factor": 0.97}},
    "cosine": {"cosine": {"steps": 59, "warm_up_steps": 0, "minimum": 0.0}},
    "cosine_minimum": {"cosine": {"steps": 59, "warm_up_steps": 0, "minimum": 0.003}},
    "cosine_warm_up": {"cosine": {"steps": 49, "warm_up_steps": 10, "minimum": 0.001}},
}  # fmt: skip


def rates(base: float, schedule: Schedule) -> list[float]:
    """Step an optimizer of one parameter and note the rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    made, found = scheduler(optimizer, schedule), []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    for base, (name, schedule) in zip((0.1, 0.05) * len(SCHEDULES), SCHEDULES.items()):
        metadata = {"kind": "schedule", "learning_rate": str(base), "schedule": json.dumps(schedule)}
        yield Fixture(f"schedule_{name}", {"rates": np.array(rates(base, schedule))}, metadata)
