"""Runs one layer forward and backward in float64 and float32 and records what goes in and what comes out.

Contract: inputs, upstream gradients and parameters are drawn by philox.py, seeded by the CRC-32 of the case's name, and are
float32; outputs and gradients are float64 results from exactly those values. Tensors: `input`, `upstream`, `output`,
`d_input`, `param.<name>`, `d_param.<name>`, `buffer_before.<name>`, `buffer_after.<name>`, the names as in
model.named_tensors. With more than one step, input, upstream, output and d_input have a leading step axis, parameters stay
as they are, and d_param is the sum over the steps. Metadata `fp32_gap` holds, per result, the largest difference of
PyTorch's own float32 result: the yardstick for tolerances. Of layers for tokens, the layer is an embedding and what follows it; the
input is tokens, each sample filled up with 0 from a length of its own on, and has no gradient; outputs are stored as (D, T).

Reference: SEMANTICS 6 for chunks: each chunk has its own statistics, and chunk 0's are stored.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import model
import philox
from fixture import Arrays, Fixture, gaps
from layers import Embedding, Positions, Shape
from training import fan_in


@dataclass(frozen=True)
class Case:
    """One fixture of one layer; `shape` is per sample."""

    name: str
    layer: model.Layer
    shape: Shape
    batch: int = 3
    mode: str = "train"
    steps: int = 1
    chunks: tuple[int, ...] = ()
    fill: str = "uniform"

    @property
    def seed(self) -> int:
        """Seed of everything the case draws."""
        return zlib.crc32(self.name.encode())

    def metadata(self) -> dict[str, str]:
        """Describe the case as the Rust side reads it."""
        return {
            "kind": "layer",
            "layer": json.dumps(self.layer),
            "mode": self.mode,
            "input_shape": json.dumps(list(self.shape)),
            "batch": str(self.batch),
            "steps": str(self.steps),
            "chunks": json.dumps(list(self.chunks or (self.batch,))),
        }


def draw(seed: int, stream: int, shape: Shape, bound: float = math.sqrt(3.0)) -> NDArray[np.float32]:
    """Return values uniform in ±bound."""
    return philox.symmetric(seed, stream, philox.Purpose.INPUT, 0, math.prod(shape), bound).reshape(shape)


class FeaturesFirst(nn.Module):
    """(N, T, D) to (N, D, T)."""

    def forward(self, x: Tensor) -> Tensor:
        """Transpose."""
        return x.transpose(1, 2)


def tokens(case: Case, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn values within ±√3 into tokens, all but the first sample filled up with 0."""
    vocabulary = case.layer["repeat"]["layers"][0]["embedding"]["vocabulary"]
    found = np.minimum(np.floor((values / np.float32(math.sqrt(12.0)) + np.float32(0.5)) * vocabulary), vocabulary - 1)
    (length,) = case.shape
    lengths = length - (2 * np.arange(case.batch) + 2 * np.arange(case.steps)[:, None]) % length
    return np.where(np.arange(length) < lengths[..., None], found, 0.0).astype(np.float32)


def inputs(case: Case) -> NDArray[np.float32]:
    """Return the input, shape (steps, batch, *shape), filled as the case says."""
    shape = (case.steps, case.batch, *case.shape)
    values = draw(case.seed, 0, shape)
    if case.fill == "tokens":
        return tokens(case, values)
    channel = np.arange(case.shape[0], dtype=np.float32).reshape(-1, *(1,) * (len(case.shape) - 1))
    match case.fill:
        case "uniform":
            return values
        case "shifted":  # Channels with means of their own, so that a mean over the wrong axes shows.
            return values + np.float32(0.5) * (channel - np.float32(1.0))
        case "far":  # A mean of 4096 deviations: E[x²] − E[x]² loses every digit of the variance in float32.
            return values + np.float32(4096.0)
        case "wide":  # Far into the tails of GELU.
            return values * np.float32(3.0)
        case "tiny":  # Squares of about RMSNorm's default eps, so that a wrong eps shows.
            return values * np.float32(2.0**-12)
        case "levels":  # Five levels with exact zeros, so that maxima tie and ReLU sits on its kink.
            return np.floor(values * np.float32(1.4)) * np.float32(0.5) + np.float32(0.5)
    raise ValueError(f"{case.name}: fill {case.fill!r} is unknown: write uniform, shifted, far, wide, tiny, levels or tokens")


