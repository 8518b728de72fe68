"""The fast engine: equality with the slow one, moments, bands, bad input.

Run as a program, it compares 200 steps of training in bf16 and float32.
"""

import copy
import functools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hcnn import fused
from hcnn.axes import PADDINGS
from hcnn.conv5d import attribute_conv5d, unreached_taps
from hcnn.data import shapes10, standardize
from hcnn.factorized import EPS, MOMENTUM, FactorizedConv5d, normalize
from hcnn.fused import (
    band,
    banded_conv2d,
    fused_conv5d,
    lean_plus,
    normalize_elu,
    patch_moments,
)
from hcnn.network import HCNN, preset
from hcnn.runtime import rng

BF16 = torch.bfloat16
PROGRAM = Path(__file__).resolve()


def randn(*shape, seed=0, dtype=torch.float64, device="cpu"):
    values = torch.randn(shape, generator=rng(seed), dtype=torch.float64)
    return values.to(device, dtype)


def layer(d=3, q=5, support=(3, 5), seed=0, moved=True, **choices):
    """A factorized layer; `moved`: statistics and bias as if trained."""
    own = FactorizedConv5d(d, q, support, **choices).double()
    with torch.no_grad():
        for number, value in enumerate(own.parameters()):
            scale = value[0].numel() ** 0.5
            value.copy_(randn(*value.shape, seed=seed + number) / scale)
    if moved:
        own.running_mean.copy_(randn(q, seed=seed + 7))
        own.running_var.copy_(randn(q, seed=seed + 8).abs() + 0.5)
    return own


def slow(own, x):
    return own(x)


def fast(own, x):
    return fused_conv5d(
        x,
        own.spatial,
        own.attribute,
        own.running_mean,
        own.running_var,
        bias=own.bias,
        stride=own.stride,
        padding=own.padding,
        training=own.training,
    )


def everything(engine, own, x, *, dtype=torch.float64, training=True):
    """Output, all gradients of a weighted sum, statistics afterwards."""
    own = copy.deepcopy(own).to(dtype=dtype).train(training)
    x = x.detach().to(dtype).requires_grad_()
    out = engine(own, x)
    out.backward(randn(*out.shape, seed=99).to(out))
    return {
        "output": out.detach(),
        "input gradient": x.grad,
        **{f"{k} gradient": v.grad for k, v in own.named_parameters()},
        **dict(own.named_buffers()),
    }


def largest(value):
    return value.abs().max().double().item()


