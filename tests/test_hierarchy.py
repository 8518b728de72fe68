"""Layers that grow attributes, and what their scores do not depend on."""

import re
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from hcnn.groups import (
    covariance_error,
    invariance_error,
    relative_error,
    translations,
)
from hcnn.hierarchy import (
    class_scores,
    convolve,
    first_layer,
    hierarchical_layer,
)
from hcnn.runtime import rng

PADDINGS = ("zero", "periodic")
SHAPES = [
    ((1,), (1,)),
    ((5,), (5,)),
    ((4, 3), (3, 5)),
    ((2, 5, 3), (3, 1, 3)),
    ((3, 2, 2, 4), (3, 3, 1, 3)),
    ((2, 1, 3, 2, 3), (3, 1, 1, 3, 5)),
]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def shift(x, **by_axis):
    """Circular shifts along axes called x1, x2, ... by their number."""
    axes = [int(name[1:]) for name in by_axis]
    return x.roll(tuple(by_axis.values()), axes) if axes else x


def all_shifts(x, axes):
    for axis in axes:
        yield from translations(**{f"x{axis}": range(x.shape[axis])})


def equation_2(z, weight, padding):
    """z * w(u) = sum over u' of z(u - u') w(u'), scattered tap by tap."""
    result = torch.zeros(z.shape, dtype=z.dtype)
    for source in product(*map(range, z.shape)):
        for tap in product(*map(range, weight.shape)):
            target = [
                s + t - k // 2
                for s, t, k in zip(source, tap, weight.shape, strict=True)
            ]
            if padding == "periodic":
                target = [
                    i % n for i, n in zip(target, z.shape, strict=True)
                ]
            elif any(
                not 0 <= i < n for i, n in zip(target, z.shape, strict=True)
            ):
                continue
            result[tuple(target)] += z[source] * weight[tap]
    return result


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape, support", SHAPES)
def test_convolve_is_equation_2_in_values_and_gradients(
    shape, support, padding
):
    z = noise(*shape).requires_grad_()
    weight = noise(*support, seed=1).requires_grad_()
    kept = convolve(z, weight, padding=padding)
    slow = equation_2(z, weight, padding)
    assert relative_error(kept, slow) < 1e-13
    for a, b in zip(
        torch.autograd.grad(kept.sin().sum(), [z, weight]),
        torch.autograd.grad(slow.sin().sum(), [z, weight]),
        strict=True,
    ):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_leading_axes_of_convolve_are_a_batch(padding):
    z, weight = noise(2, 3, 5, 4), noise(3, 3, seed=1)
    together = convolve(z, weight, padding=padding)
    for n, c in product(range(2), range(3)):
        alone = convolve(z[n, c], weight, padding=padding)
        assert relative_error(together[n, c], alone) < 1e-14


def test_convolving_an_impulse_gives_the_filter_not_turned_around():
    impulse = torch.zeros(7, 7, dtype=torch.float64)
    impulse[3, 3] = 1
    weight = noise(3, 5)
    found = convolve(impulse, weight)[2:5, 1:6]
    assert torch.equal(found, weight)


def test_periodic_convolution_is_a_product_of_fourier_transforms():
    z, weight = noise(6, 7, 5), noise(5, 7, 3, seed=1)
    centred = torch.zeros_like(z)
    centred[:5, :7, :3] = weight
    centred = centred.roll((-2, -3, -1), (0, 1, 2))
    expected = torch.fft.ifftn(torch.fft.fftn(z) * torch.fft.fftn(centred))
    found = convolve(z, weight, padding="periodic")
    assert relative_error(found, expected.real) < 1e-12


def test_a_support_may_reach_once_around_a_periodic_axis():
    z, weight = noise(4), noise(9, seed=1)
    expected = equation_2(z, weight, "periodic")
    found = convolve(z, weight, padding="periodic")
    assert relative_error(found, expected) < 1e-13


@pytest.mark.parametrize("axis", [1, 2, 3, 4])
def test_convolve_commutes_with_shifts_of_periodic_axes_only(axis):
    z, weight = noise(2, 5, 4, 3, 6), noise(3, 3, 3, 3, seed=1)
    elements = [{f"x{axis}": s} for s in range(1, z.shape[axis])]
    errors = [
        covariance_error(
            partial(convolve, weight=weight, padding=padding),
            z,
            elements,
            act=shift,
        ).error
        for padding in ("periodic", "zero")
    ]
    assert errors[0] < 1e-13 and errors[1] > 0.05, errors


