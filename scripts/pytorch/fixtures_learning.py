"""Fixtures of evaluation: with stored statistics, with those of batches, and with statistics estimated anew (PreciseBN).

Contract: convnet trains a few steps as in fixtures_training.py; then, weights unchanged and dropout off, the samples behind the training
batches are evaluated in evaluation mode (`stored`: mean loss, errors), in training mode chunk by chunk without touching running
statistics (`batch`), and in evaluation mode after `torch.optim.swa_utils.update_bn` over the training batches (`precise`; `buffer.<name>`
are the buffers then). `mean_noise` and `variance_noise` (layers,) are means over channels and chunks of (μ_B − μ_run)²/v_run and
(ln v_B − ln v_run)², both variances unbiased, of the chunks that `batch` evaluates. Metadata as of training, and `evaluated`, `chunk`.

Reference: METHODOLOGY.md, "Learning"; Wu and Johnson 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import training
from fixture import Arrays, Fixture, gaps
from fixtures_training import DIGITS, JITTERS, Run
from training import Sgd, numpy_tensors

EVALUATED = 48
CHUNK = 6


def batches(run: Run, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return the training batches."""
    loaded = [run.source.batch(k * run.batch, run.batch) for k in range(run.steps)]
    return [(inputs.to(dtype), labels) for inputs, labels in loaded]


def outcome(net: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the summed loss and the errors of some samples."""
    output = net(inputs)
    loss = training.loss_of(output, labels) * len(labels)
    return loss.item(), float((output.argmax(1) != labels).sum())


def noise(net: nn.Module, inputs: Tensor) -> NDArray[np.float64]:
    """Return both noises of every batch norm for one chunk, (layers, 2); the net is in training mode and is thrown away."""
    found: list[list[float]] = []

    def look(module: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        (x,) = given
        dims = (0, 2, 3)
        mean, variance = x.mean(dims), x.var(dims, unbiased=True)
        running, stored = module.running_mean, module.running_var
        squares = [(mean - running) ** 2 / stored, (variance.log() - stored.log()) ** 2]
        found.append([float(values.mean()) for values in squares])

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    net(inputs)
    return np.array(found)


@torch.no_grad()
def evaluate(net: nn.Module, run: Run, dtype: torch.dtype) -> Arrays:
    """Evaluate a trained net in all ways."""
    inputs, labels = run.source.batch(run.steps * run.batch, EVALUATED)
    inputs = inputs.to(dtype)
    stored = outcome(copy.deepcopy(net).eval(), inputs, labels)
    chunks = list(zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True))
    # A copy for each chunk: running statistics stay as they are.
    found = [outcome(copy.deepcopy(net).train(), *chunk) for chunk in chunks]
    noises = np.mean([noise(copy.deepcopy(net).train(), chunk) for chunk, _ in chunks], axis=0)
    anew = copy.deepcopy(net)
    update_bn([batch for batch, _ in batches(run, dtype)], anew)
    precise = outcome(anew.eval(), inputs, labels)
    means = lambda loss, errors: np.array([loss / EVALUATED, errors])  # noqa: E731
    buffers = {f"buffer.{name}": array for name, array in numpy_tensors(anew).items() if "running" in name or "tracked" in name}
    return {
        "stored": means(*stored),
        "batch": means(*np.sum(found, axis=0)),
        "precise": means(*precise),
        "mean_noise": noises[:, 0],
        "variance_noise": noises[:, 1],
    } | buffers


def trained(run: Run, dtype: torch.dtype) -> Arrays:
    """Train and evaluate."""
    net = run.model(dtype)
    optimizer = run.optimizer.make(net)
    for inputs, labels in batches(run, dtype):
        training.step(net, optimizer, inputs, labels)
    return evaluate(net, run, dtype)


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    run = Run("learning_convnet_batch", "convnet", "batch", DIGITS, 16, steps=5, optimizer=Sgd(learning_rate=0.02))
    reference = trained(run, torch.float64)
    singles = [trained(replace(run, jitter=jitter), torch.float32) for jitter in (0, *JITTERS)]
    metadata = run.metadata() | {"kind": "learning", "evaluated": str(EVALUATED), "chunk": str(CHUNK)}
    yield Fixture(run.name, reference, metadata | {"fp32_gap": gaps(reference, *singles)})
