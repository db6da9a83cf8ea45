"""What figures show: honest ranges, everything or a word on what is cut off, text that can be read."""

import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mixvae import figures
from mixvae.figures._style import AA, OPACITY, PALETTE, contrast, ink

SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""How linear RGB is seen: Machado et al. (2009), severity 1, https://doi.org/10.1109/TVCG.2009.113."""


def rows(*validation, **columns):
    """Epochs with a validation bound and further columns."""
    return [
        {"epoch": i + 1, "validation": value, **{name: values[i] for name, values in columns.items()}}
        for i, value in enumerate(validation)
    ]


def texts(figure):
    """All words in the axes of a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_shares_of_44_and_56_percent_look_alike():
    """Colours went from zero to the largest share, and so 44 % was as far from 56 % as nothing from everything."""
    figure = figures.classes(np.arange(2), np.array([[0.44, 0.56], [0.5, 0.5]]))
    matrix, bar = figure.axes
    (image,) = matrix.images
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    assert bar.get_ylabel() == "share of the label's posterior"
    assert texts(figure) == ["44%", "56%", "50%", "50%"]


@pytest.mark.parametrize(("kl", "top"), [(0.02, 10), (7.0, 10), (11.0, 100), (3000.0, 10000)])
def test_kl_is_coloured_from_zero_whatever_its_range(kl, top):
    """Colours went from the smallest KL to the largest, and so 0.81 and 0.92 nats were the two ends of the scale."""
    values = np.array([[0, kl], [kl / 2, -0.001]])
    figure = figures.overlap(values, np.array([0.5, 0.5]))
    (image,) = figure.axes[0].images
    assert (image.norm.vmin, image.norm.vmax) == (0, top)
    assert np.asarray(image.get_array()).min() == 0, "an estimate below zero is shown as zero"
    assert figure.axes[2].get_xlabel() == "KL(i ‖ j) (nats)"


def test_every_heat_map_has_a_colour_bar():
    """Densities on the plane had none, nor had a matrix with printed values."""
    panel = figures.Panel("a", np.array([[0.0, 4.0], [2.0, 1.0]]), np.zeros(2), 3.0, None, np.zeros((0, 2)))
    for figure in (
        figures.classes(np.arange(2), np.full((2, 20), 0.05)),
        figures.overlap(np.ones((20, 20)), np.full(20, 0.05)),
        figures.planes([panel] * 3, "p(z|x)"),
    ):
        figure.canvas.draw()
        images = [image for axes in figure.axes for image in axes.images]
        assert len([axes for axes in figure.axes if axes.get_label() == "<colorbar>"]) == 1
        assert all(image.norm.vmin == 0 for image in images)
        assert not texts(figure)
    assert np.asarray(images[0].get_array()).tolist() == [[0, 1], [0.5, 0.25]]


def test_a_run_of_two_epochs_shows_both_points():
    """The first lay above the axis, which ended at the 90 % quantile."""
    (axes, *_) = figures.learning_curves({"S = 2": rows(-500.0, -90.0, bound=(-700.0, -95.0))}).axes
    low, high = axes.get_ylim()
    assert low < 90 < 500 < 700 < high
    assert axes.lines[0].get_marker() == "."
    assert not any("cut off" in text.get_text() for text in axes.texts)


def test_a_curve_that_is_cut_off_says_so():
    """Early epochs vanished beyond the top without a word."""
    late = -np.linspace(100, 99, 40)
    figure = figures.learning_curves({"S = 2": rows(-5000.0, -900.0, *late), "S = 4": rows(-4000.0, *late)})
    assert figure.axes[0].get_ylim()[1] < 200
    assert "↑ cut off: 2 epochs, up to 5000.0 nats" in texts(figure)
    assert "which cuts off 2 epochs, up to 5000.0 nats" in figure.get_label()
    whole = figures.learning_curves({"S = 2": rows(*-np.linspace(102, 99, 40))})
    assert not any("cut off" in text for text in texts(whole))


def test_long_names_leave_room_for_the_curves_and_gains():
    """Beside the ends of lines and bars they took more than half of the width."""
    name = "a-name-of-a-run-as-long-as-any and 1 more"
    figure = figures.learning_curves({name: rows(-60.0, -50.0), "b": rows(-61.0, -52.0)})
    (_, named) = figure.legends
    assert [text.get_text() for text in named.get_texts()] == [name, "b"]
    assert texts(figure) == []
    gains = figures.gains([(name, 1.0, 0.1), ("S = 2 (not tight;\nbar unreliable)", 2.0, 0.1)], "gain (nats)")
    for drawn in (figure, gains):
        drawn.canvas.draw()
        assert drawn.axes[0].get_position().width > 0.5
    assert gains.axes[0].get_yticklabels()[1].get_text() == "S\u00a0=\u00a02 (not tight;\nbar unreliable)"


@pytest.mark.parametrize(
    "values",
    [[(-0.171, 0.165), (0.226, 0.11), (-0.681, 0.052), (0.124, 0.057)], [(1.0, math.nan)], [(-3.0, 0.001), (3.0, 9.0)]],
)
def test_labels_of_gains_stay_within_the_axes(values):
    """That of the largest loss lay over the names of the rows."""
    rows = [(f"pooled S = {i} over pooled S = 1", *value) for i, value in enumerate(values)]
    figure = figures.gains(rows, "gain in log p(x) over the baseline (nats)", decided=[True] * len(rows))
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_window_extent().intervalx
    for text in axes.texts:
        left, right = text.get_window_extent().intervalx
        assert low <= left, text.get_text()
        assert right <= high, text.get_text()


def test_training_is_drawn_where_its_bound_is_one():
    """Under β < 1 what is maximised is no bound, and lies below any."""
    beta = (0.25, 0.5, 0.75, 1.0, 1.0)
    epochs = rows(-60.0, -55.0, -52.0, -51.0, -50.5, bound=(-30.0, -40.0, -45.0, -49.0, -48.5), beta=beta)
    figure = figures.learning_curves({"S = 2": epochs})
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [60, 55, 52, 51, 50.5]
    assert axes.lines[1].get_ydata()[3:].tolist() == [49, 48.5]
    assert np.isnan(axes.lines[1].get_ydata()[:3]).all()
    assert "warm-up, β < 1, to epoch 3" in texts(figure)


def test_columns_that_only_some_rows_have_are_drawn_there():
    old, new = rows(-60.0, -55.0), rows(-60.0, -55.0, kl=(3.0, 4.0), gradient_norm=(None, 2.0))
    figure = figures.learning_curves({"old": old, "new": new, "none yet": []})
    assert [axes.get_ylabel() for axes in figure.axes] == ["−bound (nats)", "KL (nats)", "gradient norm"]
    assert figure.axes[1].lines[1].get_ydata().tolist() == [3, 4]
    assert figure.axes[2].get_yscale() == "log"
    figures.png(figure, dpi=20)
    assert len(figures.learning_curves({}).axes) == 1


def test_the_kept_epoch_is_marked_where_training_stopped_early():
    figure = figures.learning_curves({"S = 2": rows(-60.0, -50.0, -55.0, -56.0)})
    kept = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert (kept.get_xdata()[0], kept.get_ydata()[0]) == (2, 50)
    assert "best 50.00 at epoch 2 of 4" in figure.get_label()


def test_text_in_cells_and_at_lines_can_be_read():
    assert contrast("black") == pytest.approx(21)
    assert contrast("#777777") == pytest.approx(4.48, abs=0.005)  # the known case just below AA
    assert all(contrast(ink(colour)) >= AA for colour in PALETTE)
    assert ink("#0072B2") == pytest.approx((0, 0x72 / 255, 0xB2 / 255)), "a colour that is dark enough stays"
    values = np.linspace(0, 1, 12).reshape(2, 6)
    axes = figures.classes(np.arange(2), values).axes[0]
    (image,) = axes.images
    for text, value in zip(axes.texts, values.flat, strict=True):
        assert contrast(text.get_color(), image.cmap(image.norm(value))[:3]) >= AA


def on_paper(colours):
    """RGB of points in these colours, as drawn."""
    return 1 - OPACITY * (1 - np.array([to_rgb(colour) for colour in colours]))


def in_the_dark(drawn):
    """The same as a page shows it in the dark: invert(1) hue-rotate(180deg), and screen on its background."""
    turn = [[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]]
    return 1 - (1 - ((1 - drawn) @ np.array(turn).T).clip(0, 1)) * (1 - np.array([13, 17, 23]) / 255)


def lab(drawn, sight):
    """CIE L*a*b* (D65) of colours as somebody sees them, (N, 3)."""
    linear = np.where(drawn <= 0.04045, drawn / 12.92, ((drawn + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SIGHTS[sight]).T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(seen @ to_xyz.T / to_xyz.sum(1)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize(
    ("sight", "light", "dark"),
    [("normal", 25, 20), ("protanopia", 15, 13), ("deuteranopia", 11, 11), ("tritanopia", 12, 10)],
)
def test_ten_labels_have_ten_colours_apart(sight, light, dark):
    """Two blues, two greys and two yellows: 4 and 8 were 2.1 apart in protanopia, and 12.6 in normal sight."""
    means = np.random.default_rng(0).normal(size=(40, 2, 2))
    drawn = figures.latent_means(means, np.arange(40) % 10).axes[1].collections
    colours = on_paper([each.get_facecolor()[0, :3] for each in drawn])
    assert len(colours) == 10
    assert {each.get_alpha() for each in drawn} == {OPACITY}
    for shown, paper, apart in (
        (colours, np.ones((1, 3)), light),
        (in_the_dark(colours), in_the_dark(np.ones((1, 3))), dark),
    ):
        seen = lab(shown, sight)
        assert np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(10, 1)].min() > apart
        assert np.linalg.norm(seen - lab(paper, sight), axis=-1).min() > 24, "all can be seen on the page"


def test_few_points_are_drawn_large_and_many_small():
    sizes = []
    for n in (5, 500, 2000):
        axes = figures.embedding(np.zeros((n, 2)), {"batch": np.arange(n) % 2}, "UMAP").axes[0]
        sizes.append({float(size) for each in axes.collections for size in each.get_sizes()})
    assert all(len(size) == 1 for size in sizes)
    few, some, many = (size.pop() for size in sizes)
    assert (few, some, many) == (36, 18, 9)


def test_every_picture_says_what_is_seen_and_of_what_kind_it_is():
    panel = figures.Panel("a", np.ones((2, 2)), np.zeros(2), 3.0, None, np.zeros((0, 2)))
    squares = np.zeros((6, 1, 4, 4))
    drawn = {
        "0.500 ± 0.100": figures.gains([("S = 2", 0.5, 0.1)], "gain (nats)"),
        "ΔELBO +1.000 ± 0.020, Δ log p(x) +0.600": figures.splits(
            {"S = 2": [(1, 0.02), (0.6, np.nan), (0.4, 0)]}, "se"
        ),
        "best 48.00 at epoch 1": figures.learning_curves({"S = 2": rows(-48.0)}),
        "Shares of the posterior: 90%, 10%": figures.overlap(np.ones((2, 2)), np.array([0.9, 0.1]), [1]),
        "7 component 1 (75%)": figures.classes(np.array([7]), np.array([[0.25, 0.75]])),
        "median 0.20 nats of at most 0.69": figures.spread(np.full(3, 0.2), np.ones((3, 2))),
        "5 examples": figures.latent_means(np.random.default_rng(0).normal(size=(5, 2, 2)), None),
        "coloured by batch": figures.embedding(np.zeros((2, 2)), {"batch": np.array(["a", "b"])}, "UMAP"),
        "p(z|x) a": figures.planes([panel], "p(z|x)"),
        "6 pictures": figures.images(squares),
        "component 0, 1": figures.reconstructions(squares, np.zeros((2, 6, 1, 4, 4))),
        "mean 55.00": figures.likelihoods(np.array([-50.0, -60.0]), np.array([0.3, 0.9]), 0.7),
        "GPU ×1.5 at 2": figures.scaling({"GPU": [(1, 1.0), (2, 1.5)]}, "S", "cost"),
        "not kept": figures.growth([{"components": 2, "gain": 0.5, "gain_se": 0.1, "accepted": False}]),
        "KNN 0.92": figures.scores({"means": {"knn": [0.9, 0.94]}}, "accuracy"),
    }
    for words, figure in drawn.items():
        assert words in figure.get_label()
    for words, kind in (("6 pictures", figures.PHOTOGRAPH), ("0.500 ± 0.100", figures.PLOT)):
        held = Image.open(io.BytesIO(figures.png(drawn[words], dpi=20))).info
        assert held["Description"] == drawn[words].get_label()
        assert held["Comment"] == kind