@pytest.mark.parametrize("size", [(6, 5), (1, 4), (3, 3)])
@pytest.mark.parametrize("support", [(3, 3), (1, 1), (5, 3)])
def test_the_first_layer_is_conv2d_with_filters_turned_around(
    size, support
):
    images, weight = noise(2, 3, *size), noise(4, 3, *support, seed=1)
    expected = F.conv2d(
        images,
        weight.flip(-1, -2),
        padding=tuple(k // 2 for k in support),
    )
    assert (
        relative_error(first_layer(images, weight), F.elu(expected)) < 1e-13
    )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    "attributes", [(4,), (3, 4), (2, 3, 4), (2, 3, 2, 3)]
)
def test_a_layer_puts_its_new_attribute_before_the_position(
    attributes, padding
):
    x = noise(2, *attributes, 5, 4)
    weight = noise(6, *[3] * len(attributes), 3, 3, seed=1)
    found = hierarchical_layer(x, weight, padding=padding)
    assert found.shape == (2, *attributes, 6, 5, 4)
    for d in range(6):
        expected = F.elu(convolve(x, weight[d], padding=padding))
        assert torch.equal(found[..., d, :, :], expected)


def test_zeros_are_the_default_padding():
    images, weight = noise(1, 3, 5, 5), noise(4, 3, 3, 3, seed=1)
    z = convolve(images, weight[0])
    assert torch.equal(z, convolve(images, weight[0], padding="zero"))
    x_1 = first_layer(images, weight)
    assert torch.equal(x_1, first_layer(images, weight, padding="zero"))
    weight = noise(2, 3, 3, 3, seed=2)
    x_2 = hierarchical_layer(x_1, weight)
    assert torch.equal(x_2, hierarchical_layer(x_1, weight, padding="zero"))


@pytest.mark.parametrize("attributes", [(), (4,), (2, 4), (3, 2, 4)])
def test_scores_are_the_mean_over_all_but_batch_and_class(attributes):
    x = noise(2, *attributes, 3, 5, 4)
    for n, d in product(range(2), range(3)):
        expected = x[n, ..., d, :, :].mean()
        assert relative_error(class_scores(x)[n, d], expected) < 1e-12


@pytest.mark.parametrize(
    "axis, invariant", [(1, 1), (2, 1), (3, 0), (4, 1)]
)
def test_scores_forget_the_order_along_all_axes_but_the_class(
    axis, invariant
):
    x = noise(2, 4, 5, 3, 6, 7)
    order = torch.randperm(x.shape[axis], generator=rng(3))
    if not invariant:
        order = torch.tensor([1, 2, 0])
    permuted = class_scores(x.index_select(axis, order))
    assert (relative_error(permuted, class_scores(x)) < 1e-12) == bool(
        invariant
    )


def random_weights(depth, K, classes=3, support=3):
    """W_1 to W_{J-1}."""
    found = [noise(K, 3, 3, 3) / 27**0.5]
    for j in range(2, depth):
        d = classes if j == depth - 1 else K
        shape = (d, *[support] * (j - 1), 3, 3)
        weight = noise(*shape, seed=j)
        found.append(weight / weight[0].numel() ** 0.5)
    return found


def all_layers(images, weights, padding, stride=1):
    found = [first_layer(images, weights[0], padding=padding)]
    for weight in weights[1:]:
        found.append(next_layer(found[-1], weight, padding, stride))
    return found


def next_layer(x, weight, padding, stride=1):
    y = hierarchical_layer(x, weight, padding=padding)
    return y[:, *[slice(None, None, stride)] * (x.ndim - 3)]


def scores_from(x, weights, padding, stride=1):
    for weight in weights:
        x = next_layer(x, weight, padding, stride)
    return class_scores(x)


def worst_changes(images, weights, padding):
    found = all_layers(images, weights, padding)[:-1]
    for j, x_j in enumerate(found, start=1):
        together = {f"x{axis}": 1 for axis in range(1, x_j.ndim)}
        yield invariance_error(
            partial(scores_from, weights=weights[j:], padding=padding),
            x_j,
            [*all_shifts(x_j, range(1, x_j.ndim)), together],
            act=shift,
        )


@pytest.mark.parametrize("depth", [3, 4, 5, 6])
@pytest.mark.parametrize(
    "K, size, support", [(3, (4, 3), 3), (2, (3, 5), 3), (3, (2, 2), 5)]
)
def test_scores_do_not_see_shifts_of_any_earlier_layer(
    depth, K, size, support
):
    if depth == 6 and support == 5:
        support = 1  # 5 ** 4 taps would only take longer
    images = noise(2, 3, *size)
    weights = random_weights(depth, K, support=support)
    for worst in worst_changes(images, weights, "periodic"):
        assert worst.error < 1e-10, worst


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_scores_see_shifts_when_the_padding_is_zero(depth):
    weights = random_weights(depth, K=3)
    for worst in worst_changes(noise(2, 3, 4, 5), weights, "zero"):
        assert worst.error > 1e-3, worst


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_last_layer_may_be_shifted_along_all_but_the_class(padding):
    x = all_layers(noise(2, 3, 4, 5), random_weights(4, K=3), padding)[-1]
    free = all_shifts(x, [1, 2, 4, 5])
    assert invariance_error(class_scores, x, free, act=shift).error < 1e-12
    fixed = all_shifts(x, [3])
    assert invariance_error(class_scores, x, fixed, act=shift).error > 1e-3


