#!/usr/bin/env python3
"""Write scenarios/data/digits.* from scikit-learn's copy of the digits data.

Contract: the two files are IDX (the format of MNIST: big-endian header, unsigned bytes), in scikit-learn's order,
and equal byte for byte on every machine. The digests below are checked after writing; `--check` writes nothing and
compares the committed files with what scikit-learn holds.

Reference: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49 (CC BY 4.0); IDX: the page of MNIST, http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DATA = Path(__file__).resolve().parent.parent / "scenarios" / "data"
# Of the files as first written with scikit-learn 1.9; another digest means that the source changed.
DIGESTS = {
    "digits.images.idx3-ubyte": "359cd13f0f514122884198b78a131df597421cbf5e93a76678fa96fc548f0d96",
    "digits.labels.idx1-ubyte": "ce71631c1f31ce56fa54f31d1d498fafacff59b001e6c30c4a5e29508aa277ad",
}
UNSIGNED_BYTE = 0x08


def idx(array: np.ndarray) -> bytes:
    """Serialise an array of unsigned bytes: two zeros, type, rank, then each dimension as a big-endian u32, then the data."""
    header = struct.pack(">BBBB", 0, 0, UNSIGNED_BYTE, array.ndim)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return header + sizes + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def as_bytes(values: np.ndarray, largest: int) -> np.ndarray:
    """Convert to unsigned bytes; raise ValueError when a value is no integer in 0..=largest."""
    bytes_ = values.astype(np.uint8)
    if not np.array_equal(bytes_, values) or bytes_.max() != largest:
        raise ValueError(f"expected integers from 0 to {largest}, found {values.min()} to {values.max()}")
    return bytes_


def files() -> dict[str, bytes]:
    """Return the contents of the two files: images (1797, 8, 8) with values 0..=16, labels (1797,) with values 0..=9."""
    digits = load_digits()
    images = as_bytes(digits.images, 16)
    labels = as_bytes(digits.target, 9)
    return {"digits.images.idx3-ubyte": idx(images), "digits.labels.idx1-ubyte": idx(labels)}


def main() -> int:
    """Write or check the files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    status = 0
    for name, content in files().items():
        path = DATA / name
        if not arguments.check:
            path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        same = path.exists() and path.read_bytes() == content and digest == DIGESTS[name]
        print(f"{digest}  {name}{'' if same else '  differs from the committed file or digest'}")
        status |= not same
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
