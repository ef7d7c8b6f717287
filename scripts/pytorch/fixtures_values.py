"""Fixtures of softmax cross-entropy and of the Philox generator.

Contract: `loss_<case>`: `input` logits (batch, classes) float32, `labels` int64, `output` the mean loss, `d_input` its gradient,
both float64. `philox_words`: `kat.counter`, `kat.key`, `kat.output`, and per row of metadata `draws` (name, seed, stream,
purpose, first, count) `words.<name>` and `uniform.<name>`. `philox_batch`: synthetic inputs and labels. `philox_convnet`: the
initial parameters of convnet with BatchNorm at seed 7.

Reference: philox.py; torch.nn.functional.cross_entropy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

import model
import philox
import training
from fixture import Arrays, Fixture, gaps
from layer_case import draw

# (name, batch, classes, scale of the logits)
LOSSES = (
    ("loss_small", 4, 5, 1.0),
    ("loss_ten_classes", 16, 10, 3.0),
    ("loss_many_classes", 3, 257, 2.0),
    ("loss_large_logits", 6, 10, 1e4),
    ("loss_one_sample", 1, 3, 1.0),
)
# (name, seed, stream, purpose, first, count); "carry" crosses from the counter's low word to its high word.
DRAWS = (
    ("parameters", 0, 0, 0, 0, 17),
    ("stream", 0, 3, 0, 0, 9),
    ("wide_seed", 0x0123456789ABCDEF, 1, 2, 5, 11),
    ("dropout", 42, 6, 1, 1021, 8),
    ("carry", 7, 0, 2, 2**34 - 6, 12),
    ("labels", 1, 0, 4, 2, 10),
    ("one", 5, 2, 3, 3, 1),
)


def loss(name: str, batch: int, classes: int, scale: float) -> Fixture:
    """Make one fixture of the mean cross-entropy."""
    logits = draw(len(name), 0, (batch, classes)) * np.float32(scale)
    labels = philox.synthetic_labels(len(name), 0, batch, classes)

    def evaluate(dtype: torch.dtype) -> Arrays:
        leaf = torch.from_numpy(logits).to(dtype).requires_grad_()
        value = functional.cross_entropy(leaf, torch.from_numpy(labels))
        value.backward()
        return {"output": value.detach().numpy().reshape(1), "d_input": leaf.grad.numpy()}

    reference = evaluate(torch.float64)
    metadata = {
        "kind": "loss",
        "layer": json.dumps("softmax-cross-entropy"),
        "mode": "train",
        "input_shape": json.dumps([classes]),
    }
    metadata |= {"batch": str(batch), "fp32_gap": gaps(reference, evaluate(torch.float32))}
    return Fixture(name, {"input": logits, "labels": labels} | reference, metadata)


def words() -> Fixture:
    """Make the table of raw words and uniforms, with Random123's known answers."""
    counters, keys, outputs = (np.array(column, dtype=np.uint32) for column in zip(*philox.KNOWN_ANSWERS, strict=True))
    tensors: Arrays = {"kat.counter": counters, "kat.key": keys, "kat.output": outputs}
    for name, seed, stream, purpose, first, count in DRAWS:
        drawn = (seed, stream, philox.Purpose(purpose), first, count)
        tensors[f"words.{name}"] = philox.words(*drawn)
        tensors[f"uniform.{name}"] = philox.uniform(*drawn)
    fields = ("name", "seed", "stream", "purpose", "first", "count")
    table = [dict(zip(fields, row, strict=True)) for row in DRAWS]
    return Fixture("philox_words", tensors, {"kind": "philox", "draws": json.dumps(table)})


def batch() -> Fixture:
    """Make synthetic samples 5..8 of shape (3, 5, 3) at seed 11: 45 elements each, so samples cut through blocks."""
    tensors: Arrays = {
        "input": philox.synthetic_inputs(11, 5, 3, (3, 5, 3)),
        "labels": philox.synthetic_labels(11, 5, 3, 10),
    }
    metadata = {"kind": "philox", "seed": "11", "first": "5", "count": "3", "input_shape": "[3, 5, 3]", "classes": "10"}
    return Fixture("philox_batch", tensors, metadata)


def initial() -> Fixture:
    """Make the initial parameters of convnet at seed 7."""
    net = model.build(model.preset("convnet"), "batch")
    training.initialize(net, 7)
    tensors = {f"param.{name}": p for name, p in training.numpy_tensors(net).items() if p.dtype == np.float32}
    tensors = {name: p for name, p in tensors.items() if "running" not in name}
    return Fixture("philox_convnet", tensors, {"kind": "philox", "model": "convnet", "norm": "batch", "seed": "7"})


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    yield from (loss(*row) for row in LOSSES)
    yield words()
    yield batch()
    yield initial()
