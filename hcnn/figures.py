"""One sheet for the figures of the book: fonts, colours, sizes."""

import time
from contextlib import contextmanager

try:
    import matplotlib
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError(
        f"hcnn.figures: {error}; install it by: pip install "
        '"hcnn[book]"; the rest of the package does not need it'
    ) from None

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
    """Draw an image (3, h, w) or (h, w) without ticks.

    Colours are numbers from 0 to 1, or bytes.
    """
    if image.ndim == 3:
        image = image.permute(1, 2, 0)
        if image.is_floating_point():
            image = image.clamp(0, 1)
    artist = axes.imshow(image.detach().cpu().numpy(), **options)
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return artist


def learning_curves(runs: dict[str, list[dict]]):
    """Loss, and accuracy where it was measured, over the epochs.

    Args:
        runs: by name, rows with "epoch", "loss" and perhaps "accuracy"
            (0 to 1), such as the history of a training run or its log.
    """
    tested = any(
        row.get("accuracy") is not None
        for rows in runs.values()
        for row in rows
    )
    columns = 1 + tested
    with canvas(1, columns, (4.1 * columns, 2.9), squeeze=False) as drawn:
        figure, ((left, *rest),) = drawn
        for name, rows in runs.items():
            epochs = [row["epoch"] for row in rows]
            mark = "o-" if len(rows) < 3 else "-"
            left.plot(
                epochs, [row["loss"] for row in rows], mark, label=name
            )
            if rest:
                measured = [
                    r for r in rows if r.get("accuracy") is not None
                ]
                rest[0].plot(
                    [row["epoch"] for row in measured],
                    [100 * row["accuracy"] for row in measured],
                    mark,
                )
        left.set(xlabel="epoch", ylabel="training loss")
        for axes in rest:
            axes.set(xlabel="epoch", ylabel="test accuracy, %")
        if any(runs):
            left.legend(fontsize=9)
    return figure


class LiveCurves:
    """Draws a run while it trains: a callback of a trainer, in a notebook.

    `Trainer(…, callbacks=[LiveCurves()])` shows one figure, which grows.

    Args:
        seconds: drawn at most so often, and at the end of each epoch.
    """

    def __init__(self, seconds: float = 2.0):
        self.seconds, self.rows = seconds, []
        self.drawn, self.shown = -seconds, None

    def __call__(self, row: dict) -> None:
        """Take a row of the log, with "epoch", "loss" and "end"."""
        from IPython.display import display

        self.rows.append(row)
        now = time.monotonic()
        if not row["end"] and now < self.drawn + self.seconds:
            return
        figure = learning_curves({"": self.rows})
        if self.shown is None:
            self.shown = display(figure, display_id=True)
        else:
            self.shown.update(figure)
        self.drawn = now
