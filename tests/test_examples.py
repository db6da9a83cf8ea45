"""What the README and the examples show is what runs."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from mixvae import cli

ROOT = Path(__file__).parent.parent


def test_the_readmes_library_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks[0].strip().splitlines()) <= 15
    torch.manual_seed(0)
    exec("\n".join(blocks), {})
    nll, effective = re.findall(r"[\d.]+", capsys.readouterr().out)[:3:2]
    assert 22 < float(nll) < 40
    assert 1 <= float(effective) <= 4


def test_the_readmes_commands_exist(capsys):
    text = (ROOT / "README.md").read_text()
    assert text.index("make demo") < text.index("make test") < 200
    for command in set(re.findall(r"^mixvae ((?:sc )?\w+)", text, re.MULTILINE)):
        assert command.replace(" ", "-") in cli.COMMANDS
        with pytest.raises(SystemExit):
            cli.main([*command.split(), "--help"])
        assert "usage:" in capsys.readouterr().out


def test_links_of_the_documentation_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tabular_example_learns():
    main = runpy.run_path(str(ROOT / "examples" / "tabular.py"))["main"]
    nll = main(epochs=8, draws=50)
    assert set(nll) == {1, 4}
    assert all(0 < value < 42.6 for value in nll.values()), "better than 30 independent standard normals"


def test_an_ordinary_vae_becomes_a_mixture_unchanged(monkeypatch):
    folder = ROOT / "examples"
    monkeypatch.syspath_prepend(folder)
    plain = (folder / "plain_vae.py").read_text()
    assert "mixvae" not in plain.split('"""')[2]
    assert len(plain.splitlines()) <= 66
    nll = runpy.run_path(str(folder / "mixture_of_a_plain_vae.py"))["main"](epochs=6, draws=50)
    assert set(nll) == {1, 4}
    assert all(15 < value < 64 * 0.6931 for value in nll.values()), "better than coins"
