"""Fixtures of PyTorch's own communication hooks, run by its DistributedDataParallel over gloo on given gradients.

Contract: metadata `hook` (fp16, bf16, powersgd) and `ranks`; `gradient.<name>` (ranks, steps, *shape) float32 is what each rank's
backward gives, `mean.<name>` (steps, *shape) what the hook leaves, checked to be bit-equal on all ranks.
- fp16, bf16: in float32; gloo's sums, so that two ranks have one order of addition and their bits can be compared.
- powersgd: in float64, from the same gradients. Metadata `rank`, `start_step`, `error_feedback`, `warm_start`. `factor.<name>` (steps, m, r)
  are the random numbers that stand in for torch.randn in each step that draws them, `q.<name>` (steps, m, r), `p.<name>` (steps, n, r)
  and `error.<name>` (steps, ranks, *shape) the state after each compressed step (none is kept without warm start or feedback).

A parameter's gradient is the constant that it is multiplied with, so that hooks see exactly the numbers of the file.

Reference: torch/distributed/algorithms/ddp_comm_hooks/default_hooks.py and powerSGD_hook.py.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from fixture import Arrays, Fixture

# A convolution's weight, γ per element, a linear weight, a matrix too small to be compressed, vectors. All m differ.
SHAPES = {"conv": (6, 4, 3, 3), "gamma": (8, 6, 7), "linear": (16, 20), "small": (3, 5), "bias": (16,), "one": (1,)}
HALF_SHAPES = {"weight": (7, 11), "bias": (5,), "special": (12,)}
# Too large for binary16 alone and in the sum, ties, subnormal numbers, zeros.
SPECIAL = (7e4, 6e4, -6.5e4, 1e-7, 3e-8, -2.9e-8, 6.1e-5, 1.00048828125, 1.0009765625, 0.0, -0.0, 3.4e38)
START = 2


@dataclass(frozen=True)
class Case:
    """One fixture."""

    name: str
    hook: str
    ranks: int
    steps: int
    rank: int = 0
    error_feedback: bool = True
    warm_start: bool = True

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the parameters' shapes."""
        return SHAPES if self.hook == "powersgd" else HALF_SHAPES

    @property
    def dtype(self) -> torch.dtype:
        """Return what DDP computes in."""
        return torch.float64 if self.hook == "powersgd" else torch.float32


CASES = (
    Case("hook_fp16_2_ranks", "fp16", 2, 3),
    Case("hook_fp16_3_ranks", "fp16", 3, 3),
    Case("hook_bf16_2_ranks", "bf16", 2, 3),
    Case("hook_bf16_3_ranks", "bf16", 3, 3),
    Case("hook_powersgd_rank_1", "powersgd", 2, 5, rank=1),
    Case("hook_powersgd_rank_2", "powersgd", 2, 5, rank=2),
    Case("hook_powersgd_rank_3", "powersgd", 3, 5, rank=3),
    Case("hook_powersgd_no_feedback", "powersgd", 2, 4, rank=2, error_feedback=False),
    Case("hook_powersgd_cold_start", "powersgd", 2, 5, rank=2, warm_start=False),
)


class Given(nn.Module):
    """Parameters whose gradients are given."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=dtype)))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        """Return a loss with these gradients."""
        return torch.stack([(getattr(self, name) * gradient).sum() for name, gradient in gradients.items()]).sum()


def gradients(case: Case) -> Arrays:
    """Make the gradients (ranks, steps, *shape): of low rank and noise for PowerSGD, of many magnitudes for halves."""
    random = np.random.default_rng(20 + case.rank)
    made = {}
    for name, shape in case.shapes.items():
        whole = (case.ranks, case.steps, *shape)
        values = random.standard_normal(whole)
        if case.hook != "powersgd":
            values *= 10.0 ** random.integers(-6, 4, whole)
        elif len(shape) > 1:
            # Two directions that stay, so that warm start has something to find.
            matrix = (shape[0], int(np.prod(shape[1:])))
            common = sum(scale * np.outer(random.standard_normal(matrix[0]), random.standard_normal(matrix[1])) for scale in (3.0, 1.0))
            values = 0.3 * values + common.reshape(shape)
        made[name] = values.astype(np.float32)
    if "special" in made:
        made["special"][:] = np.float32(SPECIAL)
    return made


def factors(case: Case) -> dict[tuple[int, int], list[np.ndarray]]:
    """Make what stands in for torch.randn, by the shape (m, r) that it is asked for."""
    random = np.random.default_rng(40 + case.rank)
    draws = 1 if case.warm_start else case.steps - START
    found = {}
    for shape in case.shapes.values():
        n, m = shape[0], int(np.prod(shape[1:]))
        rank = min(n, m, case.rank)
        if (n + m) * rank * 2 < n * m:
            found[m, rank] = [random.standard_normal((m, rank)).astype(np.float32) for _ in range(draws)]
    return found


class Watched:
    """A hook that notes in which order a bucket holds its parameters."""

    def __init__(self, net: nn.Module, hook, state) -> None:
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.hook, self.state, self.order = hook, state, []

    def function(self):
        """Return it as DDP wants it: a function whose annotation is a class."""

        def noting(_, bucket):
            self.order = [self.names[id(parameter)] for parameter in bucket.parameters()]
            return self.hook(self.state, bucket)

        noting.__annotations__["bucket"] = dist.GradBucket
        return noting

    def split(self, flat: Tensor, sizes: dict[str, tuple[int, ...]]) -> Arrays:
        """Cut one of PyTorch's flat tensors into those of the parameters that `sizes` names."""
        parts, at = {}, 0
        for name in (name for name in self.order if name in sizes):
            count = int(np.prod(sizes[name]))
            parts[name] = flat[at : at + count].reshape(sizes[name]).clone().numpy()
            at += count
        if at != flat.numel():
            raise RuntimeError(f"{flat.numel()} elements hold more than {sizes}")
        return parts


