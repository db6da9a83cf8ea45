"""Components, densities and points in the latent space."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Normalize, PowerNorm, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from mixvae._tables import counted
from mixvae.figures._style import PALETTE, WIDTH, bare, heat, ink, scatter, wrapped

MOST_PRINTED = 12
"""Most components whose values are printed in the cells of a heat map."""


def overlap(kl: np.ndarray, share: np.ndarray, redundant: Collection[int] = ()) -> Figure:
    """Pairwise KL of components as a matrix, and the share of the posterior that each covers beside it.

    Args:
        kl: KL(q_i ‖ q_j) in nats, (S, S).
        share: share of each component, (S,).
        redundant: components to mark.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figure = figures.overlap(np.ones((3, 3)), np.array([0.5, 0.4, 0.1]), redundant=[2])
        >>> figure.axes[1].get_title(loc="left")
        'orange: redundant'
    """
    s = len(share)
    side = min(4.0, 1.8 + 0.4 * s)
    figure = Figure(figsize=(WIDTH, side), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    each = range(s)
    apart = kl.clip(0)
    pairs = [(i, j) for i, j in np.ndindex(s, s) if i != j]
    top = 10.0 ** max(1, math.ceil(math.log10(max(float(apart.max()), 1.0))))
    norm = SymLogNorm(1.0, vmin=0.0, vmax=top, base=10)
    shown = heat(matrix, apart, norm, {(i, j): f"{kl[i, j]:.2g}" for i, j in pairs} if s <= MOST_PRINTED else {})
    bar = figure.colorbar(shown, ax=matrix, location="top", aspect=14)
    ticks = [0.0, *(10.0**power for power in range(round(math.log10(top)) + 1))]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.set_label("KL(i ‖ j) (nats)")
    bar.ax.minorticks_off()
    matrix.set(xlabel="component j", ylabel="component i")
    for axis in (matrix.xaxis, matrix.yaxis):
        axis.set_major_locator(MaxNLocator(MOST_PRINTED, integer=True))
    colours = [PALETTE[1] if j in redundant else PALETTE[0] for j in each]
    bars.barh(each, 100 * share, color=colours, height=0.8)
    bars.axvline(100 / s, color="#888888", linewidth=1, linestyle="--")
    bars.set(
        xlim=(0, min(100.0, max(200 / s, 110 * float(share.max())))),
        xlabel="share of the\nposterior (%)\ndashed: equal",
    )
    if redundant:
        bars.set_title("orange: redundant", fontsize="medium", loc="left", color=ink(PALETTE[1]))
    bare(bars)
    range_ = (
        f"from {min(kl[p] for p in pairs):.2g} to {max(kl[p] for p in pairs):.2g} nats" if pairs else "of one alone"
    )
    shares = ", ".join(f"{part:.0%}" for part in share)
    idle = f" Redundant: {', '.join(map(str, sorted(redundant)))}." if redundant else ""
    figure.set_label(
        f"KL between {counted(s, 'component')} as a matrix, {range_}. Shares of the posterior: {shares}.{idle}"
    )
    return figure


@dataclass(frozen=True)
class Panel:
    """A density on a square of the plane, and what is drawn over it.

    Args:
        title: what it shows.
        density: values on a square grid, rows along the second coordinate.
        centre: middle of the square, (2,).
        span: half its width.
        gaussians: mean and standard deviation (S, 2) of Gaussians to draw as ellipses, or None to show the draws.
        draws: points (N, 2).
    """

    title: str
    density: np.ndarray
    centre: np.ndarray
    span: float
    gaussians: tuple[np.ndarray, np.ndarray] | None
    draws: np.ndarray


def planes(panels: Sequence[Panel], heading: str) -> Figure:
    """Densities on the plane, each overlaid with ellipses of Gaussians at two standard deviations, or with draws.

    Args:
        panels: what each panel shows.
        heading: title above all panels.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> gaussians = np.zeros((3, 2)), np.ones((3, 2))
        >>> panel = figures.Panel("digit 7", np.ones((21, 21)), np.zeros(2), 3.0, gaussians, np.zeros((0, 2)))
        >>> [axes.get_title(loc="left") for axes in figures.planes([panel, panel], "p(z|x)").axes]
        ['digit 7', 'digit 7', '']
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    same = all(panel.span == panels[0].span and (panel.centre == panels[0].centre).all() for panel in panels)
    width = WIDTH if columns == 2 else 3.6
    figure = Figure(figsize=(width, 2.6 * rows + 0.9), layout="constrained")
    figure.suptitle(wrapped(heading, width), fontsize="medium", x=0.01, ha="left")
    places = figure.subplots(rows, columns, squeeze=False, sharex=same, sharey=same)
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for i, (axes, panel) in enumerate(zip(places.flat, panels, strict=False)):
        (left, bottom), (right, top) = panel.centre - panel.span, panel.centre + panel.span
        shown = axes.imshow(
            panel.density / max(float(panel.density.max()), 1e-300), norm=norm, extent=(left, right, bottom, top),
            origin="lower", cmap="Greys", aspect="equal",
        )  # fmt: skip
        if panel.gaussians is None:
            axes.plot(*panel.draws.T, ".", color=PALETTE[1], markersize=2.5, alpha=0.6)
        else:
            for j, (mean, std) in enumerate(zip(*panel.gaussians, strict=True)):
                colour = PALETTE[j % len(PALETTE)]
                axes.add_patch(Ellipse(mean, *(4 * std), fill=False, edgecolor=colour, linewidth=1.3))
                axes.plot(*mean, ".", color=colour, markersize=3)
        axes.set_title(wrapped(panel.title, width / columns - 0.5), fontsize="medium", loc="left")
        axes.set(xlim=(left, right), ylim=(bottom, top), ylabel="" if i % columns else "z₂")
        axes.set_xlabel("z₁" if i + columns >= len(panels) else "")
        if i == len(panels) - 1:
            bar = figure.colorbar(shown, ax=places, location="bottom", aspect=30)
            bar.set_ticks([0, 0.1, 0.25, 0.5, 1], labels=["0", "0.1", "0.25", "0.5", "1"])
            bar.set_label("density / its maximum")
    for axes in places.flat[len(panels) :]:
        axes.axis("off")
    titles = "; ".join(" ".join(panel.title.split()) for panel in panels)
    figure.set_label(f"Densities on the plane. {' '.join(heading.split())} {titles}.")
    return figure


