"""Fixtures of BatchNorm, LayerNorm, InstanceNorm, GroupNorm and RMSNorm, of SyncBatchNorm over several ranks, and BatchNorm's closed form.

Contract: as layer_case.py. SyncBatchNorm's reference is BatchNorm over the concatenated batch; `d_param.rank<r>.<name>` holds
what stays local to rank r (its samples' share), `d_param.<name>` their sum; metadata `ranks` holds the per-rank batches.

Reference: SEMANTICS 3; Ioffe and Szegedy 2015, Ba et al. 2016, Wu and He 2018,
Zhang and Sennrich 2019.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import model
from fixture import Arrays, Fixture, gaps
from layer_case import Case, evaluate, fill_tensors, parameters, run

BN = {"batch-norm": {}}
CUMULATIVE = {"batch-norm": {"momentum": "cumulative"}}
NO_AFFINE = {"batch-norm": {"affine": False}}
IMAGE = (5, 4, 3)
GROUPED = (8, 3, 5)
SEQUENCE = (6, 7)
IN = {"instance-norm": {}}
RMS = {"rms-norm": {}}
CASES = (
    Case("batch_norm_2d_train", BN, IMAGE, batch=4, fill="shifted"),
    Case("batch_norm_2d_eval", BN, IMAGE, batch=4, mode="eval", fill="shifted"),
    Case("batch_norm_2d_three_steps", BN, IMAGE, batch=4, steps=3, fill="shifted"),
    Case("batch_norm_2d_cumulative", CUMULATIVE, IMAGE, batch=4, steps=3, fill="shifted"),
    Case("batch_norm_2d_momentum_03", {"batch-norm": {"momentum": 0.3, "eps": 1e-3}}, IMAGE, batch=2, steps=2),
    Case("batch_norm_2d_no_affine", NO_AFFINE, IMAGE, batch=4, fill="shifted"),
    Case("batch_norm_2d_no_affine_eval", NO_AFFINE, IMAGE, batch=4, mode="eval", fill="shifted"),
    Case("batch_norm_2d_far_mean", BN, IMAGE, batch=4, fill="far"),
    Case("batch_norm_2d_one_sample", BN, (3, 2, 2), batch=1),
    Case("batch_norm_2d_chunks", BN, IMAGE, batch=10, chunks=(3, 3, 3, 1), fill="shifted"),
    Case("batch_norm_1d_train", BN, (19,), batch=6, fill="shifted"),
    Case("batch_norm_1d_eval", BN, (19,), batch=6, mode="eval", fill="shifted"),
    Case("batch_norm_1d_three_steps", BN, (19,), batch=6, steps=3, fill="shifted"),
    Case("batch_norm_1d_cumulative", CUMULATIVE, (7,), batch=4, steps=3, fill="shifted"),
    Case("batch_norm_1d_no_affine", NO_AFFINE, (7,), batch=4),
    Case("batch_norm_1d_chunks", BN, (7,), batch=9, chunks=(4, 3, 2), fill="shifted"),
    Case("layer_norm_channel", {"layer-norm": {}}, IMAGE, fill="shifted"),
    Case("layer_norm_channel_far_mean", {"layer-norm": {}}, IMAGE, fill="far"),
    Case("layer_norm_element", {"layer-norm": {"affine": "element"}}, IMAGE, fill="shifted"),
    Case("layer_norm_none", {"layer-norm": {"affine": "none", "eps": 1e-3}}, IMAGE, fill="shifted"),
    Case("layer_norm_features", {"layer-norm": {}}, (23,), batch=4, fill="shifted"),
    Case("layer_norm_features_element", {"layer-norm": {"affine": "element"}}, (23,), batch=4, fill="shifted"),
    Case("layer_norm_features_none", {"layer-norm": {"affine": "none"}}, (23,), batch=4, fill="shifted"),
    Case("group_norm_default", {"group-norm": {}}, GROUPED, fill="shifted"),
    Case("group_norm_g1", {"group-norm": {"groups": 1}}, GROUPED, fill="shifted"),
    Case("group_norm_g4", {"group-norm": {"groups": 4, "eps": 1e-3}}, GROUPED, fill="shifted"),
    Case("group_norm_g8", {"group-norm": {"groups": 8}}, GROUPED, fill="shifted"),
    Case("group_norm_g3_of_6", {"group-norm": {"groups": 3}}, (6, 5, 4), fill="shifted"),
    Case("group_norm_few_channels", {"group-norm": {}}, (3, 4, 5), fill="shifted"),
    Case("group_norm_far_mean", {"group-norm": {"groups": 2}}, GROUPED, fill="far"),
    Case("group_norm_features", {"group-norm": {}}, (16,), batch=4, fill="shifted"),
    Case("batch_norm_1d_length_train", BN, SEQUENCE, batch=4, fill="shifted"),
    Case("batch_norm_1d_length_eval", BN, SEQUENCE, batch=4, mode="eval", fill="shifted"),
    Case("batch_norm_1d_length_chunks", CUMULATIVE, SEQUENCE, batch=6, steps=2, chunks=(3, 2, 1), fill="shifted"),
    Case("layer_norm_length", {"layer-norm": {}}, SEQUENCE, fill="shifted"),
    Case("layer_norm_length_element", {"layer-norm": {"affine": "element"}}, SEQUENCE, fill="shifted"),
    Case("group_norm_length", {"group-norm": {"groups": 3}}, SEQUENCE, fill="shifted"),
    Case("instance_norm_2d", IN, IMAGE, fill="shifted"),
    Case("instance_norm_2d_eval", IN, IMAGE, mode="eval", fill="shifted"),
    Case("instance_norm_2d_no_affine", {"instance-norm": {"affine": False, "eps": 1e-3}}, IMAGE, fill="shifted"),
    Case("instance_norm_2d_far_mean", IN, IMAGE, fill="far"),
    Case("instance_norm_2d_wide", IN, (70, 3, 2), batch=2, fill="shifted"),
    Case("instance_norm_1d", IN, SEQUENCE, fill="shifted"),
    Case("instance_norm_1d_no_affine", {"instance-norm": {"affine": False}}, SEQUENCE, fill="shifted"),
    Case("rms_norm_channel", RMS, IMAGE, fill="shifted"),
    Case("rms_norm_channel_wide", RMS, (70, 3, 2), batch=2, fill="shifted"),
    Case("rms_norm_channel_eval", RMS, IMAGE, mode="eval", fill="shifted"),
    Case("rms_norm_element", {"rms-norm": {"affine": "element"}}, IMAGE, fill="shifted"),
    Case("rms_norm_none", {"rms-norm": {"affine": "none", "eps": 1e-3}}, IMAGE, fill="shifted"),
    Case("rms_norm_features", RMS, (23,), batch=4, fill="shifted"),
    Case("rms_norm_features_element", {"rms-norm": {"affine": "element"}}, (131,), batch=4, fill="shifted"),
    Case("rms_norm_features_none", {"rms-norm": {"affine": "none"}}, (23,), batch=4, fill="shifted"),
    Case("rms_norm_length", RMS, SEQUENCE, fill="shifted"),
    Case("rms_norm_length_element", {"rms-norm": {"affine": "element"}}, SEQUENCE, fill="shifted"),
    Case("rms_norm_tiny", RMS, (9,), fill="tiny"),
)
SYNC = {"sync-batch-norm": {}}
SYNC_CASES = (
    (Case("sync_batch_norm_even", SYNC, IMAGE, batch=6, steps=2, fill="shifted"), (3, 3)),
    (Case("sync_batch_norm_uneven", SYNC, IMAGE, batch=8, steps=2, fill="shifted"), (5, 1, 2)),
    (Case("sync_batch_norm_empty_rank", SYNC, IMAGE, batch=6, fill="shifted"), (4, 0, 2)),
    (Case("sync_batch_norm_features", SYNC, (11,), batch=7, fill="shifted"), (4, 3)),
    (Case("sync_batch_norm_length", SYNC, SEQUENCE, batch=7, fill="shifted"), (4, 2, 1)),
    (Case("sync_batch_norm_far_mean", SYNC, IMAGE, batch=6, fill="far"), (2, 4)),
    (Case("sync_batch_norm_eval", SYNC, IMAGE, batch=6, mode="eval", fill="shifted"), (2, 4)),
)
HALF_GAPS = (1e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0, 30.0)


def local_gradients(module: nn.Module, case: Case, ranks: tuple[int, ...], x: np.ndarray, upstream: np.ndarray) -> Arrays:
    """Return each rank's own d_param in float64: the sums over its samples, with everyone's statistics."""
    norm = copy.deepcopy(module).double()[0]
    bounds = np.cumsum((0, *ranks))
    axes = (0, *range(2, x.ndim - 1))
    local: Arrays = {}
    for x_step, upstream_step in zip(x, upstream, strict=True):
        statistics = (None, None) if case.mode == "train" else (norm.running_mean, norm.running_var)
        whole = torch.from_numpy(x_step).double()
        normalized = functional.batch_norm(whole, *statistics, training=case.mode == "train", eps=norm.eps).numpy()
        for rank, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            dy = upstream_step[start:end].astype(np.float64)
            for name, sums in (("weight", dy * normalized[start:end]), ("bias", dy)):
                key = f"d_param.rank{rank}.0.sync-batch-norm.{name}"
                local[key] = local.get(key, 0.0) + sums.sum(axis=axes)
    return local


def run_sync(case: Case, ranks: tuple[int, ...]) -> Fixture:
    """Make a SyncBatchNorm fixture; raise RuntimeError unless the ranks' parts sum to the whole."""
    fixture = run(case)
    module = model.build({"layers": [case.layer], "classes": 10, "input": case.shape}, "none")
    fill_tensors(module, case)
    stepped = case.steps > 1
    x, upstream = (fixture.tensors[name] if stepped else fixture.tensors[name][None] for name in ("input", "upstream"))
    local = local_gradients(module, case, ranks, x, upstream)
    for name in parameters(module):
        total = sum(local[f"d_param.rank{rank}.{name}"] for rank in range(len(ranks)))
        if not np.allclose(total, fixture.tensors[f"d_param.{name}"], rtol=1e-12, atol=1e-12):
            raise RuntimeError(f"{case.name}: the ranks' parts of {name} do not sum to the whole")
    metadata = fixture.metadata | {"ranks": json.dumps(list(ranks))}
    return Fixture(case.name, fixture.tensors | local, metadata)


