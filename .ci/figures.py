"""Draw docs/images/when.png, where gains of several encoders come from, from the results in docs/data.

    python .ci/figures.py

Every row is a contrast at equal draws per step: the gain of the ELBO, and its parts.
"""

from __future__ import annotations

from pathlib import Path

from tables import DATA, found_in

from mixvae import figures
from mixvae.files import write_bytes
from mixvae.reports import PARTS
from mixvae.reproduce import Findings
from mixvae.reproduce.contrasts import Key, named

SHOWN: dict[str, tuple[str, Key, Key]] = {
    "Digits 8×8, S = 4": ("digits", ("elbo", 4), ("elbo", 1)),
    "Digits 8×8, S = 8": ("digits", ("elbo", 8), ("elbo", 1)),
    "FashionMNIST, fully connected, S = 4": ("fair", ("elbo", 4), ("elbo", 1)),
    "FashionMNIST, VampPrior, S = 4": ("vampprior", ("vamp", 4), ("vamp", 1)),
    "FashionMNIST 14×14, PixelCNN, S = 4": ("pixelcnn", ("conv", 4), ("conv", 1)),
    "CORTEX, S = 3": ("cortex", ("mixture", 3), ("mixture, 3 draws", 1)),
    "CORTEX, S = 5": ("cortex", ("mixture", 5), ("mixture, 5 draws", 1)),
}
"""Folder, several encoders, and one with as many draws, by the name of the row."""
METRICS = ("elbo", "log_px", "posterior")


def parts(found: Findings, new: Key, old: Key) -> list[tuple[float, float]]:
    """Gain of the ELBO, of log p(x) and of the posterior, each with its margin."""
    for row in found.table:
        if (row["model"], row["size"]) == new and row.get("over") == named(old):
            return [(row[f"gain_{part}"], row[f"gain_{part}_margin"]) for part in PARTS]
    contrasts = {row["metric"]: row for row in found.contrasts if row["contrast"] == f"{named(new)} over {named(old)}"}
    return [(contrasts[metric]["difference"], contrasts[metric]["margin"]) for metric in METRICS]


def main() -> None:
    """Draw the rows whose results are there."""
    there = {name: asked for name, asked in SHOWN.items() if (DATA / asked[0]).is_dir()}
    found = {folder: found_in(DATA / folder) for folder in dict.fromkeys(folder for folder, _, _ in there.values())}
    rows = {name: parts(found[folder], new, old) for name, (folder, new, old) in there.items()}
    figure = figures.splits(rows, "95 % intervals between trainings")
    write_bytes(Path(DATA.parent) / "images" / "when.png", figures.png(figure))
    print(figure.get_label())


if __name__ == "__main__":
    main()
