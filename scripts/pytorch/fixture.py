"""A golden fixture: named arrays and string metadata in one safetensors file.

Contract: the bytes written depend on the content alone. The library's own writer orders metadata by a hash that changes from
run to run, which would show as a change in every commit; so the few lines of the format are written here, and read back by the
library.

Reference: the format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

Arrays = dict[str, NDArray[np.generic]]
DTYPES = {"float64": "F64", "float32": "F32", "int64": "I64", "uint32": "U32"}
COMMAND = "python scripts/golden.py"
# Largest difference between two runs of one reference, over the largest magnitude in the tensor. Layers: another machine may
# sum float64 in another order. Ten steps of training amplify that; float32 results are compared loosely, because libraries
# choose float32 kernels by processor; how far float32 strays is a property of the machine that wrote the file, and not compared.
TOLERANCE = {"F64": 1e-12, "F32": 0.0, "I64": 0.0, "U32": 0.0}
TRAINED_TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 1e-2


@dataclass
class Fixture:
    """One file: `<name>.safetensors`."""

    name: str
    tensors: Arrays = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """Serialise: header length, JSON header padded to 8 bytes, tensors with the widest elements first."""
        header: dict[str, object] = {"__metadata__": self.full_metadata()}
        widest_first = sorted(self.tensors.items(), key=lambda item: -item[1].itemsize)
        parts, offset = [], 0
        for name, array in widest_first:
            part = np.ascontiguousarray(array).tobytes()
            span = [offset, offset + len(part)]
            header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": span}
            parts.append(part)
            offset += len(part)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + b"".join(parts)

    def full_metadata(self) -> dict[str, str]:
        """Add what every fixture says about its origin."""
        return {"torch": torch.__version__.split("+")[0], "numpy": np.__version__, "command": COMMAND, **self.metadata}

    def write(self, folder: Path) -> int:
        """Write the file, read it back, and return its size."""
        path = folder / f"{self.name}.safetensors"
        content = self.bytes()
        path.write_bytes(content)
        problems = compare(self, path)
        if problems:
            raise RuntimeError(f"{path} does not read back: {problems}")
        return len(content)


def compare(fixture: Fixture, path: Path) -> list[str]:
    """Return what differs between a fixture and a file; names and shapes must be equal, values within the tolerance."""
    if not path.exists():
        return ["the file is missing"]
    with safe_open(path, framework="numpy") as stored:
        found = {name: stored.get_tensor(name) for name in stored.keys()}
        metadata = stored.metadata()
    problems = []
    if set(found) != set(fixture.tensors):
        problems.append(f"names differ: {sorted(set(found) ^ set(fixture.tensors))}")
    exact = {key: value for key, value in fixture.full_metadata().items() if key not in ("fp32_gap", "numpy")}
    problems += [f"metadata {key!r} differs" for key, value in exact.items() if metadata.get(key) != value]
    for name in sorted(set(found) & set(fixture.tensors)):
        problem = difference(fixture.tensors[name], found[name], tolerance(fixture, name))
        if problem:
            problems.append(f"{name}: {problem}")
    return problems


def tolerance(fixture: Fixture, name: str) -> float:
    """Return how far a tensor may be from the committed one, relative to its largest magnitude."""
    dtype = DTYPES[fixture.tensors[name].dtype.name]
    if name == "losses_gap":
        return math.inf
    if name == "losses_fp32":
        return FLOAT32_TOLERANCE
    if dtype == "F64" and "steps_trained" in fixture.metadata:
        return TRAINED_TOLERANCE
    return TOLERANCE[dtype]


def difference(new: NDArray[np.generic], old: NDArray[np.generic], allowed: float) -> str | None:
    """Say how two arrays differ, or None."""
    if new.shape != old.shape or new.dtype != old.dtype:
        return f"{new.dtype}{list(new.shape)} became {old.dtype}{list(old.shape)}"
    if new.size == 0 or np.array_equal(new, old):  # Equal infinities have no difference.
        return None
    distance = np.abs(new.astype(np.float64) - old.astype(np.float64)).max()
    scale = np.abs(old.astype(np.float64)).max()
    return None if distance <= allowed * scale else f"largest difference {distance:.3g} at magnitude {scale:.3g}"


def gaps(reference: Arrays, *singles: Arrays) -> str:
    """Return as JSON, per tensor, the largest difference of PyTorch's float32 results from its float64 result."""
    worst = {
        name: max(float(np.abs(single[name] - expected).max(initial=0.0)) for single in singles)
        for name, expected in reference.items()
    }
    return json.dumps(worst)
