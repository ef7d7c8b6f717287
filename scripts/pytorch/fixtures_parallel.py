"""Fixtures of DataParallel, written out by hand, and of PyTorch's own DistributedDataParallel over gloo.

Contract: as fixtures_training.py, with `final.<name>` of device 0 or rank 0, parameters and buffers, and no
first_gradient_norm. DP: metadata `devices` and `chunks` (scatter's sizes); `losses` (steps,) on the gathered output. DDP:
metadata `ranks`, `per_rank_batch` and, unless they are the defaults, `accumulation` (K), `no_sync` and `broadcast_buffers`; step
k's batch is samples k·batch..(k+1)·batch, cut into K micro-batches, of each of which rank r takes the r-th contiguous part;
`losses` (steps, ranks), the mean over micro-batches; `final_rank1.<name>` are rank 1's buffers; its parameters are checked to be
bit-equal to rank 0's. With options `final.<name>` has the tensors of one dimension alone, `final_norm.<name>` all.

Reference: SEMANTICS 1 and 2; torch/nn/parallel/data_parallel.py; torch/nn/parallel/distributed.py. nn.DataParallel itself needs
several GPUs, so its step is spelled out, on copies of the model that stand for the devices.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import model
from fixture import Arrays, Fixture
from fixtures_training import DIGITS, Run, finals, fixture
from training import Source

# The last has the chunks of the DDP fixture, with which it must agree (test_model.py).
DP_CASES = ((10, 4), (9, 4), (8, 2), (3, 4), (16, 2))
STEPS = 5


@dataclass(frozen=True)
class Options:
    """What DDP is given, and how a step is cut into micro-batches."""

    accumulation: int = 1
    no_sync: bool = True
    broadcast_buffers: bool = True

    def name(self) -> str:
        """Name what differs from the defaults."""
        each = "" if self.no_sync else "_each"
        several = f"_accumulate_{self.accumulation}{each}" if self.accumulation > 1 else ""
        return several + ("" if self.broadcast_buffers else "_own_buffers")

    def arguments(self) -> dict[str, bool]:
        """Return what the constructor is given; it warns of `broadcast_buffers` even where that is the default."""
        return {} if self.broadcast_buffers else {"broadcast_buffers": False}

    def metadata(self) -> dict[str, str]:
        """Describe what differs from the defaults."""
        several = {"accumulation": str(self.accumulation), "no_sync": json.dumps(self.no_sync)}
        kept = {} if self.broadcast_buffers else {"broadcast_buffers": "false"}
        return kept | (several if self.accumulation > 1 else {})


DDP_OPTIONS = (Options(accumulation=2), Options(accumulation=2, no_sync=False), Options(broadcast_buffers=False))


def chunk_sizes(batch: int, devices: int) -> list[int]:
    """Return scatter's sizes: chunks of ceil(batch / devices), the last one smaller, so fewer devices may take part."""
    return [len(part) for part in torch.arange(batch).chunk(devices)]


def data_parallel_gradients(net: nn.Module, devices: int, inputs: Tensor, labels: Tensor) -> float:
    """Run DP's forward, loss and backward; leave summed gradients in the parameters and return the loss."""
    parts = inputs.chunk(devices)  # 1. scatter
    # 2. replicate: replica 0 shares the master's storage, so only its running statistics survive.
    replicas = [net] + [copy.deepcopy(net) for _ in parts[1:]]
    for replica in replicas:
        replica.zero_grad(set_to_none=True)
    outputs = [replica(part) for replica, part in zip(replicas, parts, strict=True)]  # 3. parallel apply
    gathered = torch.cat([output.detach() for output in outputs]).requires_grad_()  # 4. gather
    loss = functional.cross_entropy(gathered, labels)  # 5. loss on the output device
    loss.backward()
    scattered = gathered.grad.split([len(part) for part in parts])  # 6. scatter the output gradient
    for output, gradient in zip(outputs, scattered, strict=True):
        output.backward(gradient)
    for replica in replicas[1:]:  # 7. reduce: a sum, never divided
        for master, copied in zip(net.parameters(), replica.parameters(), strict=True):
            master.grad += copied.grad
    return loss.item()


def train_dp(devices: int, run: Run, dtype: torch.dtype, memory: torch.memory_format) -> Arrays:
    """Train with DP's step on `devices` stand-ins."""
    net = run.model(dtype).to(memory_format=memory)
    optimizer = run.optimizer.make(net)
    losses = []
    for k in range(run.steps):
        inputs, labels = run.source.batch(k * run.batch, run.batch)
        losses.append(data_parallel_gradients(net, devices, inputs.to(dtype, memory_format=memory), labels))
        optimizer.step()  # 8. on device 0 only
    return {"losses": np.array(losses)} | finals(net)


