"""The sheet of the figures."""

import io

import matplotlib
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt

from hcnn.figures import BLUE, ORANGE, PAPER, SHEET, canvas, show_image


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