def watched(case: Case, net: nn.Module, group: dist.ProcessGroup) -> Watched:
    """Return the hook of a case."""
    if case.hook != "powersgd":
        return Watched(net, getattr(default_hooks, f"{case.hook}_compress_hook"), group)
    state = powerSGD_hook.PowerSGDState(
        group, case.rank, START, use_error_feedback=case.error_feedback, warm_start=case.warm_start
    )
    return Watched(net, powerSGD_hook.powerSGD_hook, state)


def state_after(case: Case, hook: Watched) -> Arrays:
    """Return PowerSGD's memories by parameter."""
    compressed = {}
    for name, shape in case.shapes.items():
        n, m = shape[0], int(np.prod(shape[1:]))
        rank = min(n, m, case.rank)
        if (n + m) * rank * 2 < n * m:
            compressed[name] = (n, m, rank)
    found = {}
    if case.warm_start:
        p = hook.split(hook.state.p_memory_dict[0], {name: (n, rank) for name, (n, _, rank) in compressed.items()})
        q = hook.split(hook.state.q_memory_dict[0], {name: (m, rank) for name, (_, m, rank) in compressed.items()})
        found |= {f"p.{name}": array for name, array in p.items()} | {f"q.{name}": array for name, array in q.items()}
    if case.error_feedback:
        error = hook.split(hook.state.error_dict[0], case.shapes)
        found |= {f"error.{name}": array for name, array in error.items()}
    return found


def run_case(case: Case, rank: int, group: dist.ProcessGroup) -> Arrays:
    """Run one rank of a case; keys are `<step>/<name>`."""
    given, drawn = gradients(case), factors(case)
    net = DistributedDataParallel(Given(case.shapes, case.dtype), process_group=group)
    hook = watched(case, net.module, group)
    net.register_comm_hook(None, hook.function())

    def randn(_: int, m: int, r: int, device: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(drawn[m, r].pop(0)).to(device, dtype)[None]

    saved = {}
    for step in range(case.steps):
        net.zero_grad(set_to_none=False)
        own = {name: torch.from_numpy(array[rank, step]).to(case.dtype) for name, array in given.items()}
        with mock.patch.object(torch, "randn", randn):
            net(own).backward()
        saved |= {f"{step}/mean.{name}": p.grad.numpy().copy() for name, p in net.module.named_parameters()}
        if case.hook == "powersgd" and step >= START:
            saved |= {f"{step}/{name}": array for name, array in state_after(case, hook).items()}
    return saved


def run_rank(rank: int, ranks: int, port: int, folder: str) -> None:
    """Run one rank of every case that has it, and save what it found in `folder`."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for case in CASES:
        group = dist.new_group(list(range(case.ranks)))
        if rank < case.ranks:
            np.savez(os.path.join(folder, f"{case.name}.{rank}.npz"), **run_case(case, rank, group))
    dist.barrier()  # A rank that leaves while another still talks to it aborts that one.
    dist.destroy_process_group()


def run() -> dict[str, list[Arrays]]:
    """Spawn the ranks once for all cases; return what each rank saved, by case."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    ranks = max(case.ranks for case in CASES)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        mp.spawn(run_rank, args=(ranks, store.port, folder), nprocs=ranks)
        path = Path(folder)
        return {case.name: [dict(np.load(path / f"{case.name}.{rank}.npz")) for rank in range(case.ranks)] for case in CASES}


def collect(case: Case, saved: list[Arrays]) -> Arrays:
    """Stack the steps; only errors may differ between ranks."""
    names = sorted({key.split("/")[1] for key in saved[0]})
    arrays = {}
    for name in names:
        steps = [step for step in range(case.steps) if f"{step}/{name}" in saved[0]]
        each = [np.stack([rank[f"{step}/{name}"] for step in steps]) for rank in saved]
        if name.startswith("error."):
            arrays[name] = np.stack(each, axis=1)
            continue
        if not all(np.array_equal(each[0], other, equal_nan=True) for other in each[1:]):
            raise RuntimeError(f"{case.name}: the ranks hold different {name}")
        arrays[name] = each[0]
    return arrays


def fixture(case: Case, saved: list[Arrays]) -> Fixture:
    """Make one fixture."""
    arrays = {f"gradient.{name}": array for name, array in gradients(case).items()} | collect(case, saved)
    metadata = {"kind": "hook", "hook": case.hook, "ranks": str(case.ranks), "shapes": json.dumps(case.shapes)}
    if case.hook == "powersgd":
        by_m = {int(np.prod(shape[1:])): name for name, shape in case.shapes.items()}
        arrays |= {f"factor.{by_m[m]}": np.stack(draws) for (m, _), draws in factors(case).items()}
        metadata |= {"rank": str(case.rank), "start_step": str(START)}
        metadata |= {"error_feedback": json.dumps(case.error_feedback), "warm_start": json.dumps(case.warm_start)}
    return Fixture(case.name, arrays, metadata)


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    saved = run()
    yield from (fixture(case, saved[case.name]) for case in CASES)
