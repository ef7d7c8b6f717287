"""Fixtures of the layers without statistics, and of residual blocks.

Contract: sides are unequal and odd somewhere, so that swapped axes and wrong window counts show.

Reference: layer_case.py says what each file holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from fixture import Fixture
from layer_case import Case, run


def conv(channels: int, kernel: int, **settings: object) -> dict[str, object]:
    """Return a conv2d layer of a model file."""
    return {"conv2d": {"channels": channels, "kernel": kernel, **settings}}


def average(kernel: int, **settings: object) -> dict[str, object]:
    """Return an average-pool layer of a model file."""
    return {"average-pool": {"kernel": kernel, **settings}}


BOTTLENECK = {
    "residual": {
        "body": [
            conv(3, 1), {"batch-norm": {}}, "relu", conv(3, 3, stride=2, padding=1), {"batch-norm": {}}, "relu",
            conv(8, 1), {"batch-norm": {}},
        ],
        "shortcut": [conv(8, 1, stride=2), {"batch-norm": {}}],
    }
}  # fmt: skip
NORMED = [conv(6, 3, padding=1), "relu", conv(6, 3, padding=1)]
CASES = (
    Case("linear_bias", {"linear": {"features": 7, "bias": True}}, (5,), batch=4),
    Case("linear_no_bias", {"linear": {"features": 33, "bias": False}}, (19,), batch=6),
    Case("linear_narrow", {"linear": {"features": 10, "bias": True}}, (64,), batch=16),
    Case("conv2d_3x3_s1_p1", conv(8, 3, stride=1, padding=1, bias=False), (4, 7, 6)),
    Case("conv2d_3x3_s1_p1_bias", conv(8, 3, stride=1, padding=1, bias=True), (3, 5, 9)),
    Case("conv2d_3x3_s2_p1", conv(6, 3, stride=2, padding=1, bias=False), (4, 8, 7)),
    Case("conv2d_3x3_p0", conv(5, 3, bias=False), (2, 6, 5)),
    Case("conv2d_1x1_s1", conv(9, 1, bias=True), (5, 4, 6)),
    Case("conv2d_1x1_s2", conv(6, 1, stride=2, bias=False), (4, 7, 6)),
    Case("conv2d_5x5_p2", conv(5, 5, padding=2, bias=False), (3, 7, 8)),
    Case("conv2d_7x7_s2_p3", conv(8, 7, stride=2, padding=3, bias=False), (3, 14, 13), batch=2),
    Case("conv2d_wide", conv(32, 3, padding=1, bias=False), (17, 6, 5), batch=2),
    Case("conv2d_1x1_s2_odd", conv(6, 1, stride=2, bias=True), (4, 9, 5)),
    Case("conv2d_1x1_p1", conv(3, 1, padding=1, bias=True), (4, 3, 5)),
    Case("conv2d_2x2_s2", conv(5, 2, stride=2, bias=False), (3, 7, 6)),
    Case("conv2d_3x3_s2_p1_odd", conv(6, 3, stride=2, padding=1, bias=False), (4, 9, 5)),
    Case("conv2d_3x3_s3_p2", conv(4, 3, stride=3, padding=2, bias=False), (3, 8, 7)),
    Case("conv2d_3x3_p4", conv(4, 3, padding=4, bias=True), (2, 3, 4)),
    Case("conv2d_3x3_s2_p3", conv(4, 3, stride=2, padding=3, bias=False), (2, 5, 2)),
    Case("conv2d_7x7_s2_p3_odd", conv(4, 7, stride=2, padding=3, bias=False), (3, 9, 5), batch=2),
    Case("relu_image", "relu", (3, 5, 4)),
    Case("relu_kink", "relu", (11,), batch=5, fill="levels"),
    Case("max_pool_2_s2", {"max-pool": {"kernel": 2, "stride": 2}}, (3, 6, 8)),
    Case("max_pool_2_default_stride_odd", {"max-pool": {"kernel": 2}}, (3, 7, 5)),
    Case("max_pool_2_s2_ties", {"max-pool": {"kernel": 2, "stride": 2}}, (4, 6, 8), fill="levels"),
    Case("max_pool_3_s2_p1", {"max-pool": {"kernel": 3, "stride": 2, "padding": 1}}, (3, 8, 7)),
    Case("max_pool_3_s2_p1_ties", {"max-pool": {"kernel": 3, "stride": 2, "padding": 1}}, (4, 8, 7), fill="levels"),
    Case("max_pool_3_s1_ties", {"max-pool": {"kernel": 3, "stride": 1}}, (2, 5, 6), fill="levels"),
    Case("max_pool_5_s3_p2", {"max-pool": {"kernel": 5, "stride": 3, "padding": 2}}, (3, 9, 7)),
    Case("max_pool_1_s2", {"max-pool": {"kernel": 1, "stride": 2}}, (3, 5, 4)),
    Case("max_pool_2_s3_p1", {"max-pool": {"kernel": 2, "stride": 3, "padding": 1}}, (3, 8, 7)),
    Case("average_pool_2", average(2), (3, 7, 6)),
    Case("average_pool_3_s2_p1", average(3, stride=2, padding=1), (3, 8, 7)),
    Case("average_pool_3_s2_p1_inside", average(3, stride=2, padding=1, count_include_pad=False), (3, 8, 7)),
    Case("average_pool_3_s1_p1_inside", average(3, stride=1, padding=1, count_include_pad=False), (67, 3, 2), batch=2),
    Case("average_pool_5_s3_p2", average(5, stride=3, padding=2), (2, 9, 7)),
    Case("gelu_image", {"gelu": {}}, (3, 5, 4)),
    Case("gelu_tails", {"gelu": {}}, (67,), batch=5, fill="wide"),
    Case("gelu_tanh_image", {"gelu": {"approximate": "tanh"}}, (3, 5, 4)),
    Case("gelu_tanh_tails", {"gelu": {"approximate": "tanh"}}, (67,), batch=5, fill="wide"),
    Case("global_average_pool", "global-average-pool", (5, 4, 7)),
    Case("global_average_pool_length", "global-average-pool", (5, 9)),
    Case("flatten", "flatten", (4, 3, 5)),
    Case("flatten_length", "flatten", (4, 7)),
    Case("dropout_eval", {"dropout": {"p": 0.5}}, (4, 3, 5), mode="eval"),
    Case("dropout_p0", {"dropout": {"p": 0.0}}, (9,), batch=4),
    Case("residual_identity", {"residual": {"body": NORMED}}, (6, 5, 7)),
    Case(
        "residual_identity_norm",
        {"residual": {"body": [conv(6, 3, padding=1), {"batch-norm": {}}, "relu", conv(6, 3, padding=1), {"batch-norm": {}}]}},
        (6, 5, 7),
    ),
    Case(
        "residual_projection",
        {
            "residual": {
                "body": [conv(8, 3, stride=2, padding=1), {"batch-norm": {}}, "relu", conv(8, 3, padding=1), {"batch-norm": {}}],
                "shortcut": [conv(8, 1, stride=2), {"batch-norm": {}}],
            }
        },
        (4, 7, 6),
        batch=4,
    ),
    Case(
        "residual_in_repeat",
        {"repeat": {"times": 2, "layers": [{"residual": {"body": [conv(4, 3, padding=1), {"group-norm": {}}]}}, "relu"]}},
        (4, 5, 6),
    ),
    Case("residual_bottleneck", BOTTLENECK, (4, 7, 5), batch=4),
    Case(
        "residual_projection_rms",
        {"residual": {"body": [conv(6, 3, stride=2, padding=1), {"rms-norm": {}}], "shortcut": [conv(6, 1, stride=2), {"rms-norm": {}}]}},
        (4, 7, 6),
    ),
    Case(
        "repeat_in_residual",
        {
            "residual": {
                "body": [{"repeat": {"times": 3, "layers": [conv(4, 3, padding=1), {"instance-norm": {}}, {"gelu": {}}]}}],
                "shortcut": [{"repeat": {"times": 2, "layers": [conv(4, 1)]}}],
            }
        },
        (4, 4, 5),
    ),
    Case(
        "repeat_in_repeat",
        {"repeat": {"times": 2, "layers": [conv(5, 3, padding=1), {"repeat": {"times": 2, "layers": ["relu", conv(5, 1)]}}]}},
        (4, 3, 4),
    ),
    Case(
        "repeat_with_growing_channels",
        {"repeat": {"times": 3, "layers": [{"max-pool": {"kernel": 3, "stride": 2, "padding": 1}}, conv(6, 3, padding=1)]}},
        (2, 9, 11),
    ),
)


def fixtures() -> Iterator[Fixture]:
    """Make every fixture of this family."""
    yield from map(run, CASES)
