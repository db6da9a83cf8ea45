"""Draw docs/images/when.png and when_cells.png, where gains of several encoders come from, from docs/data.

    python .ci/figures.py

The first two rows are contrasts with one draw per step, all others at equal draws: the gain of the ELBO, and its parts.
"""

from __future__ import annotations

from tables import DATA, found_in

from mixvae import figures
from mixvae._tables import Row
from mixvae.files import write_bytes
from mixvae.reproduce import Findings
from mixvae.reproduce.contrasts import Key, named

ONE_DRAW = ("elbo (1 draw of each)", 1)
IMAGES: dict[str, tuple[str, Key, Key]] = {
    "Four draws over one: digits, S = 4": ("draws", ("elbo (1 draw of each)", 4), ONE_DRAW),
    "Four draws over one: digits, S = 1": ("draws", ("elbo (4 draws of each)", 1), ONE_DRAW),
    "Digits, S = 2": ("digits", ("elbo", 2), ("elbo", 1)),
    "Digits, S = 4": ("digits", ("elbo", 4), ("elbo", 1)),
    "Digits, S = 8": ("digits", ("elbo", 8), ("elbo", 1)),
    "Digits, sticking the landing, S = 4": (
        "ways", ("sticking the landing", 4), ("sticking the landing", 1)
    ),
    "Digits, two latents, S = 4": ("places", ("latent 2", 4), ("latent 2", 1)),
    "Rotated digits, S = 4": ("places", ("rotated", 4), ("rotated", 1)),
    "Half-hidden digits, S = 4": ("places", ("occluded", 4), ("occluded", 1)),
    "100 digits, S = 4": ("places", ("100 examples", 4), ("100 examples", 1)),
    "FashionMNIST, S = 4": ("fair", ("elbo", 4), ("elbo", 1)),
    "FashionMNIST, 300 epochs, S = 4": ("convergence", ("vanilla", 4), ("vanilla", 1)),
    "FashionMNIST, sticking the landing, S = 4": (
        "fashion_ways", ("sticking the landing", 4), ("sticking the landing", 1)
    ),
    "FashionMNIST, VampPrior, S = 4": ("vampprior", ("vamp", 4), ("vamp", 1)),
    "FashionMNIST, 14×14, PixelCNN, S = 4": ("pixelcnn", ("conv", 4), ("conv", 1)),
    "FashionMNIST, 14×14, composite, S = 2": ("pixelcnn", ("composite", 2), ("composite", 1)),
}  # fmt: skip
CELLS: dict[str, tuple[str, Key, Key]] = {
    "CORTEX, S = 3": ("cortex_equal", ("mixture", 3), ("mixture, 3 draws", 1)),
    "CORTEX, S = 5": ("cortex_equal", ("mixture", 5), ("mixture, 5 draws", 1)),
    "CORTEX, no BatchNorm, S = 3": ("cortex_equal", ("nobatchnorm", 3), ("nobatchnorm, 3 draws", 1)),
}  # fmt: skip
SHOWN = {"when": IMAGES, "when_cells": CELLS}
"""Folder, and what is compared with what, by the name of the row and of the picture."""
GAINS = ("gain_elbo", "gain", "gain_posterior")
METRICS = ("elbo", "log_px", "posterior")
"""Names of the gain of the ELBO and its parts, in tables and among contrasts."""


def row_of(found: Findings, new: Key, old: Key) -> Row:
    """The row of a variant whose gain is over another; empty if its gain is over some third one."""
    asked = (*new, named(old))
    return next((row for row in found.table if (row["model"], row["size"], row.get("over")) == asked), {})


def contrasts_of(found: Findings, new: Key, old: Key) -> dict[str, Row]:
    """Contrasts of two variants, by metric."""
    name = f"{named(new)} over {named(old)}"
    return {str(row["metric"]): row for row in found.contrasts if row["contrast"] == name}


def parts(found: Findings, new: Key, old: Key) -> list[tuple[float, float]]:
    """Gain of the ELBO, of log p(x) and of the posterior, each with its margin."""
    if row := row_of(found, new, old):
        return [(row[gain], row[f"{gain}_margin"]) for gain in GAINS]
    contrasts = contrasts_of(found, new, old)
    return [(contrasts[metric]["difference"], contrasts[metric]["margin"]) for metric in METRICS]


def mark(found: Findings, new: Key, old: Key) -> str:
    """An asterisk if log p(x) of a variant, or of its baseline, is not known to be tight."""
    row = row_of(found, new, old)
    tight = row.get("gain_tight") if row else contrasts_of(found, new, old)["log_px"].get("difference_tight")
    return "" if tight is True else " *"


def main() -> None:
    """Draw the rows whose results are there."""
    folders = dict.fromkeys(folder for rows in SHOWN.values() for folder, _, _ in rows.values())
    if missing := [folder for folder in folders if not (DATA / folder).is_dir()]:
        print(f"left out, as their results are not there: {', '.join(missing)}")
    found = {folder: found_in(DATA / folder) for folder in folders if folder not in missing}
    for picture, rows in SHOWN.items():
        split = {
            name + mark(found[folder], new, old): parts(found[folder], new, old)
            for name, (folder, new, old) in rows.items()
            if folder in found
        }
        figure = figures.splits(
            split, "95 % intervals between trainings; * log p(x) not tight", "gain over one encoder"
        )
        write_bytes(DATA.parent / "images" / f"{picture}.png", figures.png(figure))
        print(figure.get_label())


if __name__ == "__main__":
    main()