def compare(found, expected, tolerance, scales=None, case=""):
    """Each entry within `tolerance` of the largest of its array."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = largest(found[name].to(value) - value)
        scale = max(largest((scales or {}).get(name, value)), 1e-30)
        scale = max(scale, largest(value))
        assert error <= tolerance * scale, (
            f"{name}: {error / scale:.2g} of the largest. {case}"
        )


# The grid


def supports(size, padding):
    """Supports without idle taps, that do not wrap twice."""
    odd = range(1, 12, 2)
    if padding == "periodic":
        return [s for s in odd if s // 2 <= size]
    return [s for s in odd if not unreached_taps(size, s)]


def random_case(seed):
    """A layer's arguments and the shape of its input."""
    draw = random.Random(seed)
    padding, stride = draw.choice(PADDINGS), draw.choice([1, 1, 2, 3])
    b, c = draw.randint(1, 8), draw.randint(1, 16)
    n, a, h, w = (draw.randint(1, top) for top in (3, 3, 7, 7))
    if b * c * -(-h // stride) * -(-w // stride) < 2:
        n = 3  # two values are normalized to one sign each
    choices = {
        # 48: outputs enough for several blocks of windows
        "d": draw.choice([1, 2, 3, 5, 48]),
        "q": draw.choice([1, 2, 5, 12]),
        "support": tuple(draw.choice(supports(s, padding)) for s in (b, c)),
        "stride": stride,
        "padding": padding,
        "bias": draw.random() < 0.5,
        "seed": seed,
    }
    return choices, (n, a, b, c, h, w)


@pytest.mark.parametrize("seed", range(220))
def test_the_engine_equals_the_factorized_layer(seed):
    choices, shape = random_case(seed)
    own, x = layer(**choices), randn(*shape, seed=seed)
    expected = {
        training: everything(slow, own, x, training=training)
        for training in (False, True)
    }
    # The normalization takes from the gradient of `spatial` its part along
    # h_q. With one pixel that is all but EPS of it, and what is left is
    # rounding of terms that cancel, as large as the gradient in evaluation.
    scales = {"spatial gradient": expected[False]["spatial gradient"]}
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        for training in (False, True):
            choice = dict(dtype=dtype, training=training)
            found = everything(fast, own, x, **choice)
            compare(
                found,
                expected[training],
                tolerance,
                scales,
                f"{choices}, {shape}, {choice}",
            )


def lean(own, x, elu_mean=False):
    return lean_plus(
        x.mean(1),
        own.spatial,
        own.attribute,
        own.scale,
        own.shift,
        own.running_mean,
        own.running_var,
        bias=own.bias,
        stride=own.stride,
        padding=own.padding,
        training=own.training,
        elu_mean=elu_mean,
    )


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_the_lean_layer_equals_the_factorized_one(seed, small, monkeypatch):
    if small:  # many bands and blocks, some of them cut short
        monkeypatch.setattr("hcnn.fused._PIXELS", 4)
        monkeypatch.setattr("hcnn.fused._BLOCK", {"cpu": 300})
    choices, shape = random_case(seed)
    own = layer(**choices, plus=True)
    x = randn(*shape, seed=seed)

    def lean_marginal(own, x):
        return lean(own, x, elu_mean=True)

    def slow_marginal(own, x):
        return F.elu(own(x)).mean(1)

    for training in (False, True):
        scales = everything(slow, own, x, training=False)
        for one, other in ((lean, slow), (lean_marginal, slow_marginal)):
            found = everything(one, own, x, training=training)
            expected = everything(other, own, x, training=training)
            case = f"{choices}, {shape}, {training=}, {one.__name__}"
            compare(found, expected, 1e-10, scales, case)


def test_the_lean_layer_refuses_second_derivatives_and_nan():
    own, x = layer(plus=True), randn(2, 1, 3, 5, 4, 4).requires_grad_()
    with pytest.raises(NotImplementedError, match="engine='factorized'"):
        torch.autograd.grad(lean(own, x).sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="NaN or infinite"):
        lean(own, x * torch.nan)


def test_the_grid_has_all_that_it_should():
    cases = [random_case(seed) for seed in range(220)]
    for name, values in {
        "stride": {1, 2, 3},
        "padding": set(PADDINGS),
        "bias": {True, False},
        "d": {1, 2, 3, 5, 48},
    }.items():
        assert {choices[name] for choices, _ in cases} == values
    for axis in range(6):
        sizes = {shape[axis] for _, shape in cases}
        assert {1, 2, 3} <= sizes, "nabchw"[axis]
    assert {shape[4:] for _, shape in cases} >= {(1, 1)}


def test_training_with_either_engine_gives_the_same_weights():
    x, trained = randn(4, 2, 4, 8, 6, 5), []
    for engine in (slow, fast):
        own = layer(stride=2, moved=False)
        optimizer = torch.optim.SGD(own.parameters(), 0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            F.elu(engine(own, x) - 1).square().mean().backward()
            optimizer.step()
        trained.append(own.state_dict())
    compare(trained[1], trained[0], 1e-12)
    moved = trained[0]["spatial"] - layer(moved=False).spatial
    assert largest(moved) > 0.01, "nothing was learned"


def with_gradients(function, *inputs):
    """The value, and the gradients of a weighted sum of its entries."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    weights = [
        randn(*o.shape, seed=98 + i).to(o) for i, o in enumerate(outs)
    ]
    gradients = torch.autograd.grad(outs, inputs, weights)
    return {
        **{f"output {i}": o.detach() for i, o in enumerate(outs)},
        **{f"gradient {i}": g for i, g in enumerate(gradients)},
    }


@pytest.mark.parametrize("seed", range(40))
def test_a_banded_convolution_is_the_direct_layer_and_its_mean(seed):
    choices, (n, _, b, c, h, w) = random_case(1000 + seed)
    d, support = choices["d"], choices["support"]
    where = dict(stride=choices["stride"], padding=choices["padding"])
    mean, kernel = randn(n, b, c, h, w), randn(d, *support, 3, 3, seed=1)
    bias_map = randn(-(-b // 2), -(-c // 2), d, seed=2)

    def direct(mean, kernel, bias_map, elu_mean):
        out = attribute_conv5d(mean[:, None], kernel, **where)
        out = out + bias_map[..., None, None]
        return F.elu(out).mean(1) if elu_mean else out

    fused = functools.partial(banded_conv2d, **where)
    for average in (False, True):
        found, expected = (
            with_gradients(
                functools.partial(function, elu_mean=average),
                mean,
                kernel,
                bias_map,
            )
            for function in (fused, direct)
        )
        compare(found, expected, 1e-12, case=f"{choices}, mean {average}")


# Moments and bands


def shifted_copies(marginal, stride, padding):
    """The nine samples of every patch: (9, n b c h2 w2)."""
    mode = "circular" if padding == "periodic" else "constant"
    wide = F.pad(marginal.flatten(1, 2), (1, 1, 1, 1), mode=mode)
    h, w = marginal.shape[-2:]
    return torch.stack(
        [
            wide[..., y : y + h : stride, x : x + w : stride].flatten()
            for y in range(3)
            for x in range(3)
        ]
    )


PLACES = pytest.mark.parametrize(
    "padding, stride, h, w",
    [
        (padding, stride, h, w)
        for padding in PADDINGS
        for stride in (1, 2, 3)
        for h in (1, 2, 3, 6)
        for w in (1, 2, 3, 5)
    ],
)


@PLACES
def test_moments_are_those_of_the_nine_shifted_copies(
    padding, stride, h, w
):
    where = dict(stride=stride, padding=padding)

    def slowly(marginal):
        copies = shifted_copies(marginal, **where)
        count = copies.shape[1]
        return copies.sum(1) / count, copies @ copies.T / count

    marginal = randn(2, 3, 2, h, w) + 0.5
    compare(
        with_gradients(lambda m: patch_moments(m, **where), marginal),
        with_gradients(slowly, marginal),
        1e-13,
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
def test_moments_of_a_large_array_keep_their_digits(padding, stride):
    """One sum over all in float32 loses some: 4e-5 of 4 million values."""
    marginal = randn(32, 8, 16, 32, 32, dtype=torch.float32) + 0.5
    where = dict(stride=stride, padding=padding)
    exact = patch_moments(marginal.double(), **where)
    for found, value in zip(
        patch_moments(marginal, **where), exact, strict=True
    ):
        assert largest(found - value) < 2e-6 * largest(value)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_are_those_of_finite_differences(padding, stride):
    where = dict(stride=stride, padding=padding)
    marginal = randn(2, 3, 3, 3, 2).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda m: patch_moments(m, **where), marginal)
    # second moments are symmetric, their gradients need not be
    assert check(lambda m: patch_moments(m, **where)[1][2, 5], marginal)
    kernel = randn(2, 3, 3, 3, 3, seed=1).requires_grad_()
    bias_map = randn(2, 2, 2, seed=2).requires_grad_()
    for average in (False, True):
        assert check(
            functools.partial(banded_conv2d, elu_mean=average, **where),
            (marginal, kernel, bias_map),
        )


def band_by_definition(kernel, b, c, padding):
    """w_d(…; b - 2b', c - 2c') at [b', c', d, …, b, c]."""
    d, s1, s2, *rest = kernel.shape
    b2, c2 = -(-b // 2), -(-c // 2)
    out = kernel.new_zeros(b2, c2, d, *rest, b, c)
    for i in range(b2):
        for k in range(c2):
            for s in range(s1):
                for t in range(s2):
                    y, x = 2 * i + s - s1 // 2, 2 * k + t - s2 // 2
                    if padding == "periodic":
                        y, x = y % b, x % c
                    if 0 <= y < b and 0 <= x < c:
                        out[i, k, ..., y, x] += kernel[:, s, t]
    return out


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("rest", [(), (9,), (3, 3)])
@pytest.mark.parametrize("b, c", [(1, 1), (1, 5), (2, 3), (4, 8), (5, 6)])
def test_the_band_is_the_kernel_at_its_offset(b, c, rest, padding):
    for s1 in supports(b, padding):
        for s2 in supports(c, padding):
            kernel = randn(2, s1, s2, *rest)
            found = band(kernel, b, c, padding=padding)
            expected = band_by_definition(kernel, b, c, padding)
            assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "support, b, c, padding, percent",
    [
        ((7, 11), 8, 16, "zero", 39.2),
        ((7, 11), 8, 16, "periodic", 60.2),
        ((3, 7), 4, 8, "zero", 43.0),
    ],
)
def test_so_much_of_a_band_lies_in_the_support(
    support, b, c, padding, percent
):
    inside = band(torch.ones(1, *support), b, c, padding=padding) != 0
    assert round(100 * inside.double().mean().item(), 1) == percent


# Derivatives, modes, layouts, types


@pytest.mark.parametrize(
    "function",
    [
        lambda m: patch_moments(m)[1],
        lambda m: patch_moments(m, padding="periodic")[0],
        lambda m: patch_moments(m, stride=2)[1],
        lambda m: banded_conv2d(m, randn(2, 3, 3, 3, 3), randn(2, 2, 2)),
        lambda m: fast(layer(), m[:, None]),
    ],
    ids=["moments", "periodic", "strided", "banded", "layer"],
)
def test_second_derivatives_are_refused(function):
    marginal = randn(2, 3, 4, 5, 5).requires_grad_()
    out = function(marginal).square().sum()
    with pytest.raises(NotImplementedError) as caught:
        torch.autograd.grad(out, marginal, create_graph=True)
    assert "second derivatives" in str(caught.value)
    assert "take engine='factorized'" in str(caught.value)
    assert "\n" not in str(caught.value)


LAYOUTS = {
    "channels-last": lambda x: _ordered(x, 0, 4, 5, 1, 2, 3),
    "reversed": lambda x: _ordered(x, 5, 4, 3, 2, 1, 0),
    "every second": lambda x: x.repeat_interleave(2, 5)[..., ::2],
    "inside": lambda x: F.pad(x, (1, 2, 1, 1, 2, 1))[..., 2:-1, 1:-1, 1:-2],
}


def _ordered(x, *order):
    """The same array, its axes in this order in memory."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_in_memory_change_nothing(name, padding, stride):
    laid, own = LAYOUTS[name], layer(stride=stride, padding=padding)
    for a in (1, 2):
        x = randn(2, a, 4, 6, 5, 4)
        assert torch.equal(laid(x), x) and not laid(x).is_contiguous()
        expected = everything(slow, own, x)
        for engine in (
            lambda own, x: fast(own, laid(x)),
            lambda own, x: laid(fast(own, x)),  # of the gradient
        ):
            compare(everything(engine, own, x), expected, 1e-12)


def test_repeated_values_get_the_sum_of_their_gradients():
    def repeated(engine, own, x):
        out = engine(own, x.expand(3, 2, -1, -1, -1, -1))
        return out.sum()  # the gradient of which repeats a number, too

    own, x = layer(), randn(1, 1, 4, 6, 5, 4)
    expected = everything(functools.partial(repeated, slow), own, x)
    found = everything(functools.partial(repeated, fast), own, x)
    compare(found, expected, 1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_only_what_asks_for_a_gradient_gets_one(training):
    own, x = layer().train(training), randn(2, 2, 4, 6, 5, 4)
    expected = everything(slow, own, x, training=training)
    for wanted in ("input", "spatial", "attribute", "bias", None):
        for name, value in own.named_parameters():
            value.requires_grad_(name == wanted)
            value.grad = None
        x = x.detach().requires_grad_(wanted == "input")
        out = fast(copy.deepcopy(own), x)
        assert out.requires_grad == (wanted is not None)
        assert_close(out.detach(), expected["output"])
        if wanted:
            leaf = x if wanted == "input" else getattr(own, wanted)
            (found,) = torch.autograd.grad(
                fast(own, x), leaf, randn(*out.shape, seed=99)
            )
            assert_close(found, expected[f"{wanted} gradient"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_without_gradients_the_values_are_the_same(mode, training, stride):
    own, x = layer(stride=stride), randn(2, 2, 4, 6, 5, 4)
    expected = everything(fast, own, x, training=training)
    with mode():
        out = fast(own.train(training), x)
    assert not out.requires_grad
    assert torch.equal(out, expected["output"])
    for name, value in own.named_buffers():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    "function, key",
    [
        (fused._assembly, (torch.device("cpu"), torch.float32)),
        (
            fused._inside,
            (4, 8, 3, 3, "zero", torch.device("cpu"), torch.float32),
        ),
        (fused._frequencies, (4, 8, 3, 3, torch.float32)),
    ],
)
def test_tensors_that_are_not_real_are_not_kept(function, key):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    def made():
        found = function(*key)
        return found if isinstance(found, tuple) else (found,)

    function.cache_clear()
    with FakeTensorMode():
        assert all(type(one) is FakeTensor for one in made())
    first = made()
    assert all(type(one) is torch.Tensor for one in first)
    assert all(a is b for a, b in zip(first, made(), strict=True))


@pytest.mark.parametrize("padding", ["zero", "periodic"])
def test_what_inference_computed_serves_training(padding):
    """A sum that no other test asks for, first in inference mode."""
    own = layer(padding=padding).float()
    x = randn(2, 2, 4, 10, 5, 14 if padding == "zero" else 12).float()
    for function in (fused._inside, fused._frequencies, fused._assembly):
        function.cache_clear()
    with torch.inference_mode():
        fast(own, x)
    fast(own, x).sum().backward()
    assert own.spatial.grad.isfinite().all()


def test_evaluation_leaves_the_statistics_alone():
    own = layer().eval()
    before = copy.deepcopy(own.state_dict())
    fast(own, randn(2, 2, 4, 6, 5, 4))
    assert all(
        torch.equal(before[k], v) for k, v in own.state_dict().items()
    )
    assert (EPS, MOMENTUM) == (1e-5, 0.1)  # of both engines


def bf16_error(own, x, **choice):
    """Errors of bf16 autocast, relative to the largest entries."""

    def in_bf16(own, x):
        with torch.autocast(x.device.type, BF16):
            out = fast(own, x)
        assert out.dtype == BF16
        return out

    found = everything(in_bf16, own, x, dtype=torch.float32, **choice)
    expected = everything(fast, own, x, **choice)
    errors = {}
    for name, value in expected.items():
        is_output = name == "output"
        assert found[name].dtype == (BF16 if is_output else torch.float32)
        assert found[name].isfinite().all(), name
        errors[name] = largest(found[name].to(value) - value) / largest(
            value
        )
    return errors


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("d", [3, 48])
def test_in_bf16_only_the_rounding_of_operands_shows(
    d, padding, stride, training
):
    own = layer(d=d, stride=stride, padding=padding)
    errors = bf16_error(own, randn(3, 2, 4, 8, 6, 7), training=training)
    # Input, filters and output are each rounded by up to 2^-9, gradients
    # three times more; a sum over many averages these. Statistics are those
    # of the rounded input, summed in float32.
    for name, error in errors.items():
        bound = 2**-6 if "gradient" in name else 2**-7
        if name.startswith("running"):
            bound = 2**-9
        assert error < bound, f"{name}: {error:.2g}"
    assert errors["output"] > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_of_an_array_in_bf16_are_summed_in_float32(autocast):
    marginal = randn(8, 4, 8, 16, 16, dtype=BF16) + 0.5
    for stride in (1, 2):
        for padding in PADDINGS:
            where = dict(stride=stride, padding=padding)
            exact = patch_moments(marginal.double(), **where)
            with torch.autocast("cpu", BF16, enabled=autocast):
                found = patch_moments(marginal, **where)
            for one, value in zip(found, exact, strict=True):
                assert one.dtype == torch.float32
                assert largest(one - value) < 5e-5 * largest(value)


def test_float64_stays_float64_inside_of_autocast():
    own, x = layer(), randn(2, 2, 4, 6, 5, 4)
    expected = everything(fast, own, x)
    with torch.autocast("cpu", BF16):
        found = everything(fast, own, x)
    for name, value in expected.items():
        assert found[name].dtype == torch.float64
        assert torch.equal(found[name], value), name


def test_the_result_has_the_type_of_the_input():
    own, x = layer(), randn(2, 2, 4, 6, 5, 4)
    for dtype in (torch.float64, torch.float32):
        mean, second = patch_moments(x.mean(1).to(dtype))
        assert mean.dtype == second.dtype == dtype
        assert (
            fast(copy.deepcopy(own).to(dtype), x.to(dtype)).dtype == dtype
        )


# Bad input


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "3e38", "1e25"])
def test_values_that_are_not_finite_are_refused_on_a_cpu(
    value, stride, autocast, training
):
    own = layer(stride=stride).float().train(training)
    before = copy.deepcopy(own.state_dict())
    for place in [(0, 0, 0, 0, 0, 0), (1, 0, 2, 4, 2, 2)]:
        x = randn(2, 1, 4, 6, 5, 4, dtype=torch.float32)
        x[place] = float(value)
        with (
            torch.autocast("cpu", BF16, enabled=autocast),
            pytest.raises(ValueError) as caught,
        ):
            fast(own, x)
        for words in ("fused_conv5d: ", "NaN or infinite", "learning rate"):
            assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    # a refused batch leaves no trace in the statistics
    assert all(
        torch.equal(before[k], v) for k, v in own.state_dict().items()
    )


def test_infinities_of_both_signs_do_not_hide_each_other():
    x = randn(2, 1, 4, 6, 5, 4)
    x[0, 0, 1, 1, 2, 2], x[1, 0, 1, 1, 2, 2] = float("inf"), -float("inf")
    for training in (True, False):
        with pytest.raises(ValueError, match="NaN or infinite"):
            fast(layer().train(training), x)


def test_large_values_that_can_be_squared_are_no_error():
    x = 1e10 * randn(2, 2, 4, 6, 5, 4)
    own = layer(moved=False)
    expected = everything(slow, own, x, dtype=torch.float32)
    found = everything(fast, own, x, dtype=torch.float32)
    compare(found, expected, 2e-5)


def test_an_empty_batch_is_refused_in_training_and_empty_in_evaluation():
    own, x = layer(stride=2), randn(0, 2, 4, 7, 5, 4)
    with pytest.raises(ValueError, match="fewer than two values"):
        fast(own.train(), x)
    assert fast(own.eval(), x).shape == slow(own, x).shape
    x.requires_grad_()
    fast(own, x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("elu_mean", [False, True])
def test_the_lean_layer_of_no_images_is_empty_too(elu_mean):
    own, x = layer(stride=2, plus=True), randn(0, 2, 4, 7, 5, 4)
    with pytest.raises(ValueError, match="fewer than two values"):
        lean(own.train(), x, elu_mean)
    x.requires_grad_()
    out = lean(own.eval(), x, elu_mean)
    full = slow(own, x)
    assert out.shape == (full.mean(1) if elu_mean else full).shape
    out.sum().backward()
    assert x.grad.shape == x.shape


def test_a_layer_in_bf16_takes_its_variance_before_it_rounds():
    """h S h and the square of h mu are near each other, 8 bits too few."""
    x = randn(4, 1, 4, 8, 8, 8) + 10
    own = layer()
    fast(own.train(), x)
    exact = own.running_mean, own.running_var
    rounded = layer().bfloat16().train()
    out = fast(rounded, x.bfloat16())
    assert out.dtype == torch.bfloat16
    for found, value in zip(
        (rounded.running_mean, rounded.running_var), exact, strict=True
    ):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(
            found.double(), value, rtol=0.03, atol=0.03
        )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
def test_an_image_may_be_one_pixel(padding, stride):
    own = layer(padding=padding, stride=stride)
    x = randn(2, 3, 4, 6, 1, 1)
    # all taps meet one value around a pixel, and its factor is divided
    # out: in training this gradient cancels, but for that of evaluation
    name, scales = "spatial gradient", {}
    for training in (False, True):
        expected = everything(slow, own, x, training=training)
        found = everything(fast, own, x, training=training)
        compare(found, expected, 1e-11, scales)
        if padding == "periodic":
            scales = {name: expected[name]}


def normalized(function, x, mean, training):
    """Output, gradients and statistics of normalized outputs' ELU."""
    given = [x, randn(x.shape[3], seed=1), randn(x.shape[3], seed=2)]
    x, scale, shift = (own.clone().requires_grad_() for own in given)
    running = randn(x.shape[3], seed=3), randn(x.shape[3], seed=4).exp()
    if function is normalize_elu:
        own = x, *running, scale, shift
        out = normalize_elu(*own, mean=mean, training=training)
    else:
        out = F.elu(normalize(x, *running, scale, shift, training=training))
        out = out.mean(1) if mean else out
    out.backward(randn(*out.shape, seed=5))
    return [out.detach(), x.grad, scale.grad, shift.grad, *running]


@pytest.mark.parametrize("name", ["channels-first", *LAYOUTS])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_normalized_as_the_slow_way_does(training, mean, name):
    x = 3 + 2 * randn(4, 5, 6, 3, 2, 7)
    x = LAYOUTS.get(name, torch.clone)(x)
    found = normalized(normalize_elu, x, mean, training)
    for one, other in zip(
        found, normalized(normalize, x, mean, training), strict=True
    ):
        assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_torch_that_refuses_eps_0_normalizes_as_well(monkeypatch):
    """torch 2.11 does, in `F.batch_norm`."""
    batch_norm = F.batch_norm

    def refuse(*given, eps=1e-5, **options):
        if eps <= 0:
            raise ValueError(f"eps must be positive, but got {eps}")
        return batch_norm(*given, eps=eps, **options)

    x, given = randn(4, 5, 6, 3, 2, 7), dict(mean=True, training=True)
    expected = normalized(normalize_elu, x, **given)
    monkeypatch.setattr(F, "batch_norm", refuse)
    found = normalized(normalize_elu, x, **given)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_one_value_is_not_normalized_in_training_but_two_are():
    x = randn(1, 1, 1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"at least two .* call eval"):
        normalized(normalize_elu, x, False, True)
    for one, other in zip(
        normalized(normalize_elu, x, False, False),
        normalized(normalize, x, False, False),
        strict=True,
    ):
        assert_close(one, other)
    found = normalized(normalize_elu, torch.cat((x, x + 1)), False, True)
    assert all(own.isfinite().all() for own in found)


def test_second_derivatives_of_normalized_outputs_are_refused():
    x = randn(4, 1, 2, 3, 2, 2).requires_grad_()
    given = torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3)
    given = [own.double() for own in given]
    out = normalize_elu(x, *given).square().sum()
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(out, x, create_graph=True)


@pytest.mark.parametrize("stride, h, w", [(1, 1, 1), (2, 2, 1), (3, 3, 2)])
def test_one_value_is_refused_in_training_and_enough_in_evaluation(
    stride, h, w
):
    own, x = layer(support=(1, 1), stride=stride), randn(1, 2, 1, 1, h, w)
    with pytest.raises(ValueError, match="fewer than two values"):
        fast(own.train(), x)
    compare(
        everything(fast, own, x, training=False),
        everything(slow, own, x, training=False),
        1e-12,
    )
    assert fast(own.train(), torch.cat((x, x + 1))).isfinite().all()


def test_a_variance_that_cancels_below_zero_counts_as_zero():
    """Constant planes and filters of sum zero: rounding is all there is."""
    own = layer(q=64, padding="periodic", moved=False).float()
    with torch.no_grad():
        own.spatial -= own.spatial.mean((1, 2), keepdim=True)
    x = torch.full((2, 2, 4, 8, 9, 9), 1e6 / 3)
    factors = own.spatial.detach().flatten(1)
    first, second = patch_moments(x.mean(1), padding="periodic")
    var = ((factors @ second) * factors).sum(1) - (factors @ first).square()
    assert var.min() < -EPS, "no variance came out negative"
    found = everything(fast, own, x, dtype=torch.float32)
    for name, value in found.items():
        assert value.isfinite().all(), name
    assert found["running_var"].min() > 0.89, "a variance below zero"


@pytest.mark.parametrize(
    "name",
    ["x_j", "spatial", "attribute", "bias", "running_mean", "running_var"],
)
@pytest.mark.parametrize("training", [True, False])
def test_types_and_devices_must_agree(name, training, no_shape_checks):
    own = layer()
    good = dict(own.named_parameters()) | dict(own.named_buffers())
    good |= {"x_j": randn(2, 2, 4, 6, 5, 4), "training": training}
    assert fused_conv5d(**good).isfinite().all()
    for change in ({"dtype": torch.float32}, {"device": "meta"}):
        bad = good | {name: good[name].detach().to(**change)}
        with pytest.raises((ValueError, TypeError)) as caught:
            fused_conv5d(**bad)
        message = str(caught.value)
        assert message.startswith("fused_conv5d: ") and "\n" not in message
        for value in (bad["x_j"], bad[name]):
            assert str(value.dtype) in message
            assert str(value.device) in message
        assert "x_j" in message and (name in message)


def test_autocast_takes_its_own_type_and_float32():
    own, x = layer().float(), randn(2, 2, 4, 6, 5, 4, dtype=torch.float32)
    with torch.autocast("cpu", BF16):
        expected = fast(own, x)
        assert largest(fast(own, x.to(BF16)) - expected) < 0.1
        with pytest.raises((ValueError, TypeError), match="float64"):
            fast(own, x.double())
    with pytest.raises((ValueError, TypeError), match="bfloat16"):
        fast(own, x.to(BF16))


@pytest.mark.parametrize(
    "choices, shape",
    [
        (dict(support=(3, 4)), (2, 2, 4, 6, 5, 5)),
        (dict(support=(0, 3)), (2, 2, 4, 6, 5, 5)),
        (dict(padding="same"), (2, 2, 4, 6, 5, 5)),
        (dict(padding="periodic", support=(3, 11)), (2, 2, 4, 4, 5, 5)),
        (dict(padding="periodic", support=(11, 3)), (2, 2, 4, 4, 5, 5)),
        (dict(stride=0), (2, 2, 4, 6, 5, 5)),
        (dict(stride=-1), (2, 2, 4, 6, 5, 5)),
        (dict(stride=1.5), (2, 2, 4, 6, 5, 5)),
        (dict(), (2, 4, 6, 5, 5)),
        (dict(), (2, 4, 5, 5)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_errors_are_those_of_the_factorized_layer(
    choices, shape, training, no_shape_checks
):
    x = randn(*shape)
    with pytest.raises(ValueError) as expected:
        slow(FactorizedConv5d(3, 5, **{"support": (3, 5), **choices}), x)
    own = layer().train(training)
    own.stride = choices.get("stride", 1)
    own.padding = choices.get("padding", "zero")
    support = choices.get("support", (3, 5))
    own.attribute = torch.nn.Parameter(randn(3, 5, *support))
    with pytest.raises(ValueError) as caught:
        fast(own, x)
    words = str(expected.value).replace("FactorizedConv5d", "fused_conv5d")
    assert str(caught.value) == words


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("spatial", (5, 9), "spatial has shape (5, 9); expected (5, 3, 3)"),
        ("spatial", (4, 3, 3), "spatial has shape (4, 3, 3); expected (5,"),
        ("spatial", (5, 5, 5), "spatial has shape (5, 5, 5); expected (5,"),
        (
            "running_mean",
            (1,),
            "running_mean has shape (1,); expected (5,)",
        ),
        ("running_var", (1,), "running_var has shape (1,); expected (5,)"),
        ("bias", (1,), "bias has shape (1,); expected (3,)"),
        ("attribute", (3, 5, 3), "attribute has 3 axes, shape (3, 5, 3)"),
    ],
)
def test_parameters_must_fit_each_other(
    name, shape, words, no_shape_checks
):
    own = layer()
    good = dict(own.named_parameters()) | dict(own.named_buffers())
    with pytest.raises(ValueError) as caught:
        fused_conv5d(
            randn(2, 2, 4, 6, 5, 4), **good | {name: randn(*shape)}
        )
    assert str(caught.value).startswith("fused_conv5d: ")
    assert words in str(caught.value)


def test_idle_taps_are_named_in_a_warning():
    own = layer(support=(7, 3))
    with pytest.warns(UserWarning, match="fused_conv5d: of 7 taps along b"):
        fast(own, randn(2, 2, 4, 6, 5, 4))


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: band(randn(2, 3, 3), 4, 4, padding="same"),
            "band: padding is 'same'; expected one of 'zero', 'periodic'",
        ),
        (
            lambda: band(randn(2, 3, 4), 4, 4),
            "band: the support along c is 4; expected an odd number",
        ),
        (
            lambda: band(randn(2, 11, 3), 4, 4, padding="periodic"),
            "band: a support of 11 along b would wrap twice",
        ),
        (
            lambda: patch_moments(randn(1, 2, 2, 3, 3), padding="same"),
            "patch_moments: padding is 'same'; expected one of",
        ),
        (
            lambda: patch_moments(randn(1, 2, 2, 3, 3), stride=0),
            "patch_moments: stride is 0; expected a positive integer",
        ),
        (
            lambda: patch_moments(randn(1, 2, 3, 3)),
            "patch_moments: marginal has 4 axes, shape (1, 2, 3, 3)",
        ),
        (
            lambda: banded_conv2d(
                randn(1, 3, 3, 3, 3),
                randn(2, 3, 3, 3, 3),
                randn(2, 2, 2),
                padding="same",
            ),
            "banded_conv2d: padding is 'same'; expected one of",
        ),
        (
            lambda: banded_conv2d(
                randn(1, 3, 3, 3, 3),
                randn(2, 3, 3, 3, 3),
                randn(2, 2, 2),
                stride=0,
            ),
            "banded_conv2d: stride is 0; expected a positive integer",
        ),
        (
            lambda: banded_conv2d(
                randn(1, 3, 3, 3, 3), randn(2, 3, 2, 3, 3), randn(2, 2, 2)
            ),
            "banded_conv2d: the support along c is 2; expected an odd",
        ),
    ],
)
def test_the_parts_refuse_what_they_cannot_work_with(
    call, words, no_shape_checks
):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)


