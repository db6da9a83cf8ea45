"""The notebooks run from their first cell to the last, and show their pictures."""

import base64
import io
import re
import runpy
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parent.parent / "notebooks"
PICTURES = {"a_mixture_of_your_encoder": 5, "which_posterior_is_better": 7, "cells": 4}


def executed(path, folder, monkeypatch):
    """The notebook with its outputs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Jupyter's own packages
        notebook = jupytext.read(path)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_the_tutorial_notebook_runs_and_shows_its_pictures(name, tmp_path, monkeypatch):
    notebook = executed(FOLDER / f"{name}.py", tmp_path, monkeypatch)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name]
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert pixels.std() > 10, "not blank"
    figures = [output["data"] for output in outputs if "<Figure" in output.get("data", {}).get("text/plain", "")]
    assert all("image/png" in data for data in figures), "a figure is drawn, not named"


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PICTURES)


def test_no_measurement_in_a_notebooks_text():
    for path in FOLDER.glob("*.py"):
        for cell in jupytext.read(path).cells:
            if cell.cell_type == "markdown":
                measured = re.findall(r"\d+\.\d+ nats|±|\bNLL \d", cell.source.replace("at most 0.01 nats", ""))
                assert not measured, f"{path.name}: {cell.source}"


def test_every_picture_of_the_gallery_has_its_commands():
    from mixvae import cli

    gallery = runpy.run_path(str(FOLDER.parent / "benchmarks" / "gallery.py"))
    page = gallery["PAGE"].read_text()
    sections = gallery["sections"](page)
    assert len(sections) == page.count("](images/gallery/") == page.count("\n## ")
    assert {section.picture for section in sections} == set((FOLDER.parent / "docs/images/gallery").glob("*"))
    for section in sections:
        assert section.picture.stat().st_size <= gallery["LARGEST"]
        if section.language == "python":
            compile(section.code, section.title, "exec")
            continue
        for line in section.code.splitlines():
            program, *words = shlex.split(line)
            assert program == "mixvae"
            assert words[0] in cli.COMMANDS
