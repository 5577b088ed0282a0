import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from hf_mote.drawing import LESS, MORE
from hf_mote.errors import DataError
from hf_mote.plots import EffectRow, plot_dose, plot_effect, plot_expert_map

BEFORE = EffectRow("before", 0.99, 0.95, 1.0)
AFTER = EffectRow("top 4 suppressed", 0.1, 0.05, 0.2, [0.97, 0.98, 0.99])


def grid(layers, experts):
    return np.random.default_rng(0).normal(size=(layers, experts))


def inside(figure):
    """Whether nothing that is drawn falls off the picture."""
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    width, height = figure.bbox.size
    return drawn.x0 > -3 and drawn.y0 > -3 and drawn.x1 < width + 3 and drawn.y1 < height + 3  # pixels


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize(("layers", "experts"), [(1, 8), (4, 64), (58, 256)])
def test_plot_expert_map_fits_and_names_absolute_layers(layers, experts):
    numbers = list(range(3, 3 + layers))
    figure = plot_expert_map(grid(layers, experts), numbers, title="difference", marked={"planted": [(3, 7)]})
    assert inside(figure)
    axes = figure.axes[0]
    ticks = dict(zip(axes.get_yticks(), [text.get_text() for text in axes.get_yticklabels()], strict=True))
    assert all(int(label) == row + 3 for row, label in ticks.items())
    assert 0 in ticks
    assert len(ticks) <= 30


def test_plot_expert_map_centres_differences_on_zero():
    image = plot_expert_map(torch.tensor([[-1.0, 4.0]]), [0], title="t").axes[0].images[0]
    assert image.norm(0.0) == 0.5
    assert (image.norm(-4.0), image.norm(4.0)) == (0.0, 1.0)


def test_plot_expert_map_of_counts_starts_at_zero():
    image = plot_expert_map(np.array([[1, 4]]), [0], title="t").axes[0].images[0]
    assert (image.norm(0.0), image.norm(4.0)) == (0.0, 1.0)


def test_plot_expert_map_labels_colours_and_marks():
    marked = {"planted": [(5, 2), (6, 0)], "suppressed": [(6, 3)]}
    figure = plot_expert_map(grid(2, 4), [5, 6], title="t", label="tokens per prompt", marked=marked)
    assert legend_texts(figure) == ["planted (2)", "suppressed (1)"]
    assert figure.axes[1].get_ylabel() == "tokens per prompt"
    places = [collection.get_offsets().tolist() for collection in figure.axes[0].collections]
    assert places == [[[2, 0], [0, 1]], [[3, 1]]]


def test_plot_expert_map_legend_is_outside_the_data():
    figure = plot_expert_map(grid(4, 64), [1, 2, 3, 4], title="t", marked={"planted": [(4, 1)]})
    figure.draw_without_rendering()
    boxes = [figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()]
    assert Bbox.intersection(*boxes) is None


@pytest.mark.parametrize(("matrix", "layers"), [(np.ones(3), [0]), (np.ones((2, 3)), [0]), (np.ones((1, 0)), [0])])
def test_plot_expert_map_of_other_shapes_is_refused(matrix, layers):
    with pytest.raises(DataError, match="wrong shape"):
        plot_expert_map(matrix, layers, title="t")


def test_plot_expert_map_of_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        plot_expert_map(np.array([[np.nan]]), [0], title="t")


@pytest.mark.parametrize("pair", [(4, 0), (5, 9), (5, -1)])
def test_plot_expert_map_marking_an_expert_that_is_not_there_is_refused(pair):
    with pytest.raises(DataError, match="planted"):
        plot_expert_map(np.ones((1, 9)), [5], title="t", marked={"planted": [pair]})


def test_plot_expert_map_with_too_many_names_is_refused():
    with pytest.raises(DataError, match="too many names"):
        plot_expert_map(np.ones((1, 9)), [5], title="t", marked={str(name): [] for name in range(5)})


