"""A figure with sliders, in Jupyter and in the built page.

`explore(draw, x=range(5))` shows `draw(x)` for the chosen `x`. The sliders
in a running notebook ask for a picture, which is computed when it is first
asked for. With `HCNN_WIDGETS=frames`, which `make chapters` sets, all are
computed at once, and the sliders choose among them inside the browser, so
that the built page needs no kernel.
"""

import io
import os
import wave
from collections.abc import Callable

import torch
from PIL import Image

try:
    import ipywidgets
except ImportError as error:
    raise ImportError(
        f"hcnn.widgets: {error}; install it by: pip install "
        '"hcnn[book]"; the rest of the package does not need it'
    ) from None


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


def _shown(made, dpi: int) -> tuple[ipywidgets.Widget, ...]:
    """A picture, and its sound if it has one."""
    figure, sound = made if isinstance(made, tuple) else (made, None)
    image = ipywidgets.Image(
        value=_webp(figure, dpi),
        format="webp",
        layout={"max_width": "100%", "height": "auto"},
    )
    if sound is None:
        return (image,)
    return image, ipywidgets.Audio(
        value=sound_bytes(*sound), autoplay=False, loop=False
    )


def as_frames() -> bool:
    """Does the environment ask for every picture, HCNN_WIDGETS=frames?"""
    return os.environ.get("HCNN_WIDGETS") == "frames"


def _refuse_unknown(argument: str, given: dict, names: list) -> None:
    for name in given:
        if name not in names:
            raise ValueError(
                f"explore: {argument} names {name!r}, which is no argument "
                f"to choose; expected one of {names}"
            )


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
        Sliders over a picture; as frames, over a stack of stacks of
        pictures, with links that run in the browser.

    Raises:
        ValueError: no argument to choose, fewer than two values, a start
            value that is none of them, or a label or start for an
            argument that is not there.
    """
    labels, start = labels or {}, start or {}
    values = {name: list(some) for name, some in choices.items()}
    names = list(values)
    if not names or any(len(some) < 2 for some in values.values()):
        raise ValueError(
            f"explore: choices are {values}; expected at least one "
            "argument, each with two values or more, such as shift=range(5)"
        )
    _refuse_unknown("labels", labels, names)
    _refuse_unknown("start", start, names)
    for name, value in start.items():
        if value not in values[name]:
            raise ValueError(
                f"explore: start {name}={value!r}; expected one of "
                f"{values[name]}"
            )
    first = {n: values[n].index(start.get(n, values[n][0])) for n in names}
    texts = {name: labels.get(name, name) for name in names}
    width = f"{0.55 * max(map(len, texts.values())) + 1:.1f}em"
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=[(str(v), i) for i, v in enumerate(values[name])],
            index=first[name],
            description=texts[name],
            tooltip=texts[name],
            style={"description_width": width},
            layout={"width": "100%", "max_width": "34em"},
        )
        for name in names
    }

    def picture(chosen: tuple[int, ...]):
        pairs = zip(names, chosen, strict=True)
        arguments = {name: values[name][i] for name, i in pairs}
        return _shown(draw(**arguments), dpi)

    def build(chosen: tuple[int, ...]):
        """The picture of `chosen`, or a stack over the next argument."""
        if len(chosen) == len(names):
            return ipywidgets.VBox(picture(chosen))
        name = names[len(chosen)]
        stack = ipywidgets.Stack(
            [build((*chosen, i)) for i in range(len(values[name]))],
            selected_index=first[name],
        )
        ipywidgets.jslink(
            (sliders[name], "index"), (stack, "selected_index")
        )
        return stack

    if as_frames() if frames is None else frames:
        pictures = build(())
    else:
        pictures, drawn = ipywidgets.VBox(), {}

        def show(_=None):
            chosen = tuple(slider.index for slider in sliders.values())
            if chosen not in drawn:
                drawn[chosen] = picture(chosen)
            pictures.children = drawn[chosen]

        show()
        for slider in sliders.values():
            slider.observe(show, "index")
    box = ipywidgets.VBox([*sliders.values(), pictures])
    box.add_class("hcnn-explore")
    return box
