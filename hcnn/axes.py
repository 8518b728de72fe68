"""Axis names, shape checks and the pattern of error messages.

One layout everywhere: ``n a b c h w`` is batch, $v_{j-2}$, $v_{j-1}$,
$v_j$, $u_1$, $u_2$ ({ref}`sec-axes`). Layers with fewer attributes drop
``a`` first, then ``b``, so counted from the end an axis has the same
number at every depth.
"""

from numbers import Integral

from torch import Tensor

A_AXIS, B_AXIS, C_AXIS, H_AXIS, W_AXIS = -5, -4, -3, -2, -1
LETTERS = {
    "a": A_AXIS,
    "b": B_AXIS,
    "c": C_AXIS,
    "h": H_AXIS,
    "w": W_AXIS,
}
PADDINGS = ("zero", "periodic")


def axis(letter: str, ndim: int, function: str = "axis") -> int:
    """The negative index of an axis letter in an array of `ndim` axes.

    Raises:
        ValueError: the letter is unknown or the array has no such axis.
    """
    present = [name for name, index in LETTERS.items() if -index < ndim]
    if letter not in present:
        raise ValueError(
            f"{function}: no axis {letter!r} in an array of {ndim} axes; "
            f"it has n (the batch) and {', '.join(present) or 'no other'}; "
            "name one of these"
        )
    return LETTERS[letter]


def check_axes(function: str, hint: str = "", **arrays) -> None:
    """Refuse arrays whose number of axes is not that of their layout.

    Args:
        function: the caller, named in the message.
        hint: what to do, the end of the message.
        arrays: name=(tensor, "n a b c h w").

    Raises:
        TypeError: what is no tensor.
        ValueError: another number of axes; what came, what was expected,
            what to do.
    """
    for name, (value, layout) in arrays.items():
        expected = len(layout.split())
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{function}: {name} is a {type(value).__name__}; expected "
                f"a torch.Tensor of axes ({layout})"
            )
        if value.ndim != expected:
            raise ValueError(
                f"{function}: {name} has {value.ndim} axes, shape "
                f"{tuple(value.shape)}; expected {expected}: ({layout})."
                + (f" {hint}" if hint else "")
            )


def check_count(function: str, name: str, value, hint: str = "") -> int:
    """A positive integer, numpy's too, as an int; refuse all else.

    Args:
        function: the caller, named in the message.
        name: of the argument.
        value: what came.
        hint: behind what was expected.

    Raises:
        ValueError: what is no integer, or below 1.
    """
    known = isinstance(value, Integral) and not isinstance(value, bool)
    if not known or value < 1:
        raise ValueError(
            f"{function}: {name} is {value!r}; expected a positive "
            f"integer{hint}"
        )
    return int(value)


def check_choice(function: str, argument: str, value, choices) -> None:
    """Refuse a value that is none of `choices`, naming them all."""
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"{function}: {argument} is {value!r}; expected one of {names}"
        )
