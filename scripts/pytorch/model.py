"""The one builder that makes a PyTorch model from a model file (scenarios/models/*.toml).

Contract: it mirrors the engine's lowering rules.
- `norm` becomes what the argument `norm` names; with "none" it vanishes.
- A linear or conv2d without `bias` has one, unless the next element of the same list, after `norm` is resolved, is a norm
  with learnable parameters (also RMS norm, which has no bias: a preset has the same convolutions with every norm).
- Tensors are named by the execution order of the lowered layers that have parameters or buffers, from zero:
  `0.conv2d.weight`, `1.batch-norm.running_mean`. In a residual the body counts before the shortcut.
- Behind an embedding, values are (N, T, D), their shape is carried as (D, T), and norms that know no batch take each position by itself.

Reference: bench/engine/src/model/spec.rs defines the format and its defaults.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layers import (
    Attention,
    ChannelLayerNorm,
    ChannelRmsNorm,
    Embedding,
    GlobalAveragePool,
    ModelError,
    Positions,
    Residual,
    Shape,
    TiedLinear,
    TokenBatchNorm,
    TokenGroupNorm,
    TokenInstanceNorm,
    Tokens,
    default_groups,
    image,
    positions,
    window,
)

Spec = dict[str, Any]
Layer = str | dict[str, Any]
# What `norm` layers become; "none" is the absence of a layer.
NORMS = {
    "batch": "batch-norm", "sync-batch": "sync-batch-norm", "layer": "layer-norm", "instance": "instance-norm",
    "group": "group-norm", "rms": "rms-norm",
}  # fmt: skip
# PyTorch's default of RMSNorm for float32, also where the reference is computed in float64.
RMS_EPS = 2.0**-23
MODELS = Path(__file__).resolve().parent.parent.parent / "scenarios" / "models"


def load(path: Path) -> Spec:
    """Read a model file; raise ModelError when a required key is missing or one is unknown."""
    spec = tomllib.loads(path.read_text(encoding="utf-8"))
    settings(spec, str(path), required=("name", "input", "classes", "layers"))
    return spec


def preset(name: str) -> Spec:
    """Read scenarios/models/<name>.toml."""
    return load(MODELS / f"{name}.toml")


def build(
    spec: Spec,
    norm: str = "batch",
    input_shape: Shape | None = None,
    classes: int | None = None,
    norm_settings: Spec | None = None,
) -> nn.Sequential:
    """Make the model; `input_shape` (per sample) and `classes` override the file, as a data source does.

    `norm_settings` are those of the layer that `norm` stands for, such as {"groups": 8}.
    """
    if norm != "none" and norm not in NORMS:
        raise ModelError(f"norm {norm!r} is unknown: write one of none, {', '.join(NORMS)}")
    builder = Builder(norm, spec["classes"] if classes is None else classes, norm_settings or {})
    shape = tuple(spec["input"]) if input_shape is None else input_shape
    return builder.sequence(spec["layers"], shape, "layers")[0]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers in execution order; parameters of a layer come before its buffers."""
    named: dict[str, Tensor] = {}
    index = 0
    for module in model.modules():
        own = list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False))
        for name, tensor in own:
            named[f"{index}.{module.kind}.{name}"] = tensor
        index += bool(own)
    return named


def kind_of(layer: Layer) -> str:
    """Return the tag of an externally tagged layer."""
    if isinstance(layer, str):
        return layer
    if len(layer) != 1:
        raise ModelError(f"a layer has one key, found {sorted(layer)}")
    return next(iter(layer))


