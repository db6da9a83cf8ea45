"""Make the pictures of docs/gallery.md by the commands that the page shows, into docs/images/gallery.

    OMP_NUM_THREADS=1 python benchmarks/gallery.py                   # eleven minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/gallery.py PixelCNN Flow     # some of them

Trainings are runs in runs/gallery: what is interrupted is resumed, what is finished is not repeated.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
LARGEST = 60_000
"""Bytes of a picture."""


@dataclass(frozen=True)
class Section:
    """A section of the page: its title, its picture, and the code below it."""

    title: str
    picture: Path
    language: str
    code: str


def sections(page: str) -> list[Section]:
    """The sections of the page that have a picture."""
    found = re.findall(r"^## (.*?)\n.*?!\[.*?\]\((.*?)\)\n\n```(sh|python)\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    return [Section(title, PAGE.parent / picture, language, code) for title, picture, language, code in found]


def make(section: Section) -> Path:
    """Run the code of a section in the current folder; the picture that it makes."""
    if section.language == "python":
        exec(compile(section.code, section.title, "exec"), {"__name__": "__main__"})
    else:
        from mixvae import cli

        for line in section.code.splitlines():
            _, *words = shlex.split(line)
            run = words[words.index("--out") + 1] if words[0] == "train" else None
            cli.main(["train", "--resume", run] if run is not None and Path(run, "run.json").exists() else words)
    return max(Path().rglob(section.picture.name), key=lambda path: path.stat().st_mtime)


def shrunk(picture: Path) -> bytes:
    """The picture as a PNG: without colour if it has none, of fewer colours and smaller only if it must be."""
    image = Image.open(picture).convert("RGB")
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red
    for scale, colours in ((1, None), (1, 256), (0.8, 256), (0.65, 256), (0.65, 128)):
        size, buffer = (round(image.width * scale), round(image.height * scale)), io.BytesIO()
        smaller = image.resize(size, Image.Resampling.LANCZOS)
        if colours is not None:  # dithering would tint the greys
            smaller = smaller.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        smaller.save(buffer, "png", optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
    raise ValueError(f"{picture} is larger than {LARGEST} bytes, however few its colours: show less")


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("titles", nargs="*", help="sections to make; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gallery")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    os.chdir(chosen.out)
    for section in sections(PAGE.read_text()):
        if chosen.titles and section.title not in chosen.titles:
            continue
        start = time.process_time()
        made = make(section)
        section.picture.parent.mkdir(parents=True, exist_ok=True)
        section.picture.write_bytes(shrunk(made))
        print(f"{section.title}: {section.picture.name}, {time.process_time() - start:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