# Other machines


def step_of_training(engine="fused"):
    """Loss and gradients of a small network, in two types."""
    images, labels = small_shapes(10)
    results = {}
    for dtype in (torch.float64, torch.float32):
        network = small_network(0, Q=3, engine=engine).to(dtype)
        scores = network(images[..., ::2, ::2].to(dtype))
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        results[dtype] = {"loss": loss.detach()} | {
            name: value.grad for name, value in network.named_parameters()
        }
    return results


def small_shapes(n):
    """Images of shapes10, halved to 16 × 16, and their classes."""
    data = shapes10(n)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    images = standardize(data.images, mean, std)
    return F.avg_pool2d(images, 2), data.labels


def small_network(seed, engine="fused", **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HCNN(preset("hcnn8-shapes10", **changes), engine)


def elsewhere(tmp_path, **changes):
    """`step_of_training` in a process with another environment."""
    file = tmp_path / "step.pt"
    ours = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX")}
    subprocess.run(
        [sys.executable, PROGRAM, "step", str(file)],
        env=ours | changes,
        check=True,
    )
    return torch.load(file)


def test_a_step_of_training_needs_no_compiler(tmp_path):
    """And AVX2, all that a laptop has, gives the same within rounding."""
    found = elsewhere(tmp_path, PATH="", ONEDNN_MAX_CPU_ISA="AVX2")
    expected = step_of_training()
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        compare(found[dtype], expected[dtype], tolerance)


def losses(seed, *, bf16, steps, batch=32, number=2000, **changes):
    """Losses of a small network that trains on shapes10."""
    images, labels = small_shapes(number)
    network = small_network(seed, **changes)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    order, found = rng(seed), []
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=order)
        with torch.autocast("cpu", BF16, enabled=bf16):
            scores = network(images[chosen])
        loss = F.cross_entropy(scores.float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


def test_in_bf16_a_network_learns_as_in_float32():
    """The program below does it for 200 steps and all seeds."""
    choice = dict(steps=20, number=320, Q=9)
    exact = [losses(seed, bf16=False, **choice) for seed in range(3)]
    rounded = losses(0, bf16=True, **choice)
    ends = torch.stack(exact)[:, -5:].mean(1)
    assert exact[0][0] - ends.max() > 0.05, "nothing was learned"
    difference = (rounded[-5:].mean() - ends[0]).abs()
    assert 0 < difference < 0.1 * (ends.max() - ends.min())


# A GPU


def on_gpu(own, x):
    return copy.deepcopy(own).cuda(), x.cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(2000, 2040))