def settings(values: Spec, where: str, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> Spec:
    """Return `values`, or raise ModelError when a key is missing or unknown."""
    missing = [key for key in required if key not in values]
    unknown = [key for key in values if key not in required + optional]
    if missing or unknown:
        raise ModelError(f"{where}: missing {missing}, unknown {unknown}; keys are {list(required + optional)}")
    return values


def is_affine(layer: Layer | None) -> bool:
    """Say whether a layer is a norm with learnable parameters."""
    if layer is None or (kind := kind_of(layer)) not in NORMS.values():
        return False
    values = {} if isinstance(layer, str) else layer[kind]
    return values.get("affine", True) not in (False, "none")


class Builder:
    """Lowers lists of layers, carrying the per-sample shape along."""

    def __init__(self, norm: str, classes: int, norm_settings: Spec) -> None:
        """Take what `norm` and `"classes"` stand for."""
        self.norm = norm
        self.norm_settings = norm_settings
        self.classes = classes
        self.tokens: Tokens | None = None
        self.makers: dict[str, Callable[[Spec, Shape, str, bool], tuple[nn.Module, Shape]]] = {
            "linear": self.linear, "embedding": self.embedding, "positions": self.learned_positions, "attention": self.attention, "conv2d": self.conv2d, "relu": self.relu, "gelu": self.gelu, "max-pool": self.max_pool,
            "average-pool": self.average_pool,
            "global-average-pool": self.global_average_pool, "flatten": self.flatten, "dropout": self.dropout,
            "batch-norm": self.batch_norm, "sync-batch-norm": self.sync_batch_norm, "layer-norm": self.layer_norm,
            "instance-norm": self.instance_norm, "group-norm": self.group_norm, "rms-norm": self.rms_norm, "residual": self.residual, "repeat": self.repeat,
        }  # fmt: skip

    def resolve(self, layers: list[Layer]) -> list[Layer]:
        """Replace `norm` layers by what they stand for, or leave them out."""
        replacement: list[Layer] = [] if self.norm == "none" else [{NORMS[self.norm]: self.norm_settings}]
        return [new for layer in layers for new in (replacement if layer == "norm" else [layer])]

    def sequence(self, layers: list[Layer], shape: Shape, where: str) -> tuple[nn.Sequential, Shape]:
        """Lower a list; return its module and its output shape."""
        lowered = nn.Sequential()
        resolved = self.resolve(layers)
        for position, layer in enumerate(resolved):
            following = resolved[position + 1] if position + 1 < len(resolved) else None
            kind = kind_of(layer)
            here = f"{where}[{position}].{kind}"
            if kind not in self.makers:
                raise ModelError(f"{here}: unknown layer; layers are norm, {', '.join(self.makers)}")
            values = {} if isinstance(layer, str) else layer[kind]
            module, shape = self.makers[kind](values, shape, here, not is_affine(following))
            module.kind = kind
            lowered.append(module)
        return lowered, shape

    def linear(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """y = x·Wᵀ + b on (features,), or on each position of tokens."""
        settings(values, where, ("features",), ("bias", "tied"))
        if len(shape) != 1 and self.tokens is None:
            raise ModelError(f"{where} needs [features], got {list(shape)}: put a flatten before it")
        features = self.classes if values["features"] == "classes" else values["features"]
        with_bias = values.get("bias", bias)
        if not values.get("tied", False):
            return nn.Linear(shape[0], features, bias=with_bias), (features, *shape[1:])
        tokens = self.embedded(where)
        if tokens.embedding.weight.shape != (features, shape[0]):
            raise ModelError(f"{where}: tied to a table of {tuple(tokens.embedding.weight.shape)}, not ({features}, {shape[0]})")
        return TiedLinear(tokens, with_bias), (features, *shape[1:])

    def embedding(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """(length,) tokens to (features, length)."""
        settings(values, where, ("vocabulary", "features"), ("padding",))
        vocabulary = self.classes if values["vocabulary"] == "classes" else values["vocabulary"]
        module = Embedding(vocabulary, values["features"], values.get("padding"))
        self.tokens = module.tokens[0]
        return module, (values["features"], shape[0])

    def embedded(self, where: str) -> Tokens:
        """Return what the embedding knows, or raise ModelError where there is none."""
        if self.tokens is None:
            raise ModelError(f"{where} needs tokens: put an embedding first")
        return self.tokens

    def learned_positions(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """x + a learned vector for each position."""
        settings(values, where)
        self.embedded(where)
        return Positions(shape[1], shape[0]), shape

    def attention(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """Multi-head self-attention with its projections."""
        settings(values, where, ("heads",), ("dropout", "bias"))
        if shape[0] % values["heads"]:
            raise ModelError(f"{where}: {values['heads']} heads do not divide {shape[0]} features: write a divisor")
        tokens = self.embedded(where)
        return Attention(shape[0], values["heads"], values.get("dropout", 0.0), values.get("bias", True), tokens), shape

    def conv2d(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """Cross-correlation with square kernels."""
        settings(values, where, ("channels", "kernel"), ("stride", "padding", "bias"))
        c, h, w = image(shape, where)
        kernel, stride, padding = values["kernel"], values.get("stride", 1), values.get("padding", 0)
        module = nn.Conv2d(c, values["channels"], kernel, stride, padding, bias=values.get("bias", bias))
        sides = tuple(window(side, kernel, stride, padding, where) for side in (h, w))
        return module, (values["channels"], *sides)

    def relu(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """max(x, 0)."""
        settings(values, where)
        return nn.ReLU(), shape

    def gelu(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """x·Φ(x), or its tanh approximation."""
        settings(values, where, (), ("approximate",))
        return nn.GELU(values.get("approximate", "none")), shape

    def max_pool(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """Largest element of each window; of equal ones the first in row order gets the gradient."""
        settings(values, where, ("kernel",), ("stride", "padding"))
        c, h, w = image(shape, where)
        kernel, padding = values["kernel"], values.get("padding", 0)
        stride = values.get("stride", kernel)
        sides = tuple(window(side, kernel, stride, padding, where) for side in (h, w))
        return nn.MaxPool2d(kernel, stride, padding), (c, *sides)

    def average_pool(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """Mean of each window."""
        settings(values, where, ("kernel",), ("stride", "padding", "count_include_pad"))
        c, h, w = image(shape, where)
        kernel, padding = values["kernel"], values.get("padding", 0)
        stride = values.get("stride", kernel)
        sides = tuple(window(side, kernel, stride, padding, where) for side in (h, w))
        module = nn.AvgPool2d(kernel, stride, padding, count_include_pad=values.get("count_include_pad", True))
        return module, (c, *sides)

    def global_average_pool(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """Mean over height and width, or length."""
        settings(values, where)
        return GlobalAveragePool(), positions(shape, where)[:1]

    def flatten(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """(c, h, w) to (c·h·w,), channel-major; also (c, length)."""
        settings(values, where)
        return nn.Flatten(), (math.prod(positions(shape, where)),)

    def dropout(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """Inverted dropout; PyTorch's masks are not the engine's."""
        settings(values, where, ("p",))
        return nn.Dropout(values["p"]), shape

    def batch_norm(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """BatchNorm1d on (features,) and (channels, length), BatchNorm2d on images."""
        if self.tokens is not None and len(shape) == 2:
            masked = values.get("padding", "counted") == "masked"
            return TokenBatchNorm(shape[0], masked, self.tokens, **batch_settings(values, where)), shape
        of_rank = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
        return of_rank(shape[0], **batch_settings(values, where)), shape

    def sync_batch_norm(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """SyncBatchNorm: BatchNorm in one process; in several, PyTorch's runs on accelerators only."""
        return nn.SyncBatchNorm(shape[0], **batch_settings(values, where)), shape

    def layer_norm(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """LayerNorm over all per-sample dimensions."""
        eps, affine = extent(values, where, 1e-5)
        if self.tokens is not None:
            return nn.LayerNorm(shape[0], eps, elementwise_affine=affine != "none"), shape
        if affine == "channel":
            return ChannelLayerNorm(shape, eps), shape
        return nn.LayerNorm(shape, eps, elementwise_affine=affine == "element"), shape

    def rms_norm(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """RMSNorm over all per-sample dimensions."""
        eps, affine = extent(values, where, RMS_EPS)
        if self.tokens is not None:
            return nn.RMSNorm(shape[0], eps, elementwise_affine=affine != "none"), shape
        if affine == "channel":
            return ChannelRmsNorm(shape, eps), shape
        return nn.RMSNorm(shape, eps, elementwise_affine=affine == "element"), shape

    def instance_norm(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """InstanceNorm1d on (channels, length), InstanceNorm2d on images; γ and β unless they are switched off."""
        settings(values, where, (), ("eps", "affine"))
        if math.prod(positions(shape, where)[1:]) == 1:
            raise ModelError(f"{where}: {list(shape)} has one position per channel: put it where there are more")
        of_rank = nn.InstanceNorm2d if len(shape) == 3 else nn.InstanceNorm1d
        if self.tokens is not None:
            of_rank = TokenInstanceNorm
        return of_rank(shape[0], values.get("eps", 1e-5), affine=values.get("affine", True)), shape

    def group_norm(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """GroupNorm with G dividing the channels."""
        settings(values, where, (), ("groups", "eps"))
        groups = values.get("groups", default_groups(shape[0]))
        if shape[0] % groups:
            raise ModelError(f"{where}: {groups} groups do not divide {shape[0]} channels: write a divisor")
        of_kind = nn.GroupNorm if self.tokens is None else TokenGroupNorm
        return of_kind(groups, shape[0], values.get("eps", 1e-5)), shape

    def residual(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """body(x) + shortcut(x)."""
        settings(values, where, ("body",), ("shortcut",))
        body, after = self.sequence(values["body"], shape, f"{where}.body")
        shortcut, other = self.sequence(values.get("shortcut", []), shape, f"{where}.shortcut")
        if after != other:
            raise ModelError(f"{where}: the body gives {list(after)}, the shortcut {list(other)}: make them equal")
        return Residual(body, shortcut), after

    def repeat(self, values: Spec, shape: Shape, where: str, bias: bool) -> tuple[nn.Module, Shape]:
        """The layers several times in a row, each time with parameters of its own."""
        settings(values, where, ("times", "layers"))
        repeated = nn.Sequential()
        for time in range(values["times"]):
            module, shape = self.sequence(values["layers"], shape, f"{where}({time}).layers")
            repeated.append(module)
        return repeated, shape


def extent(values: Spec, where: str, eps: float) -> tuple[float, str]:
    """Return eps and the extent of γ and β of a LayerNorm or RMSNorm."""
    settings(values, where, (), ("eps", "affine"))
    affine = values.get("affine", "channel")
    if affine not in ("channel", "element", "none"):
        raise ModelError(f"{where}: affine {affine!r} is unknown: write channel, element or none")
    return values.get("eps", eps), affine


def batch_settings(values: Spec, where: str) -> Spec:
    """Translate the settings of BatchNorm and SyncBatchNorm; a cumulative momentum is PyTorch's None."""
    settings(values, where, (), ("eps", "momentum", "affine", "padding"))
    momentum = values.get("momentum", 0.1)
    return {
        "eps": values.get("eps", 1e-5),
        "momentum": None if momentum == "cumulative" else momentum,
        "affine": values.get("affine", True),
    }