def spread(jsd: np.ndarray, kl_prior: np.ndarray) -> Figure:
    """Box plots over examples: the Jensen–Shannon divergence, and every component's KL to the prior.

    Args:
        jsd: nats, (N,).
        kl_prior: nats, (N, S).

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figures.spread(np.linspace(0, 1, 9), np.ones((9, 4))).axes[0].texts[0].get_text()
        'log 4 = 1.39'
    """
    s = kl_prior.shape[1]
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, min(3.0, max(1.6, 0.4 * s))))
    for axes, values, names in ((left, jsd[:, None], [""]), (right, kl_prior, [str(j) for j in range(s)])):
        boxes = axes.boxplot(values, tick_labels=names, widths=0.6, patch_artist=True, showfliers=False, whis=(5, 95))
        for box, median in zip(boxes["boxes"], boxes["medians"], strict=True):
            box.set(facecolor="#CFE3F0", edgecolor=PALETTE[0])
            median.set(color=PALETTE[1], linewidth=1.6)
        bare(axes)
    most = math.log(s)
    left.axhline(most, color="#888888", linewidth=1, linestyle="--")
    high = 1.15 * max(most, left.get_ylim()[1])
    left.annotate(f"log {s} = {most:.2f}", (0.5, most), xytext=(2, 3), textcoords="offset points")
    left.set(ylabel="JSD of the components (nats)", ylim=(min(0.0, left.get_ylim()[0]), high))
    right.set(xlabel="component", ylabel="KL to the prior (nats)", ylim=(min(0.0, right.get_ylim()[0]), None))
    figure.suptitle("boxes: quartiles over examples; whiskers: 5–95 %", fontsize="medium", x=0.01, ha="left")
    if s > 10:
        right.set_xticks(range(1, s + 1, math.ceil(s / 10)), [str(j) for j in range(0, s, math.ceil(s / 10))])
    medians = ", ".join(f"{value:.2f}" for value in np.median(kl_prior, axis=0))
    figure.set_label(
        f"Box plots over {counted(len(jsd), 'example')}. JSD of the components: median {np.median(jsd):.2f} nats of at "
        f"most {most:.2f}. KL to the prior, median by component: {medians} nats."
    )
    return figure


