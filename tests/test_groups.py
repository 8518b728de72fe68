"""Laws of group actions, and the two checks that watch over them."""

import pytest
import torch
import torch.nn.functional as F

from hcnn.groups import (
    covariance_error,
    group_average,
    invariance_error,
    relative_error,
    translate,
    translations,
)
from hcnn.runtime import rng

SIZES = {"n": 2, "a": 4, "b": 5, "c": 6, "h": 7, "w": 8}
LAYOUTS = ("nchw", "nbchw", "nabchw")
CASES = [(layout, axis) for layout in LAYOUTS for axis in layout[1:]]


def array(layout, seed=0):
    shape = [SIZES[letter] for letter in layout]
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def convolution(padding, size=5):
    """A 3 × 3 convolution and an ELU, on (n, 6, h, w)."""
    weight = torch.randn(size, 6, 3, 3, generator=rng(1)).double()
    mode = {"periodic": "circular", "zero": "constant"}[padding]
    return lambda x: F.elu(F.conv2d(F.pad(x, (1,) * 4, mode=mode), weight))


# translate ------------------------------------------------------------------


@pytest.mark.parametrize("layout, axis", CASES)
def test_a_shift_moves_its_axis_as_roll_does(layout, axis):
    x = array(layout)
    expected = x.roll(2, layout.index(axis))
    assert torch.equal(translate(x, **{axis: 2}), expected)


@pytest.mark.parametrize("layout, axis", CASES)
def test_the_value_at_u_comes_from_u_minus_the_shift(layout, axis):
    x, dim = array(layout), layout.index(axis)
    moved = translate(x, **{axis: 3})
    assert torch.equal(moved.select(dim, 3), x.select(dim, 0))
    assert torch.equal(moved.select(dim, 0), x.select(dim, -3))


@pytest.mark.parametrize("layout, axis", CASES)
@pytest.mark.parametrize("one, two", [(1, 2), (5, -9), (-1, 1), (0, 4)])
def test_shifts_add_up(layout, axis, one, two):
    x = array(layout)
    twice = translate(translate(x, **{axis: one}), **{axis: two})
    assert torch.equal(twice, translate(x, **{axis: one + two}))


@pytest.mark.parametrize("layout, axis", CASES)
def test_as_many_steps_as_the_axis_is_long_lead_back(layout, axis):
    x = array(layout)
    assert torch.equal(translate(x, **{axis: SIZES[axis]}), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shifts_along_different_axes_commute(layout):
    x = array(layout)
    both = translate(x, h=2, w=-3)
    assert torch.equal(translate(translate(x, h=2), w=-3), both)
    assert torch.equal(translate(translate(x, w=-3), h=2), both)


def test_no_shift_leaves_the_array():
    x = array("nchw")
    assert torch.equal(translate(x), x)


def test_a_shift_passes_gradients_back():
    x = array("nchw").requires_grad_()
    weight = array("nchw", seed=2)
    (translate(x, h=2, c=1) * weight).sum().backward()
    assert torch.equal(x.grad, translate(weight, h=-2, c=-1))


@pytest.mark.parametrize(
    "layout, axis, said",
    [
        ("nchw", "b", "no axis 'b' in an array of 4 axes"),
        ("nbchw", "a", "no axis 'a' in an array of 5 axes"),
        ("nabchw", "q", "no axis 'q' in an array of 6 axes"),
        ("nchw", "n", "it has n (the batch) and c, h, w; name one"),
    ],
)
def test_translate_refuses_an_axis_that_is_not_there(layout, axis, said):
    with pytest.raises(ValueError) as error:
        translate(array(layout), **{axis: 1})
    assert str(error.value).startswith("translate: ")
    assert said in str(error.value)


# translations ---------------------------------------------------------------


def test_translations_are_all_combinations_in_order():
    assert translations(h=range(2), w=[0, 5]) == [
        {"h": 0, "w": 0},
        {"h": 0, "w": 5},
        {"h": 1, "w": 0},
        {"h": 1, "w": 5},
    ]
    assert translations(h=iter([1, 2]), w=[3]) == [
        {"h": 1, "w": 3},
        {"h": 2, "w": 3},
    ]
    assert translations() == [{}]


# relative_error -------------------------------------------------------------


@pytest.mark.parametrize(
    "actual, expected, error",
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 2.0], 0.5),
        ([0.0, -3.0], [0.0, -4.0], 0.25),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([1.0, 1.0], [float("nan"), 1.0], float("inf")),
        ([float("inf"), 1.0], [1.0, 1.0], float("inf")),
    ],
)
def test_relative_error_is_the_largest_difference_over_the_largest(
    actual, expected, error
):
    assert relative_error(*map(torch.tensor, (actual, expected))) == error


def test_relative_error_refuses_arrays_of_two_shapes():
    with pytest.raises(ValueError, match="relative_error: shapes") as error:
        relative_error(torch.zeros(2, 3), torch.zeros(3))
    assert "(2, 3) and (3,) differ; compare arrays" in str(error.value)


# the two checks -------------------------------------------------------------


def test_a_periodic_convolution_is_covariant_to_every_shift():
    found = covariance_error(
        convolution("periodic"),
        array("nchw"),
        translations(h=range(7), w=range(8)),
    )
    assert found.error < 1e-12, found


