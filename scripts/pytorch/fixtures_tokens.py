"""Fixtures of tokens: embedding, positions, attention and norms over sequences, and ten steps of the encoders.

Contract: single layers as layer_case.py, training as fixtures_training.py.

Reference: SEMANTICS 3, Sequences; Vaswani et al. 2017; Devlin et al. 2018; Xiong et al. 2020 (norms before and behind residuals).
"""

from __future__ import annotations

from collections.abc import Iterator

import fixtures_training
import layer_case
import model
from fixture import Fixture
from fixtures_training import Run
from layer_case import Case
from training import Adamw, Sgd, Source

LENGTH = (7,)
BN = {"batch-norm": {}}
MASKED = {"batch-norm": {"padding": "masked"}}


def behind(*layers: model.Layer, padding: int | None = 0, features: int = 6) -> model.Layer:
    """Return the layers behind an embedding of eleven tokens, as one layer."""
    embedding = {"vocabulary": 11, "features": features} | ({} if padding is None else {"padding": padding})
    return {"repeat": {"times": 1, "layers": [{"embedding": embedding}, *layers]}}


def case(name: str, layer: model.Layer, **settings: object) -> Case:
    """Name a case of tokens."""
    return Case(f"tokens_{name}", layer, LENGTH, fill="tokens", **settings)


CASES = (
    case("embedding", behind()),
    case("embedding_no_padding", behind(padding=None)),
    case("positions", behind("positions")),
    case("linear", behind({"linear": {"features": 5}})),
    case("linear_tied", behind({"linear": {"features": 11, "tied": True}})),
    case("linear_tied_no_bias", behind({"gelu": {}}, {"linear": {"features": 11, "tied": True, "bias": False}})),
    case("attention", behind({"attention": {"heads": 2}})),
    case("attention_eval", behind({"attention": {"heads": 3}}), mode="eval"),
    case("attention_one_head_no_bias", behind({"attention": {"heads": 1, "bias": False}})),
    case("attention_no_padding", behind({"attention": {"heads": 2}}, padding=None)),
    case("attention_wide", behind({"attention": {"heads": 2}}, features=40), batch=2),
    case("layer_norm", behind({"layer-norm": {}})),
    case("layer_norm_none", behind({"layer-norm": {"affine": "none"}})),
    case("rms_norm", behind({"rms-norm": {}})),
    case("group_norm", behind({"group-norm": {"groups": 2}})),
    case("instance_norm", behind({"instance-norm": {}})),
    case("batch_norm_train", behind(BN)),
    case("batch_norm_eval", behind(BN), mode="eval"),
    case("batch_norm_masked", behind(MASKED)),
    case("batch_norm_masked_eval", behind(MASKED), mode="eval"),
    case("batch_norm_masked_steps", behind({"batch-norm": {"padding": "masked", "momentum": "cumulative"}}), steps=3),
    case("batch_norm_masked_chunks", behind(MASKED), batch=5, chunks=(2, 2, 1)),
)

HIDDEN = Source("synthetic-tokens", (16,), 28, seed=11, shortest=5)
EVERYTHING = Source("synthetic-tokens", (16,), 28, seed=12, shortest=5, hidden_only=False)
# Long enough for several blocks of whatever is done in blocks.
LONG = Source("synthetic-tokens", (40,), 90, seed=13, shortest=8, hidden_only=False)
SLOW = Sgd(learning_rate=0.02)


def runs() -> Iterator[Run]:
    """List the runs."""
    for norm in ("batch", "layer", "instance", "group", "rms", "none"):
        yield Run(f"train_char_encoder_{norm}", "char-encoder", norm, HIDDEN, 8, optimizer=SLOW)
    yield Run(
        "train_char_encoder_batch_masked", "char-encoder", "batch", HIDDEN, 8, optimizer=SLOW, norm_settings=(("padding", "masked"),)
    )
    yield Run("train_char_encoder_everything", "char-encoder", "layer", EVERYTHING, 8, optimizer=SLOW)
    yield Run("train_bert_mini_layer", "bert-mini", "layer", LONG, 2, optimizer=SLOW)
    yield Run("train_bert_mini_tied_adamw", "bert-mini-tied", "layer", LONG, 2, optimizer=Adamw(learning_rate=3e-4))


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    yield from map(layer_case.run, CASES)
    yield from map(fixtures_training.fixture, runs())