@pytest.mark.parametrize("rows", [[BEFORE], [BEFORE, AFTER], [BEFORE, AFTER] * 4])
def test_plot_effect_fits_and_keeps_the_order(rows):
    figure = plot_effect(rows, rate_name="refusals", title="effect")
    assert inside(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [row.label for row in rows]
    assert axes.yaxis_inverted()
    assert axes.get_xlabel() == "refusals"


def test_plot_effect_draws_every_control_and_their_mean():
    axes = plot_effect([BEFORE, AFTER], rate_name="refusals").axes[0]
    dots = next(collection for collection in axes.collections if collection.get_label().startswith("random"))
    assert dots.get_offsets()[:, 0].tolist() == AFTER.controls
    (mean,) = [line for line in axes.lines if line.get_label() == "their mean"]
    assert mean.get_xdata().tolist() == pytest.approx([0.98])
    assert "10.0%\ncontrols 98.0%" in [text.get_text() for text in axes.texts]


def test_plot_effect_without_controls_does_not_explain_them():
    assert legend_texts(plot_effect([BEFORE], rate_name="refusals")) == ["measured, with its interval"]


def test_plot_effect_of_a_rate_beside_its_rounded_interval_is_drawn():
    plot_effect([EffectRow("all", 1.0, 0.9, 1.0 - 1e-16 * 2)], rate_name="refusals")


@pytest.mark.parametrize("row", [EffectRow("x", 12.0, 0, 1), EffectRow("x", 0.5, 0.4, 0.6, [float("nan")])])
def test_plot_effect_of_something_that_is_no_rate_names_the_row(row):
    with pytest.raises(DataError, match="row 'x'"):
        plot_effect([row], rate_name="refusals")


def test_plot_effect_of_nothing_is_refused():
    with pytest.raises(DataError, match="nothing to draw"):
        plot_effect([], rate_name="refusals")


def test_plot_expert_map_has_the_colours_of_the_pages():
    image = plot_expert_map(np.array([[-4.0, 0.0, 4.0]]), [0], title="t").axes[0].images[0]
    colours = np.rint(255 * image.cmap(image.norm([-4.0, 0.0, 4.0])))[:, :3]
    np.testing.assert_allclose(colours, [LESS, (255, 255, 255), MORE], atol=2)
    one = plot_expert_map(np.array([[4.0]]), [0], title="t").axes[0].images[0]
    assert tuple(np.rint(255 * np.array(one.cmap(1.0)))[:3]) == MORE


def test_plot_effect_of_small_rates_has_an_axis_that_fits():
    figure = plot_effect([EffectRow("a", 0.05, 0.01, 0.12), EffectRow("b", 0.1, 0.05, 0.2)], rate_name="r")
    assert figure.axes[0].get_xlim() == pytest.approx((-0.004, 0.204))


def test_plot_effect_of_few_prompts_is_written_in_whole_per_cents():
    rows = [EffectRow("a", 0.125, 0.0, 0.5, [0.25], 8), EffectRow("b", 0.125, 0.1, 0.2, [0.25], 800)]
    texts = [text.get_text() for text in plot_effect(rows, rate_name="r").axes[0].texts]
    assert texts == ["12%\ncontrols 25%", "12.5%\ncontrols 25.0%"]


def test_plot_dose_has_a_panel_for_each_heading_and_one_axis():
    panels = {"strength 0.5": [BEFORE, AFTER], "strength 1": [AFTER, AFTER]}
    figure = plot_dose(panels, rate_name="refusals", dose_name="experts", before=0.99)
    assert inside(figure)
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    curve = figure.axes[0].lines[0]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0, 1], [0.99, 0.1])
    dots = next(found for found in figure.axes[0].collections if found.get_label() == "random controls")
    assert dots.get_offsets()[:, 1].tolist() == AFTER.controls
    assert legend_texts(figure) == ["measured, with its interval", "random controls", "their mean", "untouched"]


def test_plot_dose_of_nothing_is_refused():
    with pytest.raises(DataError, match="nothing to draw"):
        plot_dose({}, rate_name="r", dose_name="d")


def test_plots_are_written_in_full_and_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        plot_expert_map(grid(4, 64), [1, 2, 3, 4], title="t", path=tmp_path / f"map_{name}.png")
        plot_effect([BEFORE, AFTER], rate_name="refusals", path=tmp_path / f"effect_{name}.png")
    for kind in ("map", "effect"):
        first, second = imread(tmp_path / f"{kind}_a.png"), imread(tmp_path / f"{kind}_b.png")
        assert first.shape[1] >= 1000
        np.testing.assert_array_equal(first, second)


def test_a_notebook_shows_a_picture_that_pyplot_does_not_know_of() -> None:
    figure = plot_effect([EffectRow("plain", 0.5, 0.4, 0.6)], rate_name="responses")
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
