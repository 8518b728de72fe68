"""Factorized layers: two steps, the statistics between them, folding."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hcnn import factorized
from hcnn.conv5d import attribute_conv5d
from hcnn.factorized import (
    EPS,
    FactorizedConv5d,
    attribute_step,
    fold,
    normalize,
    spatial_step,
)
from hcnn.groups import covariance_error, relative_error, translations
from hcnn.runtime import rng


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def layer(d=3, q=6, support=(3, 5), seed=0, **choices):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FactorizedConv5d(d, q, support, **choices).double()


def trained(layer, x, steps=4):
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer.train()(x) - 1).square().mean().backward()
        optimizer.step()
    return layer.eval()


GRID = pytest.mark.parametrize(
    "padding, stride, shape",
    [
        (padding, stride, shape)
        for padding in ("zero", "periodic")
        for stride in (1, 2)
        for shape in [
            (2, 3, 4, 8, 6, 4),
            (3, 1, 5, 7, 3, 5),
            (2, 4, 3, 4, 1, 2),
        ]
    ],
)


@GRID
def test_two_steps_are_the_direct_layer(padding, stride, shape):
    x, own = randn(*shape), layer()
    y = spatial_step(x.mean(1), own.spatial, stride=stride, padding=padding)
    steps = attribute_step(y, own.attribute, padding=padding)
    weight = torch.einsum("qxy,dqst->dstxy", own.spatial, own.attribute)
    direct = attribute_conv5d(x, weight, stride=stride, padding=padding)
    assert relative_error(steps, direct) < 1e-12


@pytest.mark.parametrize("padding", ["zero", "periodic"])
def test_a_bias_is_added_to_every_value_of_its_channel(padding):
    y, own = randn(2, 4, 6, 6, 3, 5), layer()
    bias = randn(3, seed=1)
    plain = attribute_step(y, own.attribute, padding=padding)
    out = attribute_step(y, own.attribute, bias, padding=padding)
    assert_close(out, plain + bias[:, None, None])


@GRID
@pytest.mark.parametrize("bias", [True, False])
def test_a_trained_layer_folds_into_filter_and_bias_map(
    padding, stride, shape, bias
):
    x = randn(*shape) + 1  # means that are not zero
    own = trained(layer(stride=stride, padding=padding, bias=bias), x)
    weight, bias_map = fold(own, *shape[2:4])
    out = attribute_conv5d(x, weight, stride=stride, padding=padding)
    folded = out + bias_map[..., None, None]
    assert relative_error(folded, own(x)) < 1e-12
    moved = own.running_mean.abs().max()
    assert moved > 0.01, "nothing to fold"
    constant = bias_map.std((0, 1)).max() < 1e-12
    whole = bias_map.shape[0] * bias_map.shape[1] == 1
    assert constant == (padding == "periodic" or whole)


@pytest.mark.parametrize("q", [1, 4, 9, 20])
def test_folded_filters_have_rank_at_most_nine(q):
    weight, _ = fold(layer(d=8, q=q), 4, 8)
    values = torch.linalg.svdvals(weight.flatten(0, 2).flatten(1))
    assert (values > 1e-10 * values[0]).sum() == min(q, 9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_normalize_is_the_formula_with_pytorchs_statistics(
    training, affine
):
    y = 3 * randn(2, 4, 5, 3, 6, 7) + 2
    mean, var = randn(3, seed=1), randn(3, seed=2).abs() + 0.1
    scale, shift = (
        (randn(3, seed=3), randn(3, seed=4)) if affine else (None,) * 2
    )
    kept_mean, kept_var = mean.clone(), var.clone()
    out = normalize(y, kept_mean, kept_var, scale, shift, training=training)
    over = (0, 1, 2, 4, 5)
    if training:
        m, v = y.mean(over), y.var(over, correction=0)
        assert_close(kept_mean, 0.9 * mean + 0.1 * m)
        assert_close(kept_var, 0.9 * var + 0.1 * y.var(over))
    else:
        m, v = mean, var
        assert torch.equal(kept_mean, mean) and torch.equal(kept_var, var)
    wide = (slice(None), None, None)
    expected = (y - m[wide]) / (v[wide] + EPS).sqrt()
    if affine:
        expected = expected * scale[wide] + shift[wide]
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_many_processes_are_no_shorter_than_of_one(
    dtype, monkeypatch
):
    """Of bf16 arrays, too, means and variances are sums in float32."""
    y = (torch.randn(8, 1, 2, 3, 16, 16, generator=rng(0)) + 3).to(dtype)
    weight, bias = torch.randn(2, 3, generator=rng(1))
    found = []
    for processes in (1, 2):  # the second path, in this one process
        monkeypatch.setattr(factorized, "world_size", lambda n=processes: n)
        mean, var = torch.zeros(3), torch.ones(3)
        out = normalize(y, mean, var, scale=weight, shift=bias)
        assert out.dtype == dtype
        found.append((out, mean, var))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for one, many in zip(*found, strict=True):
        close = tolerance if one.dtype == dtype else 1e-5
        assert_close(many, one, rtol=close, atol=close)


@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("training", [True, False])
def test_layers_are_covariant_in_both_modes_and_after_training(
    plus, steps, training
):
    x = randn(2, 2, 6, 8, 4, 6)
    own = trained(layer(plus=plus, padding="periodic"), x, steps)
    moves = translations(b=[0, 2], c=[0, 4], h=[0, 1], w=[0, 3])
    half = {"a": 0, "b": 2, "c": 2, "h": 1, "w": 1}
    name = {"b": "a", "c": "b", "h": "h", "w": "w"}
    with torch.no_grad():
        error = covariance_error(
            own.train(training),
            x,
            moves,
            lambda g: {name[k]: s // half[k] for k, s in g.items()},
        ).error
        odd = covariance_error(
            own.train(training), x, [{"c": 1}], lambda g: {}
        ).error
    assert error < 1e-12 and odd > 0.01


def test_plus_is_the_plain_layer_with_an_elu_between():
    x, own = randn(2, 3, 4, 8, 5, 5), layer(plus=True)
    with torch.no_grad():
        own.scale.copy_(randn(6, seed=1))
        own.shift.copy_(randn(6, seed=2))
        y = spatial_step(x.mean(1), own.spatial)
        wide = (slice(None), None, None)
        over = (0, 1, 2, 4, 5)
        m, v = y.mean(over)[wide], y.var(over, correction=0)[wide]
        y = (y - m) / (v + EPS).sqrt() * own.scale[wide] + own.shift[wide]
        expected = attribute_step(F.elu(y), own.attribute, own.bias)
        assert_close(own(x), expected)


def test_parameters_and_buffers_have_the_names_others_rely_on():
    shapes = {k: tuple(v.shape) for k, v in layer().state_dict().items()}
    assert shapes == {
        "spatial": (6, 3, 3),
        "attribute": (3, 6, 3, 5),
        "bias": (3,),
        "running_mean": (6,),
        "running_var": (6,),
    }
    assert "bias" not in layer(bias=False).state_dict()
    plus = layer(plus=True).state_dict()
    assert plus["scale"].shape == plus["shift"].shape == (6,)


def test_a_fresh_layer_normalizes_by_nothing_and_shifts_by_nothing():
    fresh = layer(plus=True).state_dict()
    for name in ("running_var", "scale"):
        assert fresh[name].eq(1).all(), name
    for name in ("running_mean", "shift", "bias"):
        assert fresh[name].eq(0).all(), name
    assert EPS == 1e-5  # of the paper


def test_normalize_trains_unless_told_otherwise():
    y, mean = randn(2, 4, 5, 3, 6, 7), torch.zeros(3).double()
    normalize(y, mean, torch.ones(3).double())
    assert mean.ne(0).all()


def test_the_description_of_a_layer_tells_its_choices():
    assert layer().extra_repr() == (
        "d=3, q=6, support=(3, 5), stride=1, padding='zero', plus=False, "
        "bias=True"
    )


def test_a_fresh_layer_keeps_the_scale():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = FactorizedConv5d(16, 32, (7, 11), padding="periodic")
    x = torch.randn(2, 4, 8, 16, 4, 4, generator=rng(0))
    assert 0.7 < own(x).std() < 1.4
    assert 0.8 < 3 * own.spatial.std() < 1.2


def test_gradients_are_those_of_finite_differences():
    own = layer(d=2, q=2, support=(1, 3))
    x = randn(2, 1, 2, 4, 2, 2).requires_grad_()
    names = ["spatial", "attribute", "bias"]

    def run(x, *values):
        return torch.func.functional_call(
            own, dict(zip(names, values, strict=True)), (x,)
        )

    values = [getattr(own, n).detach().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("padding", ["zero", "periodic"])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "n, b, c, q, h, w",
    [
        (*planes, *sizes)
        for planes in [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 3)]
        for sizes in [(2, 2, 3), (2, 1, 3), (1, 3, 1), (3, 1, 1)]
        if prod(planes + sizes[1:]) > 2  # two leave nothing but a sign
    ],
)
def test_gradients_are_right_where_axes_have_one_value(
    n, b, c, q, h, w, padding, plus, training
):
    support = (1, 1) if padding == "zero" else (3, 1)
    own = layer(d=2, q=q, support=support, padding=padding, plus=plus)
    own.train(training)
    x = randn(n, 1, b, c, h, w, seed=1).requires_grad_()
    names = [name for name, _ in own.named_parameters()]

    def run(x, *values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(own, parameters, (x,))

    assert torch.autograd.gradcheck(run, (x, *own.parameters()))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: layer(d=0), "d is 0; expected a positive integer"),
        (
            lambda: layer(support=7),
            "support is 7; expected two odd integers",
        ),
        (
            lambda: layer(support=(3, 5, 7)),
            "support is (3, 5, 7); expected two odd integers",
        ),
        (
            lambda: fold(layer(), 0, 4),
            "fold: b is 0 and c is 4; expected the sizes",
        ),
        (
            lambda: fold(layer(padding="periodic", support=(7, 7)), 2, 4),
            "fold: a support of 7 along b would wrap twice around an axis of 2",
        ),
        (
            lambda: fold(layer(), 4, 0),
            "fold: b is 4 and c is 0; expected the sizes",
        ),
        (lambda: layer(q=2.5), "q is 2.5; expected a positive integer"),
        (lambda: layer(support=(3, 4)), "the support along c is 4"),
        (
            lambda: layer(padding="same"),
            "padding is 'same'; expected one of",
        ),
        (lambda: layer(stride=0), "stride is 0; expected a positive"),
        (
            lambda: layer(padding="periodic", support=(3, 11))(
                randn(1, 1, 4, 4, 2, 2)
            ),
            "a support of 11 along c would wrap twice around an axis of 4",
        ),
        (
            lambda: layer(support=(1, 1))(randn(1, 3, 1, 1, 1, 1)),
            "fewer than two values for each factor q; expected at least two",
        ),
        (lambda: layer()(randn(0, 3, 4, 4, 2, 2)), "fewer than two values"),
        (lambda: layer()(randn(2, 3, 4, 4)), "x_j has 4 axes"),
        (
            lambda: fold(layer(plus=True), 4, 4),
            "no convolution; expected a plain layer",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    call, words, no_shape_checks
):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_value_is_enough_in_evaluation():
    out = layer(support=(1, 1)).eval()(randn(1, 3, 1, 1, 1, 1))
    assert out.isfinite().all()
