"""Fixtures of the models for 224×224 images: three training steps, of which only what is small is kept.

Contract: as fixtures_training.py, but with `kind` = `imagenet` and with norms in arrays, because there are hundreds of tensors.
Tensors: `losses`, `losses_fp32`, `losses_gap` (steps,); `labels` (steps, batch) and `input_head`; `logits` (batch, classes) of step
0; `first_gradient_norms` and `parameter_norms` (parameters,), `buffer_norms` (buffers,), in execution order, of step 0's
gradients and of the state after the last step; `first_gradient.<name>` and `parameter.<name>`, the first elements of some of them.
Metadata `parameters` and `buffers` (JSON lists) name what the arrays hold; `fp32_gap` as elsewhere: for the norms, the largest
relative gap of all of them.

Reference: He et al. 2015, table 1; torchvision's resnet18 and resnet50, whose sizes test_model.py checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import model
import training
from fixture import Arrays, Fixture
from fixtures_training import JITTERS, Run, gradients, loss_gaps
from training import Sgd, Source

STEPS = 3
# Elements that are kept of a tensor.
SLICE = 48
# Float32 runs beside the contiguous and the channels_last one.
MOVED = JITTERS[:2]


def split(net: nn.Module) -> tuple[Arrays, Arrays]:
    """Copy parameters and floating-point buffers, in execution order."""
    named = model.named_tensors(net).items()
    parameters = {name: t.detach().numpy().copy() for name, t in named if isinstance(t, nn.Parameter)}
    buffers = {name: t.numpy().copy() for name, t in named if name not in parameters and t.is_floating_point()}
    return parameters, buffers


def sliced(names: list[str]) -> list[str]:
    """Choose the first convolution, one in the middle, the last one, a γ and the classifier."""
    weights = [name for name in names if name.endswith("conv2d.weight")]
    gammas = [name for name in names if name.endswith("norm.weight")]
    return [weights[0], weights[len(weights) // 2], weights[-1], gammas[len(gammas) // 2], names[-2]]


def l2(arrays: Arrays) -> np.ndarray:
    """Return the L2 norm of each array."""
    return np.array([np.linalg.norm(array.astype(np.float64)) for array in arrays.values()])


def train(run: Run, dtype: torch.dtype, memory: torch.memory_format) -> Arrays:
    """Train and keep what is small."""
    net = run.model(dtype).to(memory_format=memory)
    optimizer = run.optimizer.make(net)
    losses, logits, first = [], [], {}
    net.register_forward_hook(lambda _net, _inputs, output: logits.append(output.detach().numpy().copy()))
    for k in range(run.steps):
        inputs, labels = run.source.batch(k * run.batch, run.batch)
        losses.append(training.step(net, optimizer, inputs.to(dtype, memory_format=memory), labels))
        first = first or gradients(net)
    parameters, buffers = split(net)
    norms = {"first_gradient_norms": l2(first), "parameter_norms": l2(parameters), "buffer_norms": l2(buffers)}
    kept = sliced(list(parameters))
    slices = {f"first_gradient.{name}": first[name].reshape(-1)[:SLICE] for name in kept}
    slices |= {f"parameter.{name}": parameters[name].reshape(-1)[:SLICE] for name in kept}
    return {"losses": np.array(losses), "logits": logits[0]} | norms | slices


def distance(name: str, reference: Arrays, single: Arrays) -> float:
    """Return how far a result is from the reference: relative for norms, since each stands for another tensor."""
    difference = np.abs(single[name] - reference[name])
    return float((difference / np.maximum(reference[name], 1e-30) if name.endswith("_norms") else difference).max())


def fixture(run: Run) -> Fixture:
    """Make the fixture of a run, in float64 and several times in float32."""
    reference = train(run, torch.float64, torch.contiguous_format)
    variants = [(run, torch.contiguous_format), (run, torch.channels_last)]
    variants += [(replace(run, jitter=seed), torch.contiguous_format) for seed in MOVED]
    singles = [train(variant, torch.float32, memory) for variant, memory in variants]
    gaps = {name: max(distance(name, reference, single) for single in singles) for name in reference}
    parameters, buffers = split(run.model(torch.float32))
    described = {"parameters": json.dumps(list(parameters)), "buffers": json.dumps(list(buffers)), "fp32_gap": json.dumps(gaps)}
    labels = np.stack([run.source.batch(k * run.batch, run.batch)[1].numpy() for k in range(run.steps)])
    given = {"labels": labels, "input_head": run.source.batch(0, 1)[0].numpy().reshape(-1)[:16]}
    losses = {"losses_fp32": singles[0]["losses"].astype(np.float32), "losses_gap": loss_gaps(reference, singles)}
    return Fixture(run.name, given | losses | reference, run.metadata() | {"kind": "imagenet"} | described)


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    source = Source("synthetic", (3, 224, 224), 1000, seed=5)
    # Gradients of ResNet-50 at these weights are some hundred: at a larger rate float32 and float64 part in one step.
    for preset, rate in (("resnet18", 1e-3), ("resnet50", 1e-5)):
        yield fixture(Run(f"imagenet_{preset}", preset, "batch", source, 2, steps=STEPS, optimizer=Sgd(learning_rate=rate)))