def test_scores_do_not_see_shifts_after_training_steps():
    images, label = noise(8, 3, 4, 4), torch.arange(8) % 2
    weights = [
        w.requires_grad_() for w in random_weights(4, K=3, classes=2)
    ]
    start = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    for _ in range(5):
        x_1 = first_layer(images, weights[0], padding="periodic")
        scores = scores_from(x_1, weights[1:], "periodic")
        optimizer.zero_grad()
        F.cross_entropy(scores, label).backward()
        optimizer.step()
    trained = [w.detach() for w in weights]
    for before, after in zip(start, trained, strict=True):
        assert relative_error(after, before) > 1e-3
    for worst in worst_changes(images[:2], trained, "periodic"):
        assert worst.error < 1e-10, worst


@pytest.mark.parametrize("j, every", [(1, 4), (2, 2), (3, 1)])
def test_stride_2_keeps_one_shift_in_two_for_each_layer_that_follows(
    j, every
):
    weights = random_weights(4, K=8)
    x_j = all_layers(noise(1, 3, 4, 3), weights, "periodic", stride=2)[
        j - 1
    ]
    f_j = partial(
        scores_from, weights=weights[j:], padding="periodic", stride=2
    )
    for axis in range(1, x_j.ndim - 2 - (j == 3)):  # not the class
        for s in range(x_j.shape[axis]):
            worst = invariance_error(f_j, x_j, [{f"x{axis}": s}], act=shift)
            assert (worst.error < 1e-10) == (s % every == 0), worst
    position = all_shifts(x_j, [x_j.ndim - 2, x_j.ndim - 1])
    assert invariance_error(f_j, x_j, position, act=shift).error < 1e-10


def test_stride_2_loses_all_shifts_of_an_axis_of_odd_size():
    weights = random_weights(3, K=5)
    x_1 = first_layer(noise(1, 3, 4, 3), weights[0], padding="periodic")
    f_1 = partial(
        scores_from, weights=weights[1:], padding="periodic", stride=2
    )
    for s in range(1, 5):
        worst = invariance_error(f_1, x_1, [dict(x1=s)], act=shift)
        assert worst.error > 1e-5, worst


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: convolve(noise(4), noise(3), padding="same"),
            "convolve: padding is 'same'; expected one of 'zero', 'periodic'",
        ),
        (
            lambda: convolve(noise(4), torch.tensor(1.0)),
            "convolve: weight has 0 axes, shape (), and z has 1; expected "
            "between 1 and 1",
        ),
        (
            lambda: convolve(noise(4), noise(3, 3)),
            "convolve: weight has 2 axes, shape (3, 3), and z has 1",
        ),
        (
            lambda: convolve(noise(5, 5), noise(3, 4)),
            "convolve: weight has support (3, 4); expected odd sizes",
        ),
        (
            lambda: convolve(noise(4), noise(11), padding="periodic"),
            "convolve: weight has support (11,) on axes of sizes (4,), which "
            "periodic padding would wrap more than once",
        ),
        (
            lambda: first_layer(noise(3, 5, 5), noise(4, 3, 3, 3)),
            "first_layer: images has 3 axes, shape (3, 5, 5); expected 4: "
            "(n c h w)",
        ),
        (
            lambda: first_layer(noise(1, 3, 5, 5), noise(4, 3, 3)),
            "first_layer: weight has 3 axes, shape (4, 3, 3); expected 4: "
            "(d c y x)",
        ),
        (
            lambda: first_layer(noise(1, 3, 5, 5), noise(4, 1, 3, 3)),
            "first_layer: images have 3 colours and weight has 1",
        ),
        (
            lambda: hierarchical_layer(noise(3, 5, 5), noise(4, 3, 3)),
            "hierarchical_layer: x has 3 axes, shape (3, 5, 5); expected at "
            "least 4: (n, attributes, h, w). Call first_layer",
        ),
        (
            lambda: hierarchical_layer(noise(1, 4, 5, 5), noise(4, 3, 3)),
            "hierarchical_layer: weight has 3 axes, shape (4, 3, 3); "
            "expected 4, as x has",
        ),
        (
            lambda: class_scores(noise(3, 5, 5)),
            "class_scores: x has 3 axes, shape (3, 5, 5); expected at least "
            "4: (n, attributes, classes, h, w)",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