def classes(labels: np.ndarray, shares: np.ndarray) -> Figure:
    """Share of each class's posterior that each component covers, as a matrix.

    Args:
        labels: names of the classes, (C,).
        shares: shares, (C, S); each row sums to one.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figure = figures.classes(np.array([0, 1]), np.array([[0.75, 0.25], [0.5, 0.5]]))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['75%', '25%', '50%', '50%']
    """
    c, s = shares.shape
    figure = Figure(figsize=(WIDTH, min(8.0, 1.5 + 0.34 * c)), layout="constrained")
    axes = figure.subplots()
    printed = {(i, j): f"{shares[i, j]:.0%}" for i, j in np.ndindex(c, s)} if s <= MOST_PRINTED - 4 else {}
    shown = heat(axes, shares, Normalize(0.0, 1.0), printed)
    axes.set_yticks(range(c), [str(label) for label in labels])
    axes.set(xlabel="component", ylabel="label")
    axes.xaxis.set_major_locator(MaxNLocator(MOST_PRINTED, integer=True))
    figure.colorbar(shown, ax=axes, label="share of the label's posterior", ticks=(0, 0.25, 0.5, 0.75, 1))
    largest = zip(labels, shares.argmax(1), shares.max(1), strict=True)
    most = ", ".join(f"{label} component {j} ({share:.0%})" for label, j, share in largest)
    figure.set_label(f"Share of each label's posterior by component, as a matrix. Largest by label: {most}.")
    return figure


def latent_means(means: np.ndarray, labels: np.ndarray | None) -> Figure:
    """Posterior means of all components in the plane of their two largest principal components.

    Args:
        means: mean of every component, (N, S, D).
        labels: class of every example (N,), if there are any.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figure = figures.latent_means(np.random.default_rng(0).normal(size=(10, 3, 2)), np.arange(10) % 2)
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ["every component's mean", 'mean over the components']
    """
    examples, components, _ = means.shape
    plane, share = principal_plane(means.reshape(examples * components, -1))
    plane = plane.reshape(examples, components, -1)
    names = ["every component's mean"] + (["mean over the components"] if labels is not None else [])
    figure = Figure(figsize=(WIDTH, 3.3 * len(names)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True, sharey=True))
    scatter(panels[0], [(str(s), plane[:, s]) for s in range(components)], "component")
    if labels is not None:
        overall = plane.mean(1)
        scatter(panels[1], [(str(c), overall[labels == c]) for c in np.unique(labels)], "label")
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, fontsize="medium", loc="left")
        panel.set_ylabel(f"2nd principal component ({share[1]:.0%})")
        bare(panel)
    panels[-1].set_xlabel(f"1st principal component ({share[0]:.0%})")
    by = "by component" + (", and their mean over components by label" if labels is not None else "")
    figure.set_label(
        f"Posterior means of {counted(examples, 'example')} in the plane of their first two principal components "
        f"({share[0]:.0%} and {share[1]:.0%} of the variance): {by}."
    )
    return figure


def embedding(points: np.ndarray, labels: Mapping[str, np.ndarray], axis: str) -> Figure:
    """Points in the plane, one panel per labelling.

    Args:
        points: (N, 2).
        labels: labels of the points (N,) by their meaning.
        axis: name of the axes, such as UMAP.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figure = figures.embedding(np.zeros((4, 2)), {"batch": np.array(list("abab"))}, "UMAP")
        >>> figure.axes[0].get_xlabel()
        'UMAP 1'
    """
    figure = Figure(figsize=(WIDTH, 3.6 * len(labels)), layout="constrained")
    for panel, (title, values) in zip(np.atleast_1d(figure.subplots(len(labels), 1)), labels.items(), strict=True):
        scatter(panel, [(str(value), points[values == value]) for value in np.unique(values)], "")
        panel.set_title(wrapped(title, WIDTH - 0.5), fontsize="medium", loc="left")
        panel.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[])
        bare(panel)
    figure.set_label(f"{axis} of {counted(len(points), 'example')}, coloured by {' and by '.join(labels)}.")
    return figure


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of points in the plane that holds most of their variance, and the share along each axis.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> plane, share = figures.principal_plane(np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 0]]))
        >>> plane.shape, share.tolist()
        ((3, 2), [1.0, 0.0])
    """
    centred = points - points.mean(0)
    if centred.shape[1] == 1:
        centred = np.concatenate([centred, np.zeros_like(centred)], 1)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    share = scale**2 / max((scale**2).sum(), 1e-12)
    return centred @ axes[:2].T, share[:2]
