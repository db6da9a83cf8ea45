"""Pictures of a run's latents, drawn once for its weights and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixvae import figures, runs
from mixvae.files import commit, read_manifest, read_part
from mixvae.progress import Progress

NAMES = ("latent means", "t-SNE", "components", "spread", "classes")
SHOWN = 1000
"""Maximum number of examples drawn."""


def latent_pictures(run: runs.Run, progress: Progress) -> dict[str, bytes]:
    """Principal components, t-SNE, and how components cooperate, as PNG by name.

    Stored pictures for the same weights and data are read. For a legacy run these are the pictures that it came with.

    Args:
        run: the run.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.
    """
    if run.is_legacy:
        paths = {name: run.layout.figures / f"{_file(name)}.png" for name in NAMES}
        return {name: path.read_bytes() for name, path in paths.items() if path.exists()}
    identity = {"weights": run.weights_sha256, "data": run.recipe.identity["data"], "examples": SHOWN}
    manifest = run.layout.figures / "latents.json"
    stored = _stored(manifest, identity)
    if stored is not None:
        return stored
    progress.announce(f"{run.path.name}: drawing latents")
    drawn = {name: figures.png(figure) for name, figure in _draw(run).items()}
    parts = {name: (f"{_file(name)}.png", picture) for name, picture in drawn.items()}
    commit(manifest, {"identity": identity}, parts)
    return drawn


def _stored(manifest: Path, identity: dict[str, Any]) -> dict[str, bytes] | None:
    """Pictures stored under an identity, if they are intact."""
    try:
        content = read_manifest(manifest)
        if content["identity"] != identity:
            return None
        return {name: read_part(manifest, name)[1] for name in content["files"]}
    except (OSError, ValueError):
        return None


def _file(name: str) -> str:
    return name.replace(" ", "_")


def _draw(run: runs.Run) -> dict[str, Figure]:
    """Draw all pictures."""
    from sklearn.manifold import TSNE

    features = runs.encode_split(run, examples=SHOWN)
    mean, labels = features["mean"], features["labels"]
    drawn = {"latent means": figures.latent_means(mean, labels)}
    points = TSNE(2, random_state=0).fit_transform(mean.reshape(len(mean), -1))
    drawn["t-SNE"] = figures.embedding(points, {"means of all components, by label": labels}, "t-SNE")
    if mean.shape[1] > 1:
        drawn |= runs.cooperation(run)[1]
    return drawn