def test_zero_padding_breaks_covariance_and_the_check_says_where():
    layer, x = convolution("zero"), array("nchw")
    shifts = translations(h=range(7), w=[0, 3])
    found = covariance_error(layer, x, shifts)
    assert found.error > 0.1
    errors = [covariance_error(layer, x, [g]).error for g in shifts]
    assert found.error == max(errors)
    assert found.element == shifts[errors.index(max(errors))]


@pytest.mark.parametrize("shift, covariant", [(2, True), (1, False)])
def test_on_output_halves_the_shift_behind_a_stride(shift, covariant):
    found = covariance_error(
        lambda x: convolution("periodic")(x)[..., ::2],
        array("nchw"),
        [dict(w=shift)],
        on_output=lambda g: {"w": g["w"] // 2},
    )
    assert (found.error < 1e-12) == covariant, found


def test_the_checks_take_any_action():
    def flip(x, yes=False):
        return x.flip(-1) if yes else x

    both, x = [dict(yes=False), dict(yes=True)], array("nchw")
    assert covariance_error(torch.sin, x, both, act=flip).error == 0
    ramp = torch.arange(8.0)
    assert (
        covariance_error(lambda x: x * ramp, x, both, act=flip).error > 0.1
    )
    assert (
        invariance_error(lambda x: x.sum(-1), x, both, act=flip).error
        < 1e-12
    )
    assert (
        invariance_error(lambda x: x[..., 0], x, both, act=flip).error > 0.1
    )


@pytest.mark.parametrize("padding", ["periodic", "zero"])
def test_the_mean_of_a_covariant_layer_is_invariant(padding):
    layer = convolution(padding)
    found = invariance_error(
        lambda x: layer(x).mean((-2, -1)),
        array("nchw"),
        translations(h=range(7), w=range(8)),
    )
    assert (found.error < 1e-12) == (padding == "periodic"), found


def test_the_first_of_equal_errors_is_named():
    def positive(x):
        return (x[..., :1] > 0).double()

    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    found = invariance_error(positive, x, translations(w=range(4)))
    assert found == (1.0, {"w": 2})


def test_a_nan_is_the_worst_error():
    def layer(x):
        return x * float("nan") if x[0, 0, 0, 0] == 3 else x

    x = torch.arange(4.0).reshape(1, 1, 1, 4)
    found = covariance_error(layer, x, translations(w=range(4)))
    assert found == (float("inf"), {"w": 1})


@pytest.mark.parametrize("check", [covariance_error, invariance_error])
def test_the_checks_refuse_an_empty_group_by_their_own_name(check):
    with pytest.raises(ValueError) as error:
        check(torch.sin, array("nchw"), [])
    assert str(error.value) == (
        f"{check.__name__}: elements is empty; give at least one group "
        "element, such as translations(h=[1])"
    )


@pytest.mark.parametrize("check", [covariance_error, invariance_error])
def test_the_checks_refuse_a_layer_that_changes_its_shape(check):
    def layer(x):
        return x[..., : int(x[0, 0, 0, 0] > 0) + 1]

    x = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    with pytest.raises(ValueError, match="relative_error: shapes"):
        check(layer, x, [dict(w=1)])


# averages -------------------------------------------------------------------


def test_an_average_over_the_whole_group_is_invariant():
    x = array("nchw")
    group = translations(h=range(7))

    def function(x):
        return (x[..., 0] ** 3).flatten(1)[:, :9].exp()

    def averaged(group):
        return lambda x: group_average(function, x, group)

    assert invariance_error(function, x, group).error > 0.1
    assert invariance_error(averaged(group), x, group).error < 1e-12
    assert invariance_error(averaged(group[:-1]), x, group).error > 1e-3


def test_an_average_is_the_mean_of_the_values():
    x, group = array("nchw"), translations(w=range(3))
    values = torch.stack([translate(x, **g).sin() for g in group])
    expected = values.mean(0)
    assert (
        relative_error(group_average(torch.sin, x, group), expected) < 1e-14
    )


def test_group_average_accepts_a_generator():
    x = array("nchw")
    assert torch.equal(group_average(torch.sin, x, iter([{}])), x.sin())


def test_group_average_refuses_an_empty_group():
    with pytest.raises(
        ValueError, match="group_average: elements is empty"
    ):
        group_average(torch.sin, array("nchw"), [])


def test_bytes_and_truth_values_are_averaged_as_numbers():
    elements = translations(w=range(4))
    image = torch.full((1, 4, 4), 200, dtype=torch.uint8)
    found = group_average(lambda x: x, image, elements)
    assert found.dtype == torch.float32 and (found == 200).all()
    true = group_average(lambda x: x > 0, image, elements)
    assert (true == 1).all()
    many = [dict(w=0)] * 1024
    ones = torch.ones(2, 2, dtype=torch.bfloat16)
    found = group_average(lambda x: x, ones, many)
    assert found.dtype == torch.bfloat16 and (found == 1).all()


def test_errors_of_bytes_do_not_wrap_around():
    zero, one = (torch.tensor([v], dtype=torch.uint8) for v in (0, 1))
    assert relative_error(zero, one) == relative_error(one, zero) == 1
    assert relative_error(zero > 0, one > 0) == 1
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0
