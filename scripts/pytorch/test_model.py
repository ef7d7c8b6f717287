"""Tests of the model builder, the generator and the fixture format: `python scripts/pytorch/test_model.py`.

Contract: each test is a function without arguments that raises; the script runs all of them and exits with 1 if one did.

Reference: bench/engine/src/model/spec.rs for the lowering rules; He et al. 2015, section 4.2, for ResNet-20's size.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

import model
import philox
import training
from fixture import Fixture, compare
from fixtures_parallel import chunk_sizes, data_parallel_gradients
from layers import ModelError

GOLDEN = Path(__file__).resolve().parent.parent.parent / "bench" / "engine" / "tests" / "golden"


def built(layers: list[model.Layer], norm: str = "batch", shape: tuple[int, ...] = (4, 6, 5)) -> torch.nn.Sequential:
    """Build layers on a shape, with ten classes."""
    return model.build({"layers": layers, "input": shape, "classes": 10}, norm)


def rejects(layers: list[model.Layer], fragment: str, shape: tuple[int, ...] = (4, 6, 5)) -> None:
    """Expect a ModelError that mentions `fragment`."""
    try:
        built(layers, shape=shape)
    except ModelError as error:
        assert fragment in str(error), f"{error} does not mention {fragment}"
        return
    raise AssertionError(f"{layers} was accepted")


def test_known_answers() -> None:
    for counter, key, output in philox.KNOWN_ANSWERS:
        words = philox.philox4x32(np.array([counter], dtype=np.uint64), key)
        assert tuple(int(word) for word in words[0]) == output


def test_slices_of_the_stream_agree() -> None:
    whole = philox.words(9, 2, philox.Purpose.INPUT, 0, 40)
    for first in range(9):
        assert np.array_equal(philox.words(9, 2, philox.Purpose.INPUT, first, 23), whole[first : first + 23])


def test_uniforms_have_their_moments() -> None:
    u = philox.uniform(1, 0, philox.Purpose.INPUT, 0, 200_000).astype(np.float64)
    assert u.min() >= 0.0 and u.max() < 1.0
    # Four standard errors of the mean and of the variance of 200,000 uniforms.
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / len(u)) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / len(u)) ** 0.5


def test_sizes_of_the_presets() -> None:
    # He et al.'s ResNet-20 has 269,722; two projections with norms add 16·32 + 32·64 weights and 2·(32 + 64) of γ and β.
    # torchvision's resnet18 and resnet50 have 11,689,512 and 25,557,032.
    expected = {
        "mlp": 2_916_362, "convnet": 24_058, "resnet20": 272_474, "resnet18": 11_689_512, "resnet50": 25_557_032,
    }  # fmt: skip
    sizes = {name: sum(p.numel() for p in model.build(model.preset(name)).parameters()) for name in expected}
    assert sizes == expected, sizes


def test_bias_follows_the_norm() -> None:
    conv = {"conv2d": {"channels": 8, "kernel": 3}}
    cases = {
        ("norm", "batch"): False, ("norm", "none"): True, ("norm", "layer"): False, ("relu", "batch"): True,
    }  # fmt: skip
    for (following, norm), expected in cases.items():
        assert (built([conv, following], norm)[0].bias is not None) == expected, (following, norm)
    assert built([conv, {"batch-norm": {"affine": False}}])[0].bias is not None
    assert built([conv, {"layer-norm": {"affine": "none"}}])[0].bias is not None
    assert built([conv, {"layer-norm": {"affine": "element"}}])[0].bias is None
    assert built([{"conv2d": {"channels": 8, "kernel": 3, "bias": True}}, "norm"])[0].bias is not None
    # RMS norm has no bias and takes the convolution's away all the same.
    assert built([conv, "norm"], "rms")[0].bias is None
    assert built([conv, {"rms-norm": {"affine": "none"}}])[0].bias is not None
    assert built([conv, {"instance-norm": {"affine": False}}])[0].bias is not None
    # With "none" the norm is gone, and the next layer of the same list is the one that counts.
    assert built([conv, "norm", {"group-norm": {}}], "none")[0].bias is None


def test_norm_settings_reach_the_norm() -> None:
    spec = {"layers": [{"conv2d": {"channels": 8, "kernel": 3}}, "norm"], "input": (4, 6, 5), "classes": 10}
    assert model.build(spec, "group", norm_settings={"groups": 4})[1].num_groups == 4
    assert model.build(spec, "group")[1].num_groups == 2
    assert model.build(spec, "batch", norm_settings={"affine": False})[0].bias is not None


def test_names_count_body_before_shortcut() -> None:
    conv = {"conv2d": {"channels": 4, "kernel": 1}}
    names = list(model.named_tensors(built([{"residual": {"body": [conv, "norm"], "shortcut": [conv]}}, "relu"], "group")))
    assert names == ["0.conv2d.weight", "1.group-norm.weight", "1.group-norm.bias", "2.conv2d.weight", "2.conv2d.bias"], names


def test_errors_say_what_to_write() -> None:
    rejects([{"linear": {"features": 3}}], "put a flatten before it")
    rejects(["flatten", {"conv2d": {"channels": 3, "kernel": 1}}], "before flatten")
    rejects([{"group-norm": {"groups": 3}}], "write a divisor")
    rejects([{"max-pool": {"kernel": 7}}], "does not fit")
    rejects(["flatten", {"instance-norm": {}}], "before flatten")
    rejects([{"max-pool": {"kernel": 6}}, {"instance-norm": {}}], "one position", shape=(4, 6, 6))
    rejects(["rleu"], "unknown layer")
    rejects([{"conv2d": {"channels": 3, "kernel": 1, "strides": 2}}], "strides")
    rejects([{"residual": {"body": [{"conv2d": {"channels": 3, "kernel": 1}}]}}], "make them equal")


def test_channel_layer_norm_against_numpy() -> None:
    norm = built([{"layer-norm": {}}])[0].double()
    x = torch.from_numpy(philox.synthetic_inputs(0, 0, 3, (4, 6, 5))).double()
    torch.nn.init.uniform_(norm.weight)
    flat = x.numpy().reshape(3, -1)
    expected = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    expected = expected.reshape(x.shape) * norm.weight.detach().numpy()[:, None, None]
    assert np.allclose(norm(x).detach().numpy(), expected, rtol=0, atol=1e-13)


def test_rms_norm_against_numpy() -> None:
    x = torch.from_numpy(philox.synthetic_inputs(0, 0, 3, (4, 6, 5))).double() * 1e-3
    flat = x.numpy().reshape(3, -1)
    expected = (flat / np.sqrt((flat**2).mean(1, keepdims=True) + 2.0**-23)).reshape(x.shape)
    weight = np.arange(4.0)[:, None, None] - 1.5
    channel = built([{"rms-norm": {}}])[0].double()
    channel.weight.data = torch.from_numpy(weight.reshape(-1))
    assert np.allclose(channel(x).detach().numpy(), expected * weight, rtol=0, atol=1e-13)
    element = built([{"rms-norm": {"affine": "element"}}])[0].double()
    assert np.allclose(element(x).detach().numpy(), expected, rtol=0, atol=1e-13)


def test_chunks_of_scatter() -> None:
    assert [chunk_sizes(*case) for case in ((10, 4), (9, 4), (8, 2), (3, 4))] == [[3, 3, 3, 1], [3, 3, 3], [4, 4], [1, 1, 1]]


def test_data_parallel_equals_one_device_without_batch_statistics() -> None:
    net = model.build(model.preset("convnet"), "group")
    training.initialize(net, 3)
    net.double()
    inputs, labels = training.Source("digits", (1, 8, 8), 10).batch(0, 10)
    loss = torch.nn.functional.cross_entropy(net(inputs.double()), labels)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    assert abs(data_parallel_gradients(net, 4, inputs.double(), labels) - loss.item()) < 1e-12
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=0, atol=1e-13)


def test_dp_and_ddp_agree_on_equal_chunks() -> None:
    # SEMANTICS 6: DDP averages the means of equal parts where DP sums the parts of one mean, and device 0's statistics stand.
    stored = {name: load_file(GOLDEN / f"{name}.safetensors") for name in ("dp_convnet_batch_16_over_2", "ddp_convnet_batch_2x8")}
    dp, ddp = stored.values()
    assert np.allclose(dp["losses"], ddp["losses"].mean(axis=1), rtol=0, atol=1e-12)
    for name in (name for name in dp if name.startswith("final.")):
        assert np.allclose(dp[name], ddp[name], rtol=0, atol=1e-12), name


def test_compare_finds_what_changed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Fixture("x", {"a": np.ones((2, 3)), "b": np.zeros(2, dtype=np.float32), "n": np.array(3)}, {"kind": "layer"})
        made.write(Path(folder))
        path = Path(folder) / "x.safetensors"
        assert compare(made, path) == []
        for change in (
            {"a": np.ones((2, 3)) + 1e-9},
            {"a": np.ones((3, 2))},
            {"b": np.full(2, 1e-30, np.float32)},
            {"n": np.array(4)},
        ):
            assert len(compare(Fixture("x", made.tensors | change, made.metadata), path)) == 1, change
        assert compare(Fixture("x", made.tensors | {"c": np.ones(1)}, made.metadata), path)
        assert compare(Fixture("x", made.tensors, {"kind": "loss"}), path)


def main() -> int:
    """Run every test; return the exit status."""
    tests: dict[str, Callable[[], None]] = {n: f for n, f in globals().items() if n.startswith("test_")}
    failed = 0
    for name, test in tests.items():
        try:
            test()
            print(f"ok      {name}")
        except Exception:
            failed += 1
            print(f"failed  {name}\n{traceback.format_exc()}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
