"""The sheet of the figures."""

import io

import matplotlib
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt

from hcnn.figures import (
    BLUE,
    ORANGE,
    PAPER,
    SHEET,
    LiveCurves,
    canvas,
    learning_curves,
    show_image,
)


def pixels(figure):
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return plt.imread(io.BytesIO(drawn.getvalue()))


def test_a_figure_is_closed_and_can_still_be_drawn():
    with canvas(size=(4, 3)) as (figure, axes):
        axes.plot([0, 1])
    assert not plt.get_fignums()
    assert pixels(figure).shape == (360, 480, 4)


def test_a_figure_is_closed_when_drawing_fails():
    with pytest.raises(ZeroDivisionError), canvas():
        raise ZeroDivisionError
    assert not plt.get_fignums()


def test_the_sheet_holds_inside_and_leaves_no_trace():
    with plt.rc_context({"lines.linewidth": 9, "figure.dpi": 50}):
        before = dict(matplotlib.rcParams)
        with canvas() as (figure, axes):
            line, second = axes.plot([[0, 1], [1, 0]])
        assert dict(matplotlib.rcParams) == before
    assert line.get_linewidth() == SHEET["lines.linewidth"]
    assert (line.get_color(), second.get_color()) == (BLUE, ORANGE)
    assert matplotlib.colors.to_hex(figure.get_facecolor()) == PAPER


def test_canvas_passes_rows_columns_and_options_on():
    with canvas(2, 3, sharex=True) as (_, axes):
        assert axes.shape == (2, 3)
        axes[0, 0].set_xlim(2, 5)
        assert axes[1, 0].get_xlim() == (2, 5)


@pytest.mark.parametrize(
    "shape, drawn", [((3, 4, 5), (4, 5, 3)), ((4, 5), (4, 5))]
)
def test_an_image_is_drawn_upright_without_ticks(shape, drawn):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with canvas() as (_, axes):
        artist = show_image(axes, image.requires_grad_(), "title")
    array = torch.tensor(artist.get_array().filled())
    assert array.shape == drawn
    expected = image.permute(1, 2, 0) if image.ndim == 3 else image
    assert torch.equal(array, expected)
    assert axes.get_title() == "title"
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0


def test_colours_outside_the_range_are_cut_and_grey_values_are_not(caplog):
    colours = torch.tensor([-1.0, 2, 0.5]).view(3, 1, 1)
    with canvas(1, 2) as (_, axes):
        colour = show_image(axes[0], colours)
        grey = show_image(axes[1], torch.tensor([[-1.0, 2]]), cmap="gray")
    assert colour.get_array().flatten().tolist() == [0, 1, 0.5]
    assert grey.get_array().flatten().tolist() == [-1, 2]
    assert not caplog.records, "matplotlib has to say that it cuts"


def test_bytes_are_drawn_as_bytes():
    image = torch.tensor([0, 100, 200], dtype=torch.uint8).view(3, 1, 1)
    with canvas() as (_, axes):
        artist = show_image(axes, image)
    assert artist.get_array().flatten().tolist() == [0, 100, 200]


def test_learning_curves_show_loss_and_what_was_tested():
    rows = [
        dict(epoch=1.0, loss=2.0, accuracy=0.5),
        dict(epoch=1.5, loss=1.5),
        dict(epoch=2.0, loss=1.0, accuracy=0.75),
    ]
    figure = learning_curves({"one": rows, "two": rows[:1]})
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [2.0, 1.5, 1.0]
    assert right.lines[0].get_xydata().tolist() == [[1, 50], [2, 75]]
    assert left.get_legend().get_texts()[1].get_text() == "two"
    wrong = [dict(epoch=1.0, loss=2.0, accuracy=0.0)]
    assert len(learning_curves({"": wrong}).axes) == 2
    without = [dict(epoch=1.0, loss=2.0, accuracy=None)]
    assert len(learning_curves({"": without}).axes) == 1


def test_live_curves_keep_one_figure_up_to_date(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append(figure)

    def show(figure, display_id):
        shown.append(figure)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    curves = LiveCurves(seconds=1000.0)
    for step, end in ((1, False), (2, False), (3, True)):
        curves(dict(step=step, epoch=step / 3, loss=1.0 / step, end=end))
    assert len(shown) == len(updates) == 1  # the second came too soon
    (line,) = updates[0].axes[0].lines
    assert line.get_ydata().tolist() == [1.0, 1 / 2, 1 / 3]