def closed_form() -> Fixture:
    """BatchNorm1d of two samples at ±d with upstream ±1: |dx| = eps / (d² + eps)^1.5 and x̂ = ±d / sqrt(d² + eps)."""
    case = Case("batch_norm_1d_closed_form", NO_AFFINE, (len(HALF_GAPS),), batch=2)
    d = np.array(HALF_GAPS, dtype=np.float32)
    x, upstream = np.stack([d, -d])[None], np.stack([np.ones_like(d), -np.ones_like(d)])[None]
    module = model.build({"layers": [case.layer], "classes": 10, "input": case.shape}, "none")
    reference = evaluate(module, case, x, upstream, torch.float64)
    single = evaluate(module, case, x, upstream, torch.float32)
    wide = d.astype(np.float64)
    dx, y = 1e-5 / (wide**2 + 1e-5) ** 1.5, wide / np.sqrt(wide**2 + 1e-5)
    # At d = 30 the float64 gradient is the difference of numbers 1e8 times larger, hence 1e-6.
    if not (np.allclose(reference["d_input"], [dx, -dx], rtol=1e-6, atol=0) and np.allclose(reference["output"], [y, -y])):
        raise RuntimeError("BatchNorm1d of two samples does not follow the closed form")
    formula = {"formula.d_input": np.stack([dx, -dx]), "formula.output": np.stack([y, -y])}
    metadata = case.metadata() | {"fp32_gap": gaps(reference, single)}
    before = {f"buffer_before.{k}": t.numpy() for k, t in model.named_tensors(module).items()}
    return Fixture(case.name, {"input": x[0], "upstream": upstream[0]} | before | reference | formula, metadata)


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    yield from map(run, CASES)
    yield from (run_sync(case, ranks) for case, ranks in SYNC_CASES)
    yield closed_form()