@torch.no_grad()
def fill_tensors(module: nn.Module, case: Case) -> None:
    """Give every parameter, and in eval every running statistic, a value that shows mistakes."""
    owners = {id(t): m for m in module.modules() for t in m.parameters(recurse=False)}
    for index, (name, tensor) in enumerate(model.named_tensors(module).items()):
        values = draw(case.seed, 100 + index, tuple(tensor.shape), 1.0)
        owner = owners.get(id(tensor))
        if isinstance(owner, nn.Linear | nn.Conv2d | Embedding | Positions):
            tensor.copy_(torch.from_numpy(values * np.float32(fan_in(owner) ** -0.5)))
        elif name.endswith(("weight", "running_var")) and (owner or case.mode == "eval"):
            tensor.copy_(torch.from_numpy(np.float32(1.0) + np.float32(0.5) * values))
        elif name.endswith(("bias", "running_mean")) and (owner or case.mode == "eval"):
            tensor.copy_(torch.from_numpy(np.float32(0.5) * values))


def buffers(module: nn.Module, prefix: str) -> Arrays:
    """Copy the buffers, under `prefix`."""
    trainable = {id(parameter) for parameter in module.parameters()}
    named = model.named_tensors(module).items()
    return {prefix + name: tensor.numpy().copy() for name, tensor in named if id(tensor) not in trainable}


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable tensors by name."""
    return {name: t for name, t in model.named_tensors(module).items() if isinstance(t, nn.Parameter)}


def chunked_forward(module: nn.Module, x: Tensor, chunks: tuple[int, ...]) -> Tensor:
    """Run each chunk with statistics of its own; only chunk 0 updates the module's buffers."""
    outputs = []
    for index, part in enumerate(x.split(list(chunks))):
        kept = {name: tensor.clone() for name, tensor in module.named_buffers()}
        if index == 0:
            outputs.append(module(part))
        else:
            outputs.append(torch.func.functional_call(module, kept, (part,)))
    return torch.cat(outputs)


def evaluate(module: nn.Module, case: Case, x: NDArray[np.float32], upstream: NDArray[np.float32], dtype: torch.dtype) -> Arrays:
    """Run every step forward and backward in `dtype`; return results under the fixture's names."""
    module = copy.deepcopy(module).to(dtype).train(case.mode == "train")
    outputs, gradients = [], []
    for x_step, upstream_step in zip(x, upstream, strict=True):
        leaf = torch.from_numpy(x_step).to(dtype).requires_grad_()
        output = chunked_forward(module, leaf, case.chunks or (case.batch,))
        output.backward(torch.from_numpy(upstream_step).to(dtype))
        outputs.append(output.detach().numpy())
        gradients += [] if leaf.grad is None else [leaf.grad.numpy()]
    stack = np.stack if case.steps > 1 else lambda arrays: arrays[0]
    results: Arrays = {"output": stack(outputs)} | ({"d_input": stack(gradients)} if gradients else {})
    results |= {f"d_param.{name}": p.grad.numpy() for name, p in parameters(module).items()}
    return results | buffers(module, "buffer_after.")


def output_shape(module: nn.Module, case: Case) -> Shape:
    """Return the per-sample output shape."""
    with torch.no_grad():
        return tuple(copy.deepcopy(module).eval()(torch.zeros(1, *case.shape)).shape[1:])


def run(case: Case) -> Fixture:
    """Make the fixture of a case."""
    spec = {"layers": [case.layer], "classes": 10, "input": case.shape}
    module = model.build(spec, "none")
    if case.fill == "tokens":
        module = nn.Sequential(module, FeaturesFirst())
    fill_tensors(module, case)
    x = inputs(case)
    upstream = draw(case.seed, 1, (case.steps, case.batch, *output_shape(module, case)))
    reference = evaluate(module, case, x, upstream, torch.float64)
    single = evaluate(module, case, x, upstream, torch.float32)
    squeeze = slice(None) if case.steps > 1 else 0
    given: Arrays = {"input": x[squeeze], "upstream": upstream[squeeze]}
    given |= {f"param.{name}": p.detach().numpy() for name, p in parameters(module).items()}
    given |= buffers(module, "buffer_before.")
    return Fixture(case.name, given | reference, case.metadata() | {"fp32_gap": gaps(reference, single)})
