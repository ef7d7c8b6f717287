"""PyTorch's DistributedDataParallel beside syncmark's, for `syncmark run gpu-acceptance`, which starts this with a folder.

    python scripts/pytorch/gpu_ddp.py FOLDER

Contract: FOLDER has `job.json` (bench/cli/src/acceptance/pytorch.rs says its fields). The last line of standard output is a JSON object: `torch` (version), and for
`losses` the ranks' mean loss of every step before its update, for `step` the milliseconds of a step. For losses the parameters are those of philox.py and
the batches those of `inputs.f32` (steps, ranks, batch, ...) and `labels.i32` (steps, ranks, batch), little-endian, in fp32 without TF32. For the step samples are random,
pinned and copied in every step, and nobody reads the loss; a window ends when the GPUs are done, and the slowest rank's counts. Ranks are
processes with a GPU each, over NCCL; where they share one, or have none, over gloo. Anything that goes wrong ends with another status.

Reference: torch.nn.parallel.DistributedDataParallel.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from layers import Embedding
from model import build, preset
from training import initialize, loss_of

Job = dict[str, Any]

WARM_UP_STEPS = 10
WINDOW_SECONDS = 3.0
LEAST_STEPS = 10


def trained(job: Job) -> nn.Module:
    """Make the model with syncmark's initial parameters, on the host."""
    net = build(preset(job["model"]), job["norm"], tuple(job["input"]), job["classes"])
    initialize(net, job["seed"])
    return net.train()


def optimizer_of(job: Job, net: nn.Module) -> torch.optim.SGD:
    """Make the optimizer."""
    return torch.optim.SGD(
        net.parameters(), lr=job["learning_rate"], momentum=job["momentum"], weight_decay=job["weight_decay"], nesterov=job["nesterov"]
    )


def batches(folder: Path, job: Job, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Read this rank's batch of every step."""
    shape = (job["steps"], job["ranks"], job["batch"])
    inputs = np.fromfile(folder / "inputs.f32", dtype="<f4").reshape(*shape, *job["input"])
    labels = np.fromfile(folder / "labels.i32", dtype="<i4").reshape(shape).astype(np.int64)
    return [(torch.from_numpy(inputs[step, rank]), torch.from_numpy(labels[step, rank])) for step in range(job["steps"])]


def losses(folder: Path, job: Job, rank: int, device: torch.device) -> list[float]:
    """Train, and return the mean over ranks of every step's loss."""
    net = trained(job).to(device)
    parallel = DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    optimizer = optimizer_of(job, net)
    found = []
    for inputs, labels in batches(folder, job, rank):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(parallel(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    mean = torch.tensor(found, dtype=torch.float64, device=device)
    dist.all_reduce(mean)
    return (mean / job["ranks"]).tolist()


def step_ms(job: Job, device: torch.device) -> float:
    """Time a step, in milliseconds, of the slowest rank."""
    torch.backends.cuda.matmul.allow_tf32 = job["tf32"]
    torch.backends.cudnn.allow_tf32 = job["tf32"]
    torch.backends.cudnn.benchmark = True
    net = trained(job).to(device)
    images = len(job["input"]) == 3
    if images:
        net = net.to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
        if isinstance(module, Embedding):
            module.padding_idx = None
    parallel = DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    optimizer = optimizer_of(job, net)
    shape = (job["batch"], *job["input"])
    inputs = torch.randn(shape) if images else torch.randint(2, job["classes"], shape)
    labels = torch.randint(job["classes"], (job["batch"],)) if images else torch.randint(2, job["classes"], shape)
    if images:
        inputs = inputs.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        inputs, labels = inputs.pin_memory(), labels.pin_memory()

    def window(steps: int) -> float:
        finish(device)
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            here, answers = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss_of(parallel(here), answers).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / steps * 1e3

    window(WARM_UP_STEPS)
    # All ranks take as many steps, or one would wait for ever.
    steps = torch.tensor([max(LEAST_STEPS, int(WINDOW_SECONDS * 1e3 / window(LEAST_STEPS)))], device=device)
    dist.broadcast(steps, 0)
    slowest = torch.tensor([window(int(steps.item()))], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()


def finish(device: torch.device) -> None:
    """Wait until all ranks and their GPUs are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def rank_main(rank: int, folder: Path, job: Job) -> None:
    """Do a rank's part, and leave the answer as rank 0."""
    on_gpus = job["device"] == "cuda"
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    backend = "nccl" if on_gpus and not job["shared"] else "gloo"
    dist.init_process_group(backend, init_method=f"file://{(folder / 'meeting').resolve()}", rank=rank, world_size=job["ranks"])
    answer: Job = {"torch": torch.__version__}
    if job["what"] == "losses":
        answer["losses"] = losses(folder, job, rank, device)
    else:
        answer["step_ms"] = step_ms(job, device)
    finish(device)
    if rank == 0:
        (folder / "answer.json").write_text(json.dumps(answer))
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks, and print the answer."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    if job["device"] == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    (folder / "meeting").unlink(missing_ok=True)
    mp.spawn(rank_main, args=(folder, job), nprocs=job["ranks"])
    print((folder / "answer.json").read_text())


if __name__ == "__main__":
    main()
