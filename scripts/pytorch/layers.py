"""The layers of a model file that PyTorch has no single module for, and the shape rules of all of them.

Contract: shapes are per sample, NCHW without N: `(features,)`, `(channels, length)` or `(channels, height, width)`. Every module made by
`model.build` carries `kind`, the key of its layer in the model file, which named_tensors puts into names.

Reference: bench/engine/src/model/spec.rs defines the layers; Wu and He 2018 (arXiv:1803.08494) compare norms whose γ and β
are per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


class ModelError(ValueError):
    """A model file that can't be built; the message says where and what to write instead."""


class ChannelLayerNorm(nn.Module):
    """LayerNorm over (C, H, W) of each sample, then γ and β per channel."""

    def __init__(self, shape: Shape, eps: float) -> None:
        """Take the per-sample shape, channels first."""
        super().__init__()
        self.shape = shape
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(shape[0]))
        self.bias = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, …); same shape out."""
        normalized = functional.layer_norm(x, self.shape, eps=self.eps)
        per_channel = (-1,) + (1,) * (len(self.shape) - 1)
        return normalized * self.weight.view(per_channel) + self.bias.view(per_channel)


class ChannelRmsNorm(nn.Module):
    """RMSNorm over all dimensions of each sample, then γ per channel."""

    def __init__(self, shape: Shape, eps: float) -> None:
        """Take the per-sample shape, channels first."""
        super().__init__()
        self.shape = shape
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, …); same shape out."""
        normalized = functional.rms_norm(x, self.shape, eps=self.eps)
        return normalized * self.weight.view((-1,) + (1,) * (len(self.shape) - 1))


class GlobalAveragePool(nn.Module):
    """Mean over height and width, or length: (N, C, …) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Average all dimensions after the channels."""
        return x.flatten(2).mean(dim=2)


class Residual(nn.Module):
    """body(x) + shortcut(x); an empty shortcut is the identity. The body executes first."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        """Take both branches; their outputs have equal shapes."""
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches."""
        return self.body(x) + self.shortcut(x)


def positions(shape: Shape, where: str) -> Shape:
    """Return the shape, or raise ModelError where it is flat."""
    if len(shape) == 1:
        raise ModelError(f"{where} needs [channels, height, width], got {list(shape)}: put it before flatten")
    return shape


def image(shape: Shape, where: str) -> tuple[int, int, int]:
    """Return (channels, height, width), or raise ModelError where the input is flat."""
    if len(shape) != 3:
        raise ModelError(f"{where} needs [channels, height, width], got {list(shape)}: put it before flatten")
    return shape[0], shape[1], shape[2]


def window(side: int, kernel: int, stride: int, padding: int, where: str) -> int:
    """Return the number of window positions along one side."""
    if side + 2 * padding < kernel:
        raise ModelError(f"{where}: a window of {kernel} does not fit into {side} with padding {padding}")
    return (side + 2 * padding - kernel) // stride + 1


def default_groups(channels: int) -> int:
    """Return G = min(32, C/4), at least 1."""
    return max(1, min(32, channels // 4))
