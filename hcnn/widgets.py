"""One helper: a figure with sliders, in Jupyter and in the built page.

`explore(draw, x=range(5))` shows `draw(x)` for the chosen `x`. The sliders
choose among pictures inside the browser, without a kernel. In a running
notebook a picture is computed when its slider first reaches it; with
`HCNN_WIDGETS=frames`, which `make chapters` sets, all are computed at once,
so that the built page has them.
"""

import io
import itertools
import os
import wave
from collections.abc import Callable

import ipywidgets
import torch
from PIL import Image


def _webp(figure, dpi: int) -> bytes:
    """The figure as WebP: a fifth of the size of a PNG for photographs."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    picture = Image.open(drawn).convert("RGB")
    picture.save(small, format="webp", quality=80, method=6)
    return small.getvalue()


def sound_bytes(samples: torch.Tensor, rate: int) -> bytes:
    """A WAV file of samples (t,) in [-1, 1], 16 bits, one channel."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        pcm = (samples.clamp(-1, 1) * 32767).round().to(torch.int16)
        file.writeframes(pcm.numpy().tobytes())
    return buffer.getvalue()


class _Frame(ipywidgets.VBox):
    """One picture (and its sound), computed once, when asked for."""

    def __init__(self, make: Callable, dpi: int):
        self._make, self._dpi = make, dpi
        super().__init__()

    def fill(self) -> None:
        if self.children:
            return
        made = self._make()
        figure, sound = made if isinstance(made, tuple) else (made, None)
        image = ipywidgets.Image(
            value=_webp(figure, self._dpi), format="webp"
        )
        image.layout.max_width, image.layout.height = "100%", "auto"
        children = [image]
        if sound is not None:
            children.append(
                ipywidgets.Audio(
                    value=sound_bytes(*sound), autoplay=False, loop=False
                )
            )
        self.children = children


def explore(
    draw: Callable,
    *,
    labels: dict[str, str] | None = None,
    start: dict | None = None,
    dpi: int = 96,
    frames: bool | None = None,
    **choices,
) -> ipywidgets.VBox:
    """Show `draw(**chosen)` under one slider for each argument.

    Args:
        draw: returns a matplotlib figure, or a pair of a figure and
            (samples, rate), a sound to play beside it.
        labels: text beside a slider, by argument; the name otherwise.
        start: chosen values at first, by argument; the first otherwise.
        dpi: dots per inch of the pictures.
        frames: compute every picture now; by default, whether the
            environment says HCNN_WIDGETS=frames.
        choices: argument=values, in the order of the sliders. The number
            of pictures is the product of their lengths.

    Returns:
        Sliders over a stack of stacks of pictures. The links run
        in the browser, so it works in a page without a kernel.

    Raises:
        ValueError: no argument to choose, an empty list of values, or a
            start value that is none of them.
    """
    if not choices or not all(len(list(v)) for v in choices.values()):
        raise ValueError(
            f"explore: choices are {choices}; expected at least one "
            "argument, each with at least one value"
        )
    names = list(choices)
    values = {name: list(choices[name]) for name in names}
    first = {name: values[name][0] for name in names} | (start or {})
    for name in names:
        if first[name] not in values[name]:
            raise ValueError(
                f"explore: start {name}={first[name]!r}; expected one of "
                f"{values[name]}"
            )
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=[(str(value), value) for value in values[name]],
            value=first[name],
            description=(labels or {}).get(name, name),
            continuous_update=True,
            style={"description_width": "auto"},
            layout={"width": "100%", "max_width": "32em"},
        )
        for name in names
    }
    cells = {}

    def build(chosen: tuple):
        """The picture of `chosen`, or a stack over the next argument."""
        if len(chosen) == len(names):
            arguments = dict(zip(names, chosen, strict=True))
            cells[chosen] = _Frame(lambda: draw(**arguments), dpi)
            return cells[chosen]
        name = names[len(chosen)]
        stack = ipywidgets.Stack(
            [build((*chosen, value)) for value in values[name]],
            selected_index=values[name].index(first[name]),
        )
        ipywidgets.jslink(
            (sliders[name], "index"), (stack, "selected_index")
        )
        return stack

    pictures = build(())

    def fill_chosen(_=None):
        cells[tuple(sliders[name].value for name in names)].fill()

    if frames is None:
        frames = os.environ.get("HCNN_WIDGETS") == "frames"
    if frames:
        for chosen in itertools.product(*values.values()):
            cells[chosen].fill()
    else:
        fill_chosen()
        for slider in sliders.values():
            slider.observe(fill_chosen, "value")
    box = ipywidgets.VBox([*sliders.values(), pictures])
    box.add_class("hcnn-explore")
    return box
