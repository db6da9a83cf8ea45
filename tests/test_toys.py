"""Targets on the plane: the bound against quadrature, and what is refused."""

import math
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixvae.cli import main
from mixvae.files import commit, read_json, read_part, write_json
from mixvae.toys import approximate, bigaussian, compare, quadrature, ring


def narrow(z):
    """Unnormalised Gaussian of standard deviation 0.3 around (0.5, −0.2), times 7."""
    return -((z - z.new_tensor([0.5, -0.2])) / 0.3).square().sum(-1) / 2 + math.log(7)


def nowhere(z):
    return torch.full_like(z[:, 0], -torch.inf)


def nan(z):
    return z[:, 0].where(z[:, 0] < 0, torch.nan)


def failing(z):
    raise RuntimeError("two\nlines")


def test_normalisers_are_exact():
    radius = torch.linspace(0, 3, 300_001, dtype=torch.float64)
    exact = torch.trapezoid(2 * math.pi * radius * (-(radius - 0.9).square() / 0.001).exp(), radius).log()
    assert quadrature(ring).log_z == pytest.approx(float(exact), abs=1e-5)
    assert quadrature(bigaussian, span=4.0).log_z == pytest.approx(0, abs=1e-5)
    assert quadrature(narrow).log_z == pytest.approx(math.log(7 * 2 * math.pi * 0.09), abs=1e-5)


def test_a_gaussian_is_matched_exactly():
    target = quadrature(narrow)
    found = approximate(target, 1, steps=400)
    assert found.bound == pytest.approx(target.log_z, abs=0.05)
    assert found.bound <= target.log_z + 4 * found.bound_se + 1e-4
    assert found.covered > 0.9
    assert found.frames[0].mean.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("flow", [False, True])
def test_the_bound_is_log_z_less_the_divergence_by_quadrature(flow):
    """Catches a density that is not that of the draws: an inverse or a volume that is wrong, a missing 1/S."""
    target = quadrature(bigaussian, span=5.0)
    found = approximate(target, 1 if flow else 3, steps=40, flow=flow, transforms=3)
    area = (10 / 600) ** 2
    assert found.density.sum() * area == pytest.approx(1, abs=1e-3)
    ratio = np.log(found.density.clip(1e-300)) - np.log(target.density.clip(1e-300))
    divergence = (found.density * ratio).sum() * area
    assert found.bound == pytest.approx(target.log_z - divergence, abs=4.5 * found.bound_se + 1e-3)
    assert divergence > 0.05
    assert found.covered == pytest.approx(1 - 0.5 * np.abs(found.density - target.density).sum() * area, abs=1e-3)


def test_more_components_cover_more_of_a_ring():
    result = compare(quadrature(ring, "ring"), (1, 8), steps=300, rival=False)
    one, eight = result.table
    assert eight["covered"] > one["covered"] + 0.1
    assert eight["bound"] > one["bound"] + 0.5
    assert one["gap"] == pytest.approx(one["log_z"] - one["bound"])
    assert [axes.get_label() for axes in result.figure.axes] == ["", "", "<colorbar>"]


def test_the_command_writes_a_table_a_picture_and_an_animation(tmp_path, capsys):
    main(["toy", "test_toys.narrow", "--components=1,2", "--steps=20", "--rival=false", f"--out={tmp_path / 'toy'}"])
    assert "log Z = 1.37" in capsys.readouterr().out
    assert [row["components"] for row in read_json(tmp_path / "toy" / "results.json")["rows"]] == [1, 2]
    for name in ("toy.png", "toy.gif"):
        with Image.open(tmp_path / "toy" / name) as picture:
            assert getattr(picture, "n_frames", 1) > (5 if name == "toy.gif" else 0)
            picture.verify()


def test_toys_are_published_whole(tmp_path, monkeypatch):
    """Results that are no runs were left out, and the script said nothing."""
    out, new = tmp_path / "out", tmp_path / "new"
    write_json(out / "results.json", {"command": f"mixvae reproduce toys --scale smoke --seeds 3 --out {out}"})
    ci = Path(__file__).parent.parent / ".ci"
    monkeypatch.syspath_prepend(ci)
    publish = runpy.run_path(str(ci / "publish.py"))["publish"]
    commit(out / "ring-seed3" / "reproduced.json", {"rows": []}, {"picture": ("toy.png", b"a picture")})
    with pytest.raises(SystemExit, match="out lacks bigaussian-seed3"):
        publish(out, new)
    assert not new.exists()
    shutil.copytree(out / "ring-seed3", out / "bigaussian-seed3")
    publish(out, new)
    assert read_part(new / "bigaussian-seed3" / "reproduced.json", "picture")[1] == b"a picture"


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rings"], "did you mean ring?"),
        (["test_toys.nan"], "is NaN or infinite at z = ["),
        (["test_toys.failing"], "test_toys.failing fails at points (361201, 2): RuntimeError two lines"),
        (["torch.abs"], "must map points (N, 2) to log-densities (N,); for N = 361201 it gave (361201, 2)"),
        (["ring", "--components=1,0"], "positive numbers separated by commas, such as 1,2,5; got '1,0'"),
        (["ring", "--steps=0"], "steps must be at least 1; got 0"),
        (["test_toys.nowhere"], "has no mass between −3.0 and 3.0"),
        (["ring", "--span=0.1"], "reaches the edge of the square from −0.1 to 0.1, where"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, told):
    with pytest.raises(SystemExit) as end:
        main(["toy", *words, f"--out={tmp_path / 'out'}"])
    assert end.value.code == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
