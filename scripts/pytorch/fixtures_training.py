"""Fixtures of training on one device: ten steps of the preset models.

Contract: dropout is off, whatever the preset says; step k's batch is samples k·batch..(k+1)·batch of the source; the initial parameters are philox.py's at metadata
`seed`, and are not stored. Tensors: `losses` (steps,) of the float64 run, `losses_fp32` of PyTorch's float32 run, `labels`
(steps, batch), of tokens (steps, batch, length), `input_head` (the first 16 elements of step 0's input, to check the data), `initial_norm.<name>`,
`first_gradient_norm.<name>` (of step 0, without weight decay) and `final_norm.<name>` (L2 norms, scalars, float64 run) and, of
convnet, `final.<name>` in full. Metadata: `model`, `norm`, `source`, `seed`, `source_seed`, `input_shape`, `classes`, `batch`,
`steps_trained`, the optimizer's settings, `schedule` unless constant, and `fp32_gap`.

How far float32 may be: `losses_gap` (steps,) and metadata `fp32_gap` hold the largest difference of six float32 runs from the
float64 run: contiguous, channels_last, and four whose initial parameters were moved by one unit in the last place. An activation
close to zero that lands on ReLU's other side changes the gradient by a jump, and training amplifies it: resnet20 agrees to
1e-7 in its first steps and no better than 1e-3 in its last, whoever computes it. So a test checks each step against its own gap.

Reference: training.py for the step; SEMANTICS 3 for the norms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import model
import philox
import training
from fixture import Arrays, Fixture, gaps
from training import Adamw, Schedule, Sgd, Source, numpy_tensors

DIGITS = Source("digits", (1, 8, 8), 10)
STEPS = 10
JITTERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Run:
    """One training run."""

    name: str
    preset: str
    norm: str
    source: Source
    batch: int
    steps: int = STEPS
    seed: int = 7
    optimizer: Sgd | Adamw = Sgd()
    schedule: Schedule = "constant"
    keep_final: bool = False
    jitter: int = 0
    # Of the layer that `norm` stands for.
    norm_settings: tuple[tuple[str, str], ...] = ()

    def model(self, dtype: torch.dtype) -> nn.Module:
        """Make the model with its initial parameters, in training mode; `jitter` moves them by one unit in the last place."""
        spec = without_dropout(model.preset(self.preset))
        made = model.build(spec, self.norm, self.source.shape, self.source.classes, dict(self.norm_settings))
        training.initialize(made, self.seed)
        if self.jitter:
            move_by_one_unit(made, self.jitter)
        return made.to(dtype).train()

    def tokens(self) -> dict[str, str]:
        """Describe what only runs on tokens have, and the norm's settings."""
        own = {"norm_settings": json.dumps(dict(self.norm_settings))} if self.norm_settings else {}
        if self.source.name != "synthetic-tokens":
            return own
        source = self.source
        return own | {"shortest": str(source.shortest), "share": str(source.share), "hidden_only": json.dumps(source.hidden_only)}

    def metadata(self) -> dict[str, str]:
        """Describe the run as the Rust side reads it."""
        return {
            "kind": "training",
            "model": self.preset,
            "norm": self.norm,
            "source": self.source.name,
            "seed": str(self.seed),
            "source_seed": str(self.source.seed),
            "input_shape": json.dumps(list(self.source.shape)),
            "classes": str(self.source.classes),
            "batch": str(self.batch),
            "steps_trained": str(self.steps),
        } | self.tokens() | self.optimizer.metadata() | ({} if self.schedule == "constant" else {"schedule": json.dumps(self.schedule)})


def without_dropout(layers: Any) -> Any:
    """Return a model file with dropout's probabilities at 0, where both sides compute the same."""
    if isinstance(layers, list):
        return [without_dropout(layer) for layer in layers]
    if not isinstance(layers, dict):
        return layers
    changed = {key: without_dropout(value) for key, value in layers.items() if key != "dropout" or isinstance(value, dict)}
    return changed | ({"p": 0.0} if "p" in changed else {})


# The trainer of a run: takes the run, the type and the memory format; returns `losses` and `final.<name>`.
Trainer = Callable[[Run, torch.dtype, torch.memory_format], Arrays]


@torch.no_grad()
def move_by_one_unit(net: nn.Module, seed: int) -> None:
    """Replace each float32 parameter by the next one up or down, at random."""
    for stream, parameter in enumerate(net.parameters()):
        u = philox.uniform(seed, stream, philox.Purpose.SHUFFLE, 0, parameter.numel()).reshape(parameter.shape)
        toward = torch.where(torch.from_numpy(u) < 0.5, torch.tensor(-np.inf), torch.tensor(np.inf))
        parameter.copy_(torch.nextafter(parameter, toward))


def finals(net: nn.Module, prefix: str = "final.") -> Arrays:
    """Copy the tensors of a trained model under `prefix`."""
    return {prefix + name: array for name, array in numpy_tensors(net).items()}