def ddp_step(net: DistributedDataParallel, optimizer: torch.optim.Optimizer, parts: list[tuple[Tensor, Tensor]], no_sync: bool) -> float:
    """Take one step over a rank's parts of the micro-batches and return their mean loss before the update."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for k, (inputs, labels) in enumerate(parts):
        with net.no_sync() if no_sync and k + 1 < len(parts) else nullcontext():
            loss = functional.cross_entropy(net(inputs), labels) / len(parts)
            loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def rank_parts(source: Source, first: int, samples: int, rank: int, ranks: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Cut samples first..first+samples into `count` micro-batches and return rank `rank`'s part of each."""
    part = samples // count // ranks
    return [source.batch(first + (k * ranks + rank) * part, part) for k in range(count)]


def ddp_rank(
    rank: int, ranks: int, run: Run, options: Options, dtype: torch.dtype, memory: torch.memory_format, port: int, folder: str
) -> None:
    """Train as one rank of PyTorch's DDP and save the results in `folder`."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    net = DistributedDataParallel(run.model(dtype).to(memory_format=memory), **options.arguments())
    optimizer = run.optimizer.make(net)
    losses = []
    for k in range(run.steps):
        parts = rank_parts(run.source, k * run.batch, run.batch, rank, ranks, options.accumulation)
        converted = [(inputs.to(dtype, memory_format=memory), labels) for inputs, labels in parts]
        losses.append(ddp_step(net, optimizer, converted, options.no_sync))
    np.savez(os.path.join(folder, f"rank{rank}.npz"), losses=np.array(losses), **finals(net.module))
    dist.barrier()  # A rank that leaves while another still talks to it aborts that one.
    dist.destroy_process_group()


def train_ddp(ranks: int, options: Options, run: Run, dtype: torch.dtype, memory: torch.memory_format) -> Arrays:
    """Spawn the ranks, collect their results and check that their parameters are bit-equal."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        # The parent hosts the store, so that it outlives every rank.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        mp.spawn(ddp_rank, args=(ranks, run, options, dtype, memory, store.port, folder), nprocs=ranks)
        results = [dict(np.load(Path(folder) / f"rank{rank}.npz")) for rank in range(ranks)]
    trainable = {f"final.{n}" for n in parameter_names(run)}
    for name in trainable:
        if not all(np.array_equal(results[0][name], other[name]) for other in results[1:]):
            raise RuntimeError(f"{run.name}: the ranks hold different {name}")
    losses = np.stack([result.pop("losses") for result in results], axis=1)
    buffers = {f"final_rank1.{n.removeprefix('final.')}": a for n, a in results[1].items() if n not in trainable}
    return {"losses": losses} | results[0] | buffers


def parameter_names(run: Run) -> list[str]:
    """Return the names of the trainable tensors."""
    named = model.named_tensors(run.model(torch.float32))
    return [name for name, tensor in named.items() if isinstance(tensor, nn.Parameter)]


def data_parallel(batch: int, devices: int) -> Fixture:
    """Make the fixture of convnet with BatchNorm under DP."""
    run = Run(f"dp_convnet_batch_{batch}_over_{devices}", "convnet", "batch", DIGITS, batch, STEPS, keep_final=True)
    extra = {"kind": "dp", "devices": str(devices), "chunks": json.dumps(chunk_sizes(batch, devices))}
    return fixture(run, partial(train_dp, devices), extra)


def distributed(norm: str, ranks: int, per_rank: int, options: Options = Options()) -> Fixture:
    """Make the fixture of convnet under DDP; with options only tensors of one dimension are kept, to keep the file small."""
    batch = options.accumulation * ranks * per_rank
    run = Run(f"ddp_convnet_{norm}_{ranks}x{per_rank}{options.name()}", "convnet", norm, DIGITS, batch, STEPS, keep_final=True)
    extra = {"kind": "ddp", "ranks": str(ranks), "per_rank_batch": str(per_rank)} | options.metadata()
    made = fixture(run, partial(train_ddp, ranks, options), extra)
    if options != Options():
        made.tensors = {name: a for name, a in made.tensors.items() if not name.startswith("final.") or a.ndim < 2}
    return made


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    yield from (data_parallel(batch, devices) for batch, devices in DP_CASES)
    yield distributed("batch", 2, 8)
    yield from (distributed("batch", 2, 4, options) for options in DDP_OPTIONS)
