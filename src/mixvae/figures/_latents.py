"""Components, densities and points in the latent space."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from mixvae.figures._style import PALETTE, bare, scatter


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
    side = min(7.0, 2.4 + 0.35 * s)
    figure = Figure(figsize=(side + 3.2, side), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(side, 2.4), sharey=True)
    apart = np.ma.masked_array(np.log10(kl.clip(1e-3)), np.eye(s, dtype=bool))  # no component is apart from itself
    shown = matrix.imshow(apart, cmap="cividis", aspect="auto")
    matrix.set(xlabel="component j", ylabel="component i")
    matrix.set_title("KL(i ‖ j) in nats", fontsize=10, loc="left")
    if s <= 12:
        light = apart > (apart.min() + apart.max()) / 2
        for i, j in np.ndindex(s, s):
            if i != j:
                ink = "black" if light[i, j] else "white"
                matrix.text(j, i, f"{kl[i, j]:.3g}", ha="center", va="center", fontsize=8, color=ink)
        matrix.set_xticks(range(s))
        matrix.set_yticks(range(s))
    else:
        bar = figure.colorbar(shown, ax=matrix, location="top", shrink=0.5)
        ticks = [t for t in bar.get_ticks() if t == round(t)]
        bar.set_ticks(ticks, labels=[f"{10.0**t:g}" for t in ticks])
        bar.set_label("KL (nats)")
    colours = [PALETTE[1] if j in redundant else PALETTE[0] for j in range(s)]
    bars.barh(range(s), 100 * share, color=colours, height=0.8)
    bars.axvline(100 / s, color="#888888", linewidth=1, linestyle="--")
    bars.set_xlabel("share of the posterior (%)\ndashed: equal shares")
    if redundant:
        bars.set_title("orange: redundant", fontsize=10, loc="left", color=PALETTE[1])
    bars.spines[["top", "right"]].set_visible(False)
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
        >>> len(figures.planes([panel, panel], "p(z|x)").axes)
        2
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    same = all(panel.span == panels[0].span and (panel.centre == panels[0].centre).all() for panel in panels)
    figure = Figure(figsize=(2.7 * columns, 2.85 * rows + 0.3), layout="constrained")
    figure.suptitle(heading, fontsize=11, x=0.01, ha="left")
    places = figure.subplots(rows, columns, squeeze=False, sharex=same, sharey=same).flat
    for axes, panel in zip(places, panels, strict=False):
        (left, bottom), (right, top) = panel.centre - panel.span, panel.centre + panel.span
        axes.imshow(
            panel.density**0.5, extent=(left, right, bottom, top), origin="lower", cmap="Greys", aspect="equal"
        )  # fmt: skip
        if panel.gaussians is None:
            axes.plot(*panel.draws.T, ".", color=PALETTE[1], markersize=2.5, alpha=0.6)
        else:
            for j, (mean, std) in enumerate(zip(*panel.gaussians, strict=True)):
                colour = PALETTE[j % len(PALETTE)]
                axes.add_patch(Ellipse(mean, *(4 * std), fill=False, edgecolor=colour, linewidth=1.3))
                axes.plot(*mean, ".", color=colour, markersize=3)
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.axis("off")
    figure.supxlabel("z₁", fontsize=9)
    figure.supylabel("z₂", fontsize=9)
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
    figure = Figure(figsize=(min(9.0, 3.6 + 0.45 * s), 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, max(1.6, 0.4 * s)))
    for axes, values, names in ((left, jsd[:, None], [""]), (right, kl_prior, [str(j) for j in range(s)])):
        boxes = axes.boxplot(values, tick_labels=names, widths=0.6, patch_artist=True, showfliers=False, whis=(5, 95))
        for box, median in zip(boxes["boxes"], boxes["medians"], strict=True):
            box.set(facecolor="#CFE3F0", edgecolor=PALETTE[0])
            median.set(color=PALETTE[1], linewidth=1.6)
        bare(axes)
    most = math.log(s)
    left.axhline(most, color="#888888", linewidth=1, linestyle="--")
    left.annotate(f"log {s} = {most:.2f}", (0.5, most), xytext=(2, 3), textcoords="offset points", fontsize=8)
    left.set(ylabel="JSD of the components (nats)", ylim=(min(0.0, left.get_ylim()[0]), None))
    right.set(xlabel="component", ylabel="KL to the prior (nats)")
    left.set_title("box: quartiles; whiskers: 5–95 %", fontsize=8, loc="left")
    if s > 20:
        right.set_xticks(range(1, s + 1, math.ceil(s / 20)), [str(j) for j in range(0, s, math.ceil(s / 20))])
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
    figure = Figure(figsize=(min(8.0, 2.2 + 0.5 * s), min(8.0, 1.2 + 0.32 * c)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(100 * shares, cmap="cividis", aspect="auto", vmin=0)
    axes.set_yticks(range(c), [str(label) for label in labels], fontsize=8)
    axes.set(xlabel="component", ylabel="label")
    if s <= 12:
        for i, j in np.ndindex(c, s):
            ink = "black" if shares[i, j] > shares.max() / 2 else "white"
            axes.text(j, i, f"{shares[i, j]:.0%}", ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(s))
    else:
        figure.colorbar(shown, ax=axes, label="share of the posterior (%)")
    axes.set_title("share of each label's posterior", fontsize=10, loc="left")
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
        ["every component's mean", "the mixture's mean"]
    """
    examples, components, _ = means.shape
    plane, share = principal_plane(means.reshape(examples * components, -1))
    plane = plane.reshape(examples, components, -1)
    names = ["every component's mean"] + (["the mixture's mean"] if labels is not None else [])
    figure = Figure(figsize=(4.3 * len(names), 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharex=True, sharey=True))
    scatter(panels[0], [(str(s), plane[:, s]) for s in range(components)], "component")
    if labels is not None:
        overall = plane.mean(1)
        scatter(panels[1], [(str(c), overall[labels == c]) for c in np.unique(labels)], "label")
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, fontsize=10, loc="left")
        panel.set_xlabel(f"first principal component ({share[0]:.0%})")
        bare(panel)
    panels[0].set_ylabel(f"second principal component ({share[1]:.0%})")
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
    figure = Figure(figsize=(5.2 * len(labels), 3.8), layout="constrained")
    for panel, (title, values) in zip(np.atleast_1d(figure.subplots(1, len(labels))), labels.items(), strict=True):
        scatter(panel, [(str(value), points[values == value]) for value in np.unique(values)], "")
        panel.set_title(title, fontsize=10, loc="left")
        panel.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[])
        bare(panel)
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