def train(run: Run, dtype: torch.dtype, memory: torch.memory_format) -> Arrays:
    """Train on one device."""
    net = run.model(dtype).to(memory_format=memory)
    optimizer = run.optimizer.make(net)
    scheduler = training.scheduler(optimizer, run.schedule)
    losses: list[float] = []
    first: Arrays = {}
    for k in range(run.steps):
        inputs, labels = run.source.batch(k * run.batch, run.batch)
        # Only images have a format.
        inputs = inputs.to(dtype, memory_format=memory) if inputs.dim() == 4 else inputs.to(dtype)
        losses.append(training.step(net, optimizer, inputs, labels))
        scheduler.step()
        first = first or gradients(net)
    return {"losses": np.array(losses)} | norms(first, "", "first_gradient_norm.") | finals(net)


def gradients(net: nn.Module) -> Arrays:
    """Copy the gradients, which the optimizer leaves as backward wrote them."""
    named = model.named_tensors(net).items()
    return {name: p.grad.numpy().copy() for name, p in named if isinstance(p, nn.Parameter)}


def norms(arrays: Arrays, old: str, new: str) -> Arrays:
    """Return the L2 norm of each array whose name starts with `old`, under `new`."""
    chosen = {name: array.astype(np.float64) for name, array in arrays.items() if name.startswith(old)}
    return {new + name.removeprefix(old): np.array(np.linalg.norm(array)) for name, array in chosen.items()}


def with_norms(arrays: Arrays) -> Arrays:
    """Add `final_norm.<name>` for each `final.<name>`."""
    return arrays | norms(arrays, "final.", "final_norm.")


def given(run: Run) -> Arrays:
    """Return what lets a reader check its own data and initialisation first."""
    head = run.source.batch(0, 1)[0].numpy().reshape(-1)[:16]
    labels = np.stack([run.source.batch(k * run.batch, run.batch)[1].numpy() for k in range(run.steps)])
    initial = finals(run.model(torch.float32), "initial.")
    return {"labels": labels, "input_head": head} | norms(initial, "initial.", "initial_norm.")


def single_runs(run: Run, trainer: Trainer) -> list[Arrays]:
    """Train in float32 in ways that a correct float32 engine might also go."""
    formats = ((run, torch.contiguous_format), (run, torch.channels_last))
    moved = tuple((replace(run, jitter=seed), torch.contiguous_format) for seed in JITTERS)
    return [with_norms(trainer(variant, torch.float32, memory)) for variant, memory in formats + moved]


def loss_gaps(reference: Arrays, singles: list[Arrays]) -> NDArray[np.float64]:
    """Return per step the largest difference so far; it never shrinks, since a later agreement is luck."""
    distance = np.max([np.abs(single["losses"] - reference["losses"]) for single in singles], axis=0)
    return np.maximum.accumulate(distance, axis=0)


def fixture(run: Run, trainer: Trainer = train, extra: dict[str, str] | None = None) -> Fixture:
    """Make the fixture of a run, in float64 and several times in float32."""
    reference = with_norms(trainer(run, torch.float64, torch.contiguous_format))
    singles = single_runs(run, trainer)
    kept = {name: a for name, a in reference.items() if run.keep_final or not name.startswith("final.")}
    losses = {"losses_fp32": singles[0]["losses"].astype(np.float32), "losses_gap": loss_gaps(reference, singles)}
    metadata = run.metadata() | {"fp32_gap": gaps(reference, *singles)} | (extra or {})
    return Fixture(run.name, given(run) | losses | kept, metadata)


def runs() -> Iterator[Run]:
    """List the runs."""
    yield Run("train_mlp_batch", "mlp", "batch", Source("synthetic", (1, 28, 28), 10, seed=3), 8)
    slow = Sgd(learning_rate=0.005)  # At 0.05 float32 and float64 part by 0.1 within ten steps.
    yield Run("train_resnet20_batch", "resnet20", "batch", Source("synthetic", (3, 32, 32), 10, seed=5), 4, optimizer=slow)
    for norm in ("batch", "layer", "instance", "group", "rms", "none"):
        yield Run(f"train_convnet_{norm}", "convnet", norm, DIGITS, 16, keep_final=True)
    yield convnet("nesterov", Sgd(nesterov=True))
    yield convnet("adamw", Adamw())
    yield convnet("adamw_cosine", Adamw(learning_rate=3e-3), {"cosine": {"steps": 6, "warm_up_steps": 3, "minimum": 1e-4}})


def convnet(name: str, optimizer: Sgd | Adamw, schedule: Schedule = "constant") -> Run:
    """Name a run of convnet with group norm, whose gradients have no direction that is rounding alone."""
    return Run(f"train_convnet_{name}", "convnet", "group", DIGITS, 16, optimizer=optimizer, schedule=schedule, keep_final=True)


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    yield from map(fixture, runs())
