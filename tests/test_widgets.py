"""A figure with sliders: what is computed, when, and what is linked."""

import io
import itertools
import wave

import ipywidgets
import matplotlib
import pytest
import torch
from PIL import Image

matplotlib.use("agg")
from hcnn.figures import canvas
from hcnn.widgets import explore, sound_bytes

CHOICES = {"left": [1, 2, 5], "right": ["a", "b"]}


class Drawing:
    """Draws a bar as high as `left`, and remembers what it drew."""

    def __init__(self, sound=False):
        self.calls, self.sound = [], sound

    def __call__(self, left, right="a"):
        self.calls.append((left, right))
        with canvas(size=(2, 1)) as (figure, axes):
            axes.bar(right, left)
            axes.set_ylim(0, 6)
        if self.sound:
            return figure, (torch.linspace(-1, 1, 80) / left, 8000)
        return figure


def sliders(widget):
    return widget.children[:-1]


def frames(widget):
    """The pictures of all choices, in the order of itertools.product."""
    level = [widget.children[-1]]
    while isinstance(level[0], ipywidgets.Stack):
        level = [child for stack in level for child in stack.children]
    return level


@pytest.fixture(autouse=True)
def live(monkeypatch):
    monkeypatch.delenv("HCNN_WIDGETS", raising=False)


# live -----------------------------------------------------------------------


def test_live_only_the_first_picture_is_computed():
    draw = Drawing()
    widget = explore(draw, **CHOICES)
    assert draw.calls == [(1, "a")]
    (frame,) = frames(widget)  # one place, whatever the choices
    assert len(frame.children) == 1


def test_live_a_picture_is_computed_once_when_its_slider_reaches_it():
    draw = Drawing()
    left, right = sliders(explore(draw, **CHOICES))
    left.index = 2
    right.index = 1
    right.index = 0
    left.index = 0
    assert draw.calls == [(1, "a"), (5, "a"), (5, "b")]


def test_live_the_picture_is_that_of_the_sliders():
    widget = explore(Drawing(), **CHOICES)
    expected = frames(explore(Drawing(), frames=True, **CHOICES))
    left, right = sliders(widget)
    for i, j in ((2, 1), (0, 1), (2, 1), (0, 0)):
        left.index, right.index = i, j
        (shown,) = frames(widget)
        picture = expected[2 * i + j].children[0].value
        assert shown.children[0].value == picture


def test_live_both_ends_of_every_slider_can_be_reached():
    draw = Drawing()
    widget = explore(draw, **CHOICES)
    for slider in sliders(widget):
        slider.index = len(slider.options) - 1
    for slider in sliders(widget):
        slider.index = 0
    assert draw.calls[:3] == [(1, "a"), (5, "a"), (5, "b")]


# frames ---------------------------------------------------------------------


@pytest.mark.parametrize("said", ["argument", "environment"])
def test_as_frames_every_picture_is_computed_once(monkeypatch, said):
    draw = Drawing()
    if said == "environment":
        monkeypatch.setenv("HCNN_WIDGETS", "frames")
        widget = explore(draw, **CHOICES)
    else:
        widget = explore(draw, frames=True, **CHOICES)
    every = list(itertools.product(*CHOICES.values()))
    assert sorted(draw.calls) == sorted(every)
    made = len(draw.calls)
    for slider in sliders(widget):
        slider.index = 1
    assert len(draw.calls) == made


def test_an_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("HCNN_WIDGETS", "frames")
    draw = Drawing()
    explore(draw, frames=False, **CHOICES)
    assert len(draw.calls) == 1


def test_each_frame_holds_the_picture_of_its_own_choice():
    widget = explore(Drawing(), frames=True, **CHOICES)
    pictures = [frame.children[0].value for frame in frames(widget)]
    assert len(set(pictures)) == 6
    for value, chosen in zip(
        pictures, itertools.product(*CHOICES.values()), strict=True
    ):
        alone = explore(
            Drawing(),
            start=dict(zip(CHOICES, chosen, strict=True)),
            **CHOICES,
        )
        (shown,) = frames(alone)
        assert shown.children[0].value == value