def test_on_a_gpu_the_engine_equals_the_factorized_layer(seed):
    choices, shape = random_case(seed)
    own, x = on_gpu(layer(**choices), randn(*shape, seed=seed))
    scales = {}
    for training in (False, True):
        expected = everything(slow, own, x, training=training)
        name = "spatial gradient"
        scales.setdefault(name, expected[name])
        found = everything(fast, own, x, training=training)
        compare(found, expected, 1e-11, scales, f"{choices}, {shape}")


@pytest.mark.gpu
def test_on_a_gpu_a_step_does_not_wait_for_the_gpu():
    own, x = on_gpu(
        layer(stride=2).float(), randn(2, 2, 4, 8, 9, 9).float()
    )
    network = small_network(0).cuda()
    images = randn(8, 3, 16, 16).float().cuda()

    def step(bf16):
        with torch.autocast("cuda", BF16, enabled=bf16):
            fast(own, x).float().square().sum().backward()
            network(images).float().square().sum().backward()

    for bf16 in (False, True):
        step(bf16)  # the first one makes what is kept
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(bf16)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("d", [3, 48])
def test_on_a_gpu_in_bf16_only_the_rounding_of_operands_shows(d):
    own, x = on_gpu(layer(d=d), randn(3, 2, 4, 8, 6, 7))
    for name, error in bf16_error(own, x).items():
        bound = 2**-6 if "gradient" in name else 2**-7
        assert error < bound, f"{name}: {error:.2g}"


@pytest.mark.gpu
def test_on_a_gpu_values_are_not_checked():
    """A check would wait for the GPU at each layer."""
    own, x = on_gpu(layer(), randn(2, 2, 4, 6, 5, 4))
    x[0] = float("nan")
    assert fast(own, x).isnan().any()


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        torch.save(step_of_training(), sys.argv[2])
    else:
        for bf16 in (False, True):
            for seed in range(3):
                found = losses(seed, bf16=bf16, steps=200)
                ends = found[-20:].mean().item()
                kind = "bf16" if bf16 else "float32"
                print(f"{kind}, seed {seed}: {ends:.4f}", flush=True)
