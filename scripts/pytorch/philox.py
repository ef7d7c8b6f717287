"""Philox4x32-10 and the values that syncmark draws from it, in numpy.

Contract. The Rust engine and this file implement the same text, so that both sides of a fixture generate equal weights,
inputs and labels, and large models need no stored weights:

- Generator: Philox4x32 with 10 rounds (multipliers 0xD2511F53 and 0xCD9E8D57, Weyl keys 0x9E3779B9 and 0xBB67AE85).
- Key: (low 32 bits of the seed, high 32 bits of the seed).
- Counter: (low 32 bits of the block, high 32 bits of the block, stream, purpose).
- One block of four words makes four consecutive elements: element i is word i % 4 of block i / 4.
- Uniform in [0, 1): (word >> 8) · 2⁻²⁴, exact in float32.
- Purposes: 0 parameter initialisation, 1 dropout, 2 data and synthetic inputs, 3 shuffles, 4 synthetic labels, 5 first factors of compressed gradients,
  6 synthetic tokens.
- Parameters: purpose 0; stream = index of the trainable tensor in execution order, from zero, buffers not counted; elements in
  PyTorch's order (OIHW, OI). Weight and bias of linear and conv2d: (2u − 1) · bound in float32, where bound = 1/sqrt(fan_in)
  rounded to float32 (PyTorch's default distribution); of embeddings and positions, fan_in is the number of features. Norms: γ = 1, β = 0, drawing nothing but counting as streams.
- Synthetic inputs: purpose 2, stream 0; element e of sample s is element s · elements_per_sample + e; its value is
  (2u − 1) · sqrt(3) in float32, which has variance 1.
- Synthetic tokens: purpose 6. Sample s has shortest + word % (length − shortest + 1) words, by element s of stream 1. Its word t is
  2 + word % (vocabulary − 2), by element s · length + t of stream 0; the rest is padding, 0. Word t is hidden, replaced by 1, where
  u < share by that element of stream 2, and where t = word % (its words) by element s of stream 3.
- Synthetic labels: purpose 4, stream 0; the label of sample s is word % classes of element s.

Reference: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; known answers from
Random123's kat_vectors.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MASK = np.uint64(0xFFFFFFFF)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# (counter, key, output) from Random123's kat_vectors, philox4x32 10.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


class Purpose(IntEnum):
    """Last word of the counter: what the numbers are for."""

    PARAMETER = 0
    DROPOUT = 1
    INPUT = 2
    SHUFFLE = 3
    LABEL = 4
    TOKENS = 6


def philox4x32(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Apply ten rounds to counters of shape (blocks, 4); return words of the same shape."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of two 32-bit words fits in 64 bits, so nothing is lost here.
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), p1 & MASK, high0 ^ c3 ^ np.uint64(k1), p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, stream: int, purpose: Purpose, first: int, count: int) -> NDArray[np.uint32]:
    """Return the words of elements first..first+count, shape (count,)."""
    if count <= 0:
        return np.zeros(0, dtype=np.uint32)
    first_block, last_block = first // 4, (first + count - 1) // 4
    blocks = np.arange(first_block, last_block + 1, dtype=np.uint64)
    counters = np.empty((len(blocks), 4), dtype=np.uint64)
    counters[:, 0] = blocks & MASK
    counters[:, 1] = blocks >> np.uint64(32)
    counters[:, 2] = stream
    counters[:, 3] = int(purpose)
    flat = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)
    skip = first - 4 * first_block
    return flat[skip : skip + count]


def uniform(seed: int, stream: int, purpose: Purpose, first: int, count: int) -> NDArray[np.float32]:
    """Return floats in [0, 1) on a grid of 2⁻²⁴, shape (count,)."""
    return (words(seed, stream, purpose, first, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def symmetric(seed: int, stream: int, purpose: Purpose, first: int, count: int, bound: float) -> NDArray[np.float32]:
    """Return (2u − 1) · bound in float32; 2u − 1 is exact, so there is one rounding."""
    u = uniform(seed, stream, purpose, first, count)
    return (np.float32(2.0) * u - np.float32(1.0)) * np.float32(bound)


def parameter(seed: int, stream: int, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float32]:
    """Return the initial weight or bias of a linear or conv2d layer."""
    bound = 1.0 / np.sqrt(np.float64(fan_in))
    return symmetric(seed, stream, Purpose.PARAMETER, 0, int(np.prod(shape)), float(bound)).reshape(shape)


def synthetic_inputs(seed: int, first: int, count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return samples first..first+count, shape (count, *shape), of variance 1."""
    elements = int(np.prod(shape))
    bound = float(np.sqrt(np.float64(3.0)))
    flat = symmetric(seed, 0, Purpose.INPUT, first * elements, count * elements, bound)
    return flat.reshape(count, *shape)


def synthetic_labels(seed: int, first: int, count: int, classes: int) -> NDArray[np.int64]:
    """Return the labels of samples first..first+count, shape (count,)."""
    return (words(seed, 0, Purpose.LABEL, first, count) % np.uint32(classes)).astype(np.int64)


def synthetic_tokens(seed: int, first: int, count: int, length: int, shortest: int, vocabulary: int) -> NDArray[np.int64]:
    """Return the words of samples first..first+count, shape (count, length), filled up with 0."""
    lengths = shortest + words(seed, 1, Purpose.TOKENS, first, count) % np.uint32(length - shortest + 1)
    drawn = words(seed, 0, Purpose.TOKENS, first * length, count * length).reshape(count, length)
    found = 2 + (drawn % np.uint32(vocabulary - 2)).astype(np.int64)
    return np.where(np.arange(length) < lengths[:, None], found, 0)


def hidden_tokens(seed: int, first: int, tokens: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Say which words of samples first.. are hidden; padding, 0, never is."""
    count, length = tokens.shape
    drawn = uniform(seed, 2, Purpose.TOKENS, first * length, count * length).reshape(count, length)
    always = words(seed, 3, Purpose.TOKENS, first, count) % (tokens != 0).sum(axis=1).astype(np.uint32)
    hidden = (drawn < np.float32(share)) | (np.arange(length) == always[:, None])
    return hidden & (tokens != 0)