# links and looks ------------------------------------------------------------


def test_sliders_are_linked_to_the_stacks_in_the_browser(monkeypatch):
    made = []
    monkeypatch.setattr(
        ipywidgets, "jslink", lambda *ends: made.append(ends)
    )
    widget = explore(Drawing(), frames=True, **CHOICES)
    left, right = sliders(widget)
    outer = widget.children[-1]
    ends = [(source[0], target[0]) for source, target in made]
    assert (left, outer) in ends
    assert all((right, inner) in ends for inner in outer.children)
    assert len(made) == 1 + len(CHOICES["left"])
    for source, target in made:
        assert (source[1], target[1]) == ("index", "selected_index")


def test_start_chooses_slider_and_picture_alike():
    draw = Drawing()
    start = {"left": 5, "right": "b"}
    live = explore(draw, start=start, **CHOICES)
    assert draw.calls == [(5, "b")]
    widget = explore(draw, start=start, frames=True, **CHOICES)
    for own in (live, widget):
        assert [slider.index for slider in sliders(own)] == [2, 1]
    outer = widget.children[-1]
    assert outer.selected_index == 2
    assert {inner.selected_index for inner in outer.children} == {1}


def test_labels_name_the_sliders():
    widget = explore(Drawing(), labels={"left": "height"}, **CHOICES)
    left, right = sliders(widget)
    assert (left.description, right.description) == ("height", "right")
    assert [text for text, _ in left.options] == ["1", "2", "5"]
    assert "hcnn-explore" in widget._dom_classes


def test_values_may_be_lists_and_come_from_a_generator():
    def draw(pair):
        return Drawing()(pair[0])

    widget = explore(draw, frames=True, pair=([k, k] for k in (1, 2)))
    assert len(frames(widget)) == 2


def test_a_picture_keeps_the_size_of_its_figure():
    widget = explore(Drawing(), dpi=100, left=[1, 2])
    picture = frames(widget)[0].children[0]
    with Image.open(io.BytesIO(picture.value)) as image:
        assert (image.format, image.size) == ("WEBP", (200, 100))
    assert picture.format == "webp"


# sound ----------------------------------------------------------------------


def test_a_sound_stands_under_its_picture():
    widget = explore(Drawing(sound=True), frames=True, left=[1, 2])
    for frame in frames(widget):
        picture, sound = frame.children
        assert isinstance(picture, ipywidgets.Image)
        assert isinstance(sound, ipywidgets.Audio)
        assert not sound.autoplay and not sound.loop
        with wave.open(io.BytesIO(sound.value)) as file:
            assert (file.getframerate(), file.getnframes()) == (8000, 80)


def test_sound_bytes_are_16_bits_and_cut_at_full_scale():
    value = sound_bytes(torch.tensor([0, 0.5, 1, 9, -9]), 8000)
    with wave.open(io.BytesIO(value)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = torch.frombuffer(
            bytearray(file.readframes(9)), dtype=torch.int16
        )
    assert samples.tolist() == [0, 16384, 32767, 32767, -32767]


# errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({}, "choices are {}; expected at least one argument"),
        ({"left": []}, "choices are {'left': []}; expected"),
        (
            {"left": [1]},
            "each with two values or more, such as shift=range",
        ),
        (
            {"left": [1, 2], "start": {"left": 3}},
            "start left=3; expected one of [1, 2]",
        ),
        (
            {"left": [1, 2], "start": {"lift": 1}},
            "start names 'lift', which is no argument to choose; expected "
            "one of ['left']",
        ),
        ({"left": [1, 2], "labels": {"lift": "x"}}, "labels names 'lift'"),
    ],
)
def test_explore_refuses(arguments, said):
    draw = Drawing()
    with pytest.raises(ValueError) as error:
        explore(draw, **arguments)
    assert str(error.value).startswith("explore: ")
    assert said in str(error.value)
    assert not draw.calls
