"""Initialisation, batches, optimizer and the step, shared by the fixtures and by the scripts that time PyTorch.

Contract: values come from philox.py or from the digits data and are float32 before any conversion, so that a float64
reference and a float32 engine start from the same numbers. A step is zeroing, forward, mean cross-entropy, backward, update.

Reference: torch.optim.SGD, AdamW and lr_scheduler; scenarios/data/README.md for the digits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR, StepLR

import philox
from layers import Embedding, Positions, Shape, TiedLinear
from model import named_tensors

DATA = Path(__file__).resolve().parent.parent.parent / "scenarios" / "data"
DIGITS_LARGEST = 16.0
# PyTorch's default ignore_index.
UNLABELLED = -100


@dataclass(frozen=True)
class Sgd:
    """Settings of SGD; weight decay applies to every parameter, as in PyTorch by default."""

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False

    def make(self, model: nn.Module) -> torch.optim.SGD:
        """Make PyTorch's optimizer over the model's parameters."""
        settings = {"lr": self.learning_rate, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return torch.optim.SGD(model.parameters(), nesterov=self.nesterov, **settings)

    def metadata(self) -> dict[str, str]:
        """Describe it; `nesterov` only where it is on."""
        known = {key: str(getattr(self, key)) for key in ("learning_rate", "momentum", "weight_decay")}
        return known | ({"nesterov": "true"} if self.nesterov else {})


@dataclass(frozen=True)
class Adamw:
    """Settings of AdamW, PyTorch's defaults."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def make(self, model: nn.Module) -> torch.optim.AdamW:
        """Make PyTorch's optimizer over the model's parameters."""
        settings = {"lr": self.learning_rate, "eps": self.eps, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(model.parameters(), betas=(self.beta1, self.beta2), **settings)

    def metadata(self) -> dict[str, str]:
        """Describe it."""
        return {"optimizer": "adamw"} | {key: str(value) for key, value in asdict(self).items()}


# As in a scenario: "constant", or {"warm-up": {...}}, {"step": {...}}, {"cosine": {...}}.
Schedule = str | dict[str, dict[str, float]]


def scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LRScheduler:
    """Make PyTorch's scheduler; it sets the first step's rate at once."""
    if schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    (kind, values), = schedule.items()
    if kind == "warm-up":
        return warm_up(optimizer, values["steps"], values["start"])
    if kind == "step":
        return StepLR(optimizer, values["every"], values["factor"])
    first = values["warm_up_steps"]
    if first == 0:
        return CosineAnnealingLR(optimizer, values["steps"], values["minimum"])
    parts = [warm_up(optimizer, first, 0.0), CosineAnnealingLR(optimizer, values["steps"], values["minimum"])]
    return SequentialLR(optimizer, parts, [first])


def warm_up(optimizer: torch.optim.Optimizer, steps: int, start: float) -> LRScheduler:
    """Make a LinearLR; from zero, which LinearLR refuses, a LambdaLR of its formula."""
    if start == 0.0:
        return LambdaLR(optimizer, lambda k: min(k, steps) / steps)
    return LinearLR(optimizer, start, total_iters=steps)


@dataclass(frozen=True)
class Source:
    """Where samples come from: "digits" (first samples first, pixels / 16), "synthetic" or "synthetic-tokens" (philox.py)."""

    name: str
    shape: Shape
    classes: int
    seed: int = 0
    # Of tokens: fewest words of a sample, which share of them is hidden, and whether only those are to be predicted.
    shortest: int = 0
    share: float = 0.15
    hidden_only: bool = True

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return samples first..first+count as float32 (count, *shape) and their labels as int64 (count,), or of tokens (count, length)."""
        if self.name == "synthetic-tokens":
            tokens = philox.synthetic_tokens(self.seed, first, count, self.shape[0], self.shortest, self.classes)
            hidden = philox.hidden_tokens(self.seed, first, tokens, self.share)
            inputs = np.where(hidden, 1, tokens).astype(np.float32)
            chosen = np.where(hidden if self.hidden_only else tokens != 0, tokens, UNLABELLED)
        elif self.name == "digits":
            images, labels = digits()
            inputs = images[first : first + count].astype(np.float32)[:, None] / np.float32(DIGITS_LARGEST)
            chosen = labels[first : first + count].astype(np.int64)
        else:
            inputs = philox.synthetic_inputs(self.seed, first, count, self.shape)
            chosen = philox.synthetic_labels(self.seed, first, count, self.classes)
        return torch.from_numpy(inputs), torch.from_numpy(chosen)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes."""
    content = path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes")
    rank = content[3]
    shape = tuple(np.frombuffer(content, dtype=">u4", count=rank, offset=4).astype(int))
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (1797, 8, 8) with values 0..=16 and labels (1797,)."""
    return read_idx(DATA / "digits.images.idx3-ubyte"), read_idx(DATA / "digits.labels.idx1-ubyte")


def fan_in(module: nn.Module) -> int:
    """Return how many inputs one output of a linear or conv2d layer sums over; of embeddings and positions, the features."""
    if isinstance(module, TiedLinear):
        return fan_in(module.tokens[0].embedding)
    return math.prod(module.weight.shape[1:])


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Fill the parameters as philox.py says and reset running statistics; the model must be float32."""
    stream = 0
    for module in model.modules():
        if hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
        for name, tensor in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear | nn.Conv2d | Embedding | Positions | TiedLinear):
                values = philox.parameter(seed, stream, tuple(tensor.shape), fan_in(module))
                tensor.copy_(torch.from_numpy(values))
            else:
                tensor.fill_(1.0 if name == "weight" else 0.0)
            stream += 1


def loss_of(output: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy; of tokens over a sample's labels first, then over samples."""
    if labels.dim() == 1:
        return functional.cross_entropy(output, labels)
    # Flat, as PyTorch is fastest: with classes in the middle, softmax and loss walk over strides.
    each = functional.cross_entropy(output.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="none").view_as(labels)
    return (each.sum(1) / (labels != UNLABELLED).sum(1).clamp(min=1)).mean()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> float:
    """Take one step on a batch and return its mean loss before the update."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def numpy_tensors(model: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Copy parameters and buffers out of the model, in execution order."""
    return {name: tensor.detach().numpy().copy() for name, tensor in named_tensors(model).items()}
