#!/usr/bin/env python3
"""Write, or check, the fixtures of bench/engine/tests/golden from PyTorch.

Contract: `golden.py` writes every fixture; `golden.py --check` makes them again and compares names, shapes, metadata and values
with the committed files, writing nothing; `--family NAME` restricts either to one family. Exit status 1 when something differs.

Reference: scripts/pytorch/README.md for the environment and the conventions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "pytorch"))

import torch  # noqa: E402

import fixtures_hooks  # noqa: E402
import fixtures_imagenet  # noqa: E402
import fixtures_layers  # noqa: E402
import fixtures_learning  # noqa: E402
import fixtures_norms  # noqa: E402
import fixtures_parallel  # noqa: E402
import fixtures_schedules  # noqa: E402
import fixtures_tokens  # noqa: E402
import fixtures_training  # noqa: E402
import fixtures_values  # noqa: E402
import fixtures_zero  # noqa: E402
from fixture import Fixture, compare  # noqa: E402

GOLDEN = ROOT / "bench" / "engine" / "tests" / "golden"
FAMILIES: dict[str, Callable[[], Iterator[Fixture]]] = {
    "layers": fixtures_layers.fixtures,
    "norms": fixtures_norms.fixtures,
    "values": fixtures_values.fixtures,
    "training": fixtures_training.fixtures,
    "tokens": fixtures_tokens.fixtures,
    "learning": fixtures_learning.fixtures,
    "imagenet": fixtures_imagenet.fixtures,
    "parallel": fixtures_parallel.fixtures,
    "schedules": fixtures_schedules.fixtures,
    "hooks": fixtures_hooks.fixtures,
    "zero": fixtures_zero.fixtures,
}


def write(fixture: Fixture) -> bool:
    """Write one fixture; return whether all is well."""
    print(f"{fixture.write(GOLDEN):8}  {fixture.name}")
    return True


def check(fixture: Fixture) -> bool:
    """Compare one fixture with its committed file; return whether they agree."""
    problems = compare(fixture, GOLDEN / f"{fixture.name}.safetensors")
    print(f"{'differs' if problems else 'same':8}  {fixture.name}" + "".join(f"\n          {p}" for p in problems))
    return not problems


def strays(made: set[str]) -> list[str]:
    """Return committed files that nothing makes."""
    return sorted(path.stem for path in GOLDEN.glob("*.safetensors") if path.stem not in made)


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--family", choices=FAMILIES, help="only this family")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    made, fine = set(), True
    for name, family in FAMILIES.items():
        if arguments.family not in (None, name):
            continue
        for fixture in family():
            made.add(fixture.name)
            fine &= check(fixture) if arguments.check else write(fixture)
    if arguments.family is None:
        unknown = strays(made)
        fine &= not unknown
        print("".join(f"stray     {name}\n" for name in unknown), end="")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
