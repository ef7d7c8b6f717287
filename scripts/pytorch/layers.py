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


class Tokens:
    """What an embedding knows and later layers need: where padding is in the batch at hand."""

    def __init__(self, embedding: nn.Embedding) -> None:
        """Take the embedding, whose table a head may share."""
        self.embedding = embedding
        self.padding: Tensor | None = None

    def kept(self) -> Tensor | None:
        """Return which positions are not padding, (N, T); none where all count."""
        return None if self.padding is None else ~self.padding


class Embedding(nn.Embedding):
    """Embedding of tokens (N, T) to (N, T, D) that remembers where padding was."""

    def __init__(self, vocabulary: int, features: int, padding: int | None) -> None:
        """Take PyTorch's num_embeddings, embedding_dim and padding_idx."""
        super().__init__(vocabulary, features, padding)
        # In a list, so that it becomes no submodule.
        self.tokens = [Tokens(self)]

    def forward(self, x: Tensor) -> Tensor:
        """Look up whole numbers of any type."""
        x = x.long()
        self.tokens[0].padding = None if self.padding_idx is None else x == self.padding_idx
        return super().forward(x)


class Positions(nn.Module):
    """x + a learned vector for each position, (N, T, D)."""

    def __init__(self, length: int, features: int) -> None:
        """Take T and D."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, features))

    def forward(self, x: Tensor) -> Tensor:
        """Add them."""
        return x + self.weight


class Attention(nn.Module):
    """Multi-head self-attention over (N, T, D); nobody looks at padding."""

    def __init__(self, features: int, heads: int, dropout: float, bias: bool, tokens: Tokens) -> None:
        """Take the settings of a model file."""
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.tokens = [tokens]
        self.projection = nn.Linear(features, 3 * features, bias)
        self.output = nn.Linear(features, features, bias)
        self.projection.kind = self.output.kind = "linear"

    def forward(self, x: Tensor) -> Tensor:
        """Attend; same shape out."""
        n, length, features = x.shape
        split = self.projection(x).view(n, length, 3, self.heads, features // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        kept = self.tokens[0].kept()
        mask = None if kept is None else kept[:, None, None, :]
        p = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.output(mixed.transpose(1, 2).reshape(n, length, features))


class TiedLinear(nn.Module):
    """y = x·Wᵀ + b with an embedding's table as W."""

    def __init__(self, tokens: Tokens, bias: bool) -> None:
        """Take the embedding; the b is this layer's own."""
        super().__init__()
        self.tokens = [tokens]
        self.bias = nn.Parameter(torch.zeros(tokens.embedding.num_embeddings)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, vocabulary)."""
        return functional.linear(x, self.tokens[0].embedding.weight, self.bias)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm of each feature over samples and positions of (N, T, D), without padding if `masked`, where it gives zeros."""

    def __init__(self, features: int, masked: bool, tokens: Tokens, **values: float) -> None:
        """Take BatchNorm1d's settings."""
        super().__init__(features, **values)
        self.masked = masked
        self.tokens = [tokens]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; same shape out."""
        kept = self.tokens[0].kept()
        if not self.masked or kept is None:
            return super().forward(x.flatten(0, 1)).view_as(x)
        out = torch.zeros_like(x)
        out[kept] = super().forward(x[kept])
        return out


class TokenGroupNorm(nn.GroupNorm):
    """GroupNorm of each position of (N, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; same shape out."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class TokenInstanceNorm(nn.InstanceNorm1d):
    """InstanceNorm of each feature over the positions of (N, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; same shape out."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


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
