"""One sheet for the figures of the book: fonts, colours, sizes."""

from contextlib import contextmanager

import matplotlib
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#1f5fa8",
    "#d9731a",
    "#2f8f5b",
    "#c23b4a",
    "#7a55a5",
    "#6b7280",
)
INK, PAPER = "#1f2937", "#ffffff"
SHEET = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.prop_cycle": matplotlib.cycler(
        color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]
    ),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.alpha": 0.25,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.dpi": 120,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
DIVERGING = "RdBu_r"


@contextmanager
def canvas(rows: int = 1, columns: int = 1, size=(7.2, 3.2), **options):
    """Figure and axes in the book's style; the figure is closed at the end.

    Closing it keeps notebooks from showing it twice: the cell shows the
    figure that the plotting function returns.
    """
    with plt.rc_context(SHEET):
        figure, axes = plt.subplots(rows, columns, figsize=size, **options)
        try:
            yield figure, axes
            figure.canvas.draw()  # lays out with this sheet's fonts
        finally:
            plt.close(figure)


def show_image(axes, image, title: str = "", **options):
    """Draw an image (3, h, w) or (h, w) without ticks."""
    if image.ndim == 3:
        image = image.permute(1, 2, 0).clamp(0, 1)
    artist = axes.imshow(image.detach().cpu().numpy(), **options)
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return artist
