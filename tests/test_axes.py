"""The letters of the axes, and the error messages."""

import re

import numpy
import pytest
import torch

from hcnn.axes import (
    LETTERS,
    PADDINGS,
    axis,
    check_axes,
    check_choice,
    check_count,
)

LAYOUTS = ("nchw", "nbchw", "nabchw")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_letter_finds_its_axis_at_every_depth(layout):
    for letter in layout[1:]:
        index = axis(letter, len(layout))
        assert (
            index == layout.index(letter) - len(layout) == LETTERS[letter]
        )


@pytest.mark.parametrize("letter", ["a", "b", "n", "d", "ab", ""])
def test_axis_refuses_a_letter_that_is_not_there(letter):
    with pytest.raises(ValueError) as error:
        axis(letter, 4, "translate")
    assert str(error.value) == (
        f"translate: no axis {letter!r} in an array of 4 axes; it has n "
        "(the batch) and c, h, w; name one of these"
    )


def test_axis_refuses_every_letter_of_a_vector():
    with pytest.raises(ValueError, match="and no other"):
        axis("w", 1)


def test_check_axes_accepts_what_fits():
    check_axes(
        "layer",
        x=(torch.zeros(2, 3, 4, 5), "n c h w"),
        x_j=(torch.zeros(1, 1, 1, 1, 1, 1), "n a b c h w"),
    )


def test_check_axes_says_what_came_and_what_was_expected():
    with pytest.raises(ValueError) as error:
        check_axes(
            "marginal",
            "For images, call hierarchical_layer first.",
            x_j=(torch.zeros(2, 16, 32, 32), "n a b c h w"),
        )
    assert str(error.value) == (
        "marginal: x_j has 4 axes, shape (2, 16, 32, 32); expected 6: "
        "(n a b c h w). For images, call hierarchical_layer first."
    )


@pytest.mark.parametrize("ndim", [0, 3, 5])
def test_check_axes_refuses_too_few_and_too_many(ndim):
    with pytest.raises(ValueError, match=r"expected 4: \(n c h w\)\.$"):
        check_axes("layer", x=(torch.zeros([1] * ndim), "n c h w"))


def test_check_axes_names_the_array_that_is_wrong():
    good = (torch.zeros(1, 1, 1, 1), "n c h w")
    with pytest.raises(ValueError, match="layer: second has 3 axes"):
        check_axes(
            "layer", first=good, second=(torch.zeros(1, 1, 1), "n c h w")
        )


@pytest.mark.parametrize(
    "value, kind", [([[1.0]], "list"), (None, "NoneType")]
)
def test_check_axes_refuses_what_is_no_tensor(value, kind):
    with pytest.raises(TypeError) as error:
        check_axes("layer", x=(value, "n c h w"))
    assert str(error.value) == (
        f"layer: x is a {kind}; expected a torch.Tensor of axes (n c h w)"
    )


@pytest.mark.parametrize("value", PADDINGS)
def test_check_choice_accepts_each_choice(value):
    check_choice("layer", "padding", value, PADDINGS)


@pytest.mark.parametrize("value", ["same", None, 0])
def test_check_choice_names_all_choices(value):
    with pytest.raises(ValueError) as error:
        check_choice("layer", "padding", value, PADDINGS)
    assert str(error.value) == (
        f"layer: padding is {value!r}; expected one of 'zero', 'periodic'"
    )


@pytest.mark.parametrize("value", [1, 7, numpy.int64(7)])
def test_check_count_gives_an_int(value):
    found = check_count("layer", "d", value)
    assert type(found) is int and found == value


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, True, "1", None, numpy.int8(0)]
)
def test_check_count_refuses_all_else(value):
    words = f"layer: d is {value!r}; expected a positive integer, or two"
    with pytest.raises(ValueError, match=re.escape(words)):
        check_count("layer", "d", value, ", or two")
