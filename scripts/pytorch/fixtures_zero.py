"""Fixtures of ZeRO-1: PyTorch's DDP with its ZeroRedundancyOptimizer over gloo.

Contract: as fixtures_parallel.py's DDP, with `kind` zero1. PyTorch shards by whole parameters and all-reduces the gradients; what
is trained does not depend on where an update is computed, so a rank that owns any part must end with the same parameters.

Reference: torch/distributed/optim/zero_redundancy_optimizer.py; SEMANTICS 2.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import training
from fixture import Arrays, Fixture
from fixtures_parallel import STEPS, parameter_names
from fixtures_training import DIGITS, Run, finals, fixture
from training import Adamw


def zero_rank(rank: int, ranks: int, run: Run, dtype: torch.dtype, memory: torch.memory_format, port: int, folder: str) -> None:
    """Train as one rank, whose optimizer holds the state of its own parameters alone, and save the results in `folder`."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    net = DistributedDataParallel(run.model(dtype).to(memory_format=memory))
    whole = run.optimizer.make(net)
    settings = {key: value for key, value in whole.defaults.items() if key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=type(whole), **settings)
    per_rank = run.batch // ranks
    losses = []
    for k in range(run.steps):
        inputs, labels = run.source.batch(k * run.batch + rank * per_rank, per_rank)
        losses.append(training.step(net, optimizer, inputs.to(dtype, memory_format=memory), labels))
    np.savez(os.path.join(folder, f"rank{rank}.npz"), losses=np.array(losses), **finals(net.module))
    dist.barrier()  # A rank that leaves while another still talks to it aborts that one.
    dist.destroy_process_group()


def train_zero(ranks: int, run: Run, dtype: torch.dtype, memory: torch.memory_format) -> Arrays:
    """Spawn the ranks, collect their results and check that their parameters are bit-equal."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        # The parent hosts the store, so that it outlives every rank.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        mp.spawn(zero_rank, args=(ranks, run, dtype, memory, store.port, folder), nprocs=ranks)
        results = [dict(np.load(Path(folder) / f"rank{rank}.npz")) for rank in range(ranks)]
    for name in (f"final.{n}" for n in parameter_names(run)):
        if not all(np.array_equal(results[0][name], other[name]) for other in results[1:]):
            raise RuntimeError(f"{run.name}: the ranks hold different {name}")
    losses = np.stack([result.pop("losses") for result in results], axis=1)
    return {"losses": losses} | results[0]


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    # Group norm, whose gradients have no direction that is rounding alone: AdamW would make whole steps of it.
    ranks, per_rank = 2, 8
    name = f"zero1_convnet_adamw_{ranks}x{per_rank}"
    run = Run(name, "convnet", "group", DIGITS, ranks * per_rank, STEPS, optimizer=Adamw(), keep_final=True)
    extra = {"kind": "zero1", "ranks": str(ranks), "per_rank_batch": str(per_rank)}
    yield fixture(run, partial(train_zero, ranks), extra)
