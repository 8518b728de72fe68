"""Layers in five dimensions: against an independent loop, and their laws."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from hcnn.conv5d import (
    attribute_conv5d,
    centred_conv2d,
    layer_cost,
    layer_sizes,
    marginal,
    products,
    unreached_taps,
)
from hcnn.groups import covariance_error, relative_error
from hcnn.runtime import rng


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def loop(x_j, weight, stride, padding):
    """Sum over taps of shifted marginals; shares no code with the layer."""
    mean = x_j.mean(1)
    n, b, c, h, w = mean.shape
    d, s1, s2 = weight.shape[:3]
    size, support = (b, c, h, w), (s1, s2, 3, 3)
    out = 0
    for tap in itertools.product(*map(range, support)):
        moved = mean
        for axis, (t, k, length) in enumerate(
            zip(tap, support, size, strict=True), start=1
        ):
            index = torch.arange(length) + t - k // 2
            inside = (index >= 0) & (index < length)
            moved = moved.index_select(axis, index % length)
            if padding == "zero":
                shape = [-1 if i == axis else 1 for i in range(5)]
                moved = moved * inside.reshape(shape)
        kept = moved[:, ::2, ::2, ::stride, ::stride]
        taps = weight[(slice(None), *tap)]
        out = out + kept[:, :, :, None] * taps[:, None, None]
    return out


@pytest.mark.parametrize("padding", ["zero", "periodic"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape, support",
    [
        ((2, 3, 4, 6, 5, 4), (3, 5)),
        ((1, 1, 3, 5, 4, 5), (3, 5)),
        ((2, 2, 8, 16, 3, 3), (7, 11)),
        ((1, 4, 1, 8, 1, 6), (1, 7)),
        ((3, 2, 5, 1, 2, 1), (5, 1)),
    ],
)
def test_a_layer_is_the_loop_over_its_taps(shape, support, stride, padding):
    x, weight = randn(*shape), randn(3, *support, 3, 3, seed=1)
    x.requires_grad_()
    weight.requires_grad_()
    results = []
    for out in (
        attribute_conv5d(x, weight, stride=stride, padding=padding),
        loop(x, weight, stride, padding),
    ):
        probe = randn(*out.shape, seed=2)
        results.append(
            [out, *torch.autograd.grad((out * probe).sum(), (x, weight))]
        )
    for fast, slow in zip(*results, strict=True):
        assert relative_error(fast, slow) < 1e-12


def test_sizes_are_halved_upwards():
    out = attribute_conv5d(
        randn(2, 4, 5, 7, 9, 6), randn(3, 3, 3, 3, 3), stride=2
    )
    assert out.shape == (2, 3, 4, 3, 5, 3)


def test_a_layer_reads_channels_last_memory_too():
    x, weight = randn(2, 2, 4, 6, 5, 5), randn(3, 3, 5, 3, 3)
    strided = (
        x.permute(0, 4, 5, 1, 2, 3).contiguous().permute(0, 3, 4, 5, 1, 2)
    )
    assert_close(
        attribute_conv5d(strided, weight), attribute_conv5d(x, weight)
    )


@pytest.mark.parametrize(
    "axis, invariant", [("a", True), ("b", False), ("c", False)]
)
def test_marginal_forgets_a_and_only_a(axis, invariant):
    x_j = randn(2, 3, 4, 6, 5, 5)
    dim = "nabchw".index(axis)
    for shift in range(1, x_j.shape[dim]):
        error = relative_error(
            marginal(x_j.roll(shift, dim)), marginal(x_j)
        )
        assert (error < 1e-12) == invariant, (
            f"{shift} along {axis}: {error:.2g}"
        )


LETTER = {"b": "a", "c": "b", "h": "h", "w": "w"}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("letter", "bchw")
@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_covariance_is_exact_just_where_the_proposition_says(
    letter, shift, stride
):
    x, weight = randn(1, 2, 6, 8, 8, 6), randn(2, 3, 5, 3, 3, seed=1)
    step = 2 if letter in "bc" else stride
    error = covariance_error(
        lambda x: attribute_conv5d(
            x, weight, stride=stride, padding="periodic"
        ),
        x,
        [{letter: shift}],
        lambda g: {LETTER[letter]: g[letter] // step},
    ).error
    assert (error < 1e-12) == (shift % step == 0), error


def test_centred_windows_stand_at_multiples_of_the_stride():
    x = torch.arange(9.0, dtype=torch.float64).reshape(1, 1, 1, 9)
    pick = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    pick[..., 2] = 1
    for padding in ("zero", "periodic"):
        out = centred_conv2d(x, pick, stride=2, padding=padding)
        assert out.flatten().tolist() == [0, 2, 4, 6, 8]
    pick = pick.roll(-2, -1)  # reads two samples before the centre
    assert centred_conv2d(x, pick, padding="periodic").flatten()[0] == 7
    assert centred_conv2d(x, pick, padding="zero").flatten()[0] == 0


@pytest.mark.parametrize("size", range(1, 17))
@pytest.mark.parametrize("support", [1, 3, 5, 7, 11])
def test_products_are_counted_as_the_convolution_makes_them(size, support):
    x = torch.ones(1, 1, 1, size, dtype=torch.float64)
    taps = torch.ones(1, 1, 1, support, dtype=torch.float64)
    counted = centred_conv2d(x, taps, stride=2)[..., 0, :].sum()
    assert products(size, support) == counted
    assert products(size, support, "periodic") == support * -(-size // 2)
    reached = torch.zeros(support)
    for tap in range(support):
        one = torch.zeros_like(taps)
        one[..., tap] = 1
        reached[tap] = centred_conv2d(x, one, stride=2).sum()
    assert (
        unreached_taps(size, support)
        == reached.eq(0).nonzero().flatten().tolist()
    )


@pytest.mark.parametrize("padding", ["zero", "periodic"])
def test_a_bias_is_added_to_every_sample_of_its_channel(padding):
    x, weight, bias = randn(2, 3, 4, 5), randn(4, 3, 3, 3), randn(4, seed=1)
    plain = centred_conv2d(x, weight, padding=padding)
    out = centred_conv2d(x, weight, bias, padding=padding)
    assert_close(out, plain + bias[:, None, None])


def test_sizes_are_those_of_the_paper():
    rows = layer_sizes()
    assert [r[1:6] for r in rows[:4]] == [
        (1, 1, 3, 32, 32),
        (1, 1, 16, 32, 32),
        (1, 8, 16, 32, 32),
        (4, 8, 16, 32, 32),
    ]
    assert [r.h for r in rows] == [32] * 5 + [16] * 4 + [8] * 3 + [1]
    assert rows[11][1:4] == (4, 8, 10)
    assert rows[12].values == 10


def test_the_four_counts_of_the_paper():
    hundred = dict(classes=100, support=(11, 11))
    for choices, plain, plus in [
        ({}, 97_650, 344_640),
        (hundred, 250_308, 887_424),
    ]:
        assert sum(r.parameters for r in layer_sizes(**choices)) == plain
        assert (
            sum(r.factor_parameters for r in layer_cost(**choices)) == plus
        )


def test_cost_is_that_of_the_layers_as_run():
    """Multiply-adds: the gradient of sums of ones counts the products."""
    rows, costs = layer_sizes(12, K=8, support=(3, 7)), None
    for padding in ("zero", "periodic"):
        costs = layer_cost(12, K=8, support=(3, 7), Q=5, padding=padding)
        before, row = rows[3], rows[4]
        ones = torch.ones(
            1, 1, before.b, before.c, 12, 12, dtype=torch.float64
        )
        filters = torch.zeros(1, 3, 7, 3, 3, dtype=torch.float64)
        filters[..., 1, 1] = 1  # along attributes only
        made = attribute_conv5d(ones, filters, padding=padding).sum()
        assert costs[4].multiply_adds == 9 * row.c * made
        assert costs[4].factor_values == 5 * before.b * before.c * 144


def test_each_figure_of_the_cost_is_the_product_of_its_sizes():
    """Periodic padding counts all pairs: the figures are products."""
    choices = dict(classes=5, K=8, support=(3, 7), channels=2)
    rows = layer_sizes((20, 12), **choices)
    costs = layer_cost((20, 12), **choices, Q=5, padding="periodic")
    assert [cost.values for cost in costs] == [row.values for row in rows]
    assert costs[0].values == 2 * 20 * 12 and costs[12].values == 5
    assert rows[4].values == 2 * 4 * 8 * 20 * 12
    assert rows[1].parameters == 9 * 2 * 8
    assert rows[2].parameters == 9 * 7 * 8
    assert costs[1][1:] == (9 * 2 * 8 * 240, 8 * 240, 144, 9 * 16 * 240, 0)
    second = 9 * 8 * 7 * 4 * 240
    assert costs[2][1:] == (second, 4 * 8 * 240, 504, second, 0)
    pairs = 2 * 3 * 4 * 7  # windows and taps along b, then c
    between = 5 * 4 * 8 * 240
    assert costs[4][1:] == (
        9 * 8 * pairs * 240,
        rows[4].values,
        5 * (9 + 8 * 3 * 7),
        9 * between + 5 * 8 * pairs * 240,
        between,
    )


def test_sizes_and_cost_are_by_default_those_of_one_network():
    sizes, cost = layer_sizes(), layer_cost()
    assert [row.values for row in sizes] == [c.values for c in cost]
    assert [row.j for row in sizes if row.stride == 2] == [5, 9]


def test_odd_images_have_planes_rounded_up():
    assert [r.h for r in layer_sizes((33, 17))][::4] == [33, 33, 17, 1]
    assert layer_sizes((33, 17))[9].w == 5


IMAGE = torch.zeros(1, 3, 8, 8)
LAYER = torch.zeros(1, 1, 4, 4, 2, 2)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: marginal(IMAGE),
            "marginal: x_j has 4 axes, shape (1, 3, 8, 8); expected 6: (n a b c h w). Call first_layer on images; give a shallow layer its missing axes: x_1[:, None, None] or x_2[:, None].",
        ),
        (
            lambda: attribute_conv5d(LAYER, torch.zeros(2, 3, 3, 3)),
            "weight has 4 axes",
        ),
        (
            lambda: attribute_conv5d(LAYER, torch.zeros(2, 3, 3, 5, 5)),
            "(2, 3, 3, 5, 5); expected (d, s1, s2, 3, 3)",
        ),
        (
            lambda: attribute_conv5d(LAYER, torch.zeros(2, 4, 3, 3, 3)),
            "the support along b is 4; expected an odd number",
        ),
        (
            lambda: attribute_conv5d(
                LAYER, torch.zeros(2, 3, 3, 3, 3), stride=0
            ),
            "stride is 0; expected a positive integer",
        ),
        (
            lambda: attribute_conv5d(
                LAYER, torch.zeros(2, 3, 3, 3, 3), padding="same"
            ),
            "padding is 'same'; expected one of 'zero', 'periodic'",
        ),
        (
            lambda: attribute_conv5d(
                LAYER, torch.zeros(2, 3, 11, 3, 3), padding="periodic"
            ),
            "a support of 11 along c would wrap twice around an axis of 4; expected at most 9",
        ),
        (
            lambda: attribute_conv5d(LAYER, torch.zeros(2, 3, 3, 5, 3)),
            "(2, 3, 3, 5, 3); expected (d, s1, s2, 3, 3)",
        ),
        (
            lambda: attribute_conv5d(
                LAYER, torch.zeros(2, 3, 3, 3, 3), stride=1.5
            ),
            "stride is 1.5; expected a positive integer",
        ),
        (
            lambda: products(4, 3, "same"),
            "products: padding is 'same'; expected one of",
        ),
        (
            lambda: layer_sizes(support=7),
            "layer_sizes: support is 7; expected two odd integers",
        ),
        (
            lambda: layer_sizes(K=0),
            "K is 0; expected a positive multiple of 4",
        ),
        (
            lambda: layer_sizes(K=8.0),
            "K is 8.0; expected a positive multiple of 4",
        ),
        (
            lambda: layer_sizes(K=10),
            "K is 10; expected a positive multiple of 4",
        ),
        (
            lambda: layer_cost(K=2),
            "K is 2; expected a positive multiple of 4",
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


def test_the_longest_periodic_support_that_fits_is_accepted():
    out = attribute_conv5d(
        LAYER, torch.zeros(2, 3, 9, 3, 3), padding="periodic"
    )
    assert out.shape == (1, 2, 2, 2, 2, 2)


def test_a_tap_that_reads_nothing_is_named_in_a_warning():
    with pytest.warns(
        UserWarning, match=r"of 7 taps along b, the taps \[0\]"
    ):
        attribute_conv5d(LAYER, torch.zeros(2, 7, 3, 3, 3))


def test_a_support_longer_than_the_axis_is_taken_with_zeros_around():
    x, weight = randn(1, 2, 1, 4, 2, 2), randn(2, 5, 3, 3, 3, seed=1)
    with pytest.warns(UserWarning, match=r"\[0, 1, 3, 4\] never meet"):
        out = attribute_conv5d(x, weight)
    assert_close(out, attribute_conv5d(x, weight[:, 2:3]))
