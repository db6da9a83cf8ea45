"""What the README and the examples show is what runs."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from mixvae import cli

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_readmes_tutorial_in_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks[0].strip().splitlines()) <= 15
    torch.manual_seed(0)
    exec("\n".join(blocks), {})
    nll, effective = re.findall(r"[\d.]+", capsys.readouterr().out)[:3:2]
    assert 22 < float(nll) < 40
    assert 1 <= float(effective) <= 4


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run")
def test_the_tutorial_runs_from_its_first_line_to_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    space: dict = {}
    for language, block in re.findall(r"```(python|sh)\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL):
        if language == "python":
            exec(block, space)
        else:
            for line in block.splitlines():
                program, *words = shlex.split(line)
                assert program in ("mixvae", "pip")
                if program == "mixvae":
                    cli.main(words)
    out = capsys.readouterr().out
    gain, error = (float(value) for value in re.search(r"gain ([-+][\d.]+) ± ([\d.]+) nats", out).groups())
    assert error < 1
    assert gain > -1, "four encoders are not much worse than one"
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"{n}.png" for n in "likelihood components spread classes posteriors gains".split()}
    assert (tmp_path / "report.html").read_text().count("data:image/png") > 10
    (first, second) = space["comparison"].table
    assert (first["run"], second["run"]) == ("S1", "S4")
    assert second["gain_se"] > 0


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


@pytest.mark.slow
def test_the_tutorial_of_a_table_learns():
    main = runpy.run_path(str(ROOT / "examples" / "tabular.py"))["main"]
    nll = main(epochs=25, total_draws=50)
    assert set(nll) == {1, 4}
    assert all(0 < value < 42.6 for value in nll.values()), "better than 30 independent standard normals"


@pytest.mark.slow
def test_the_tutorial_of_an_ordinary_vae_leaves_it_unchanged(monkeypatch):
    folder = ROOT / "examples"
    monkeypatch.syspath_prepend(folder)
    plain = (folder / "plain_vae.py").read_text()
    assert "mixvae" not in plain.split('"""')[2]
    assert len(plain.splitlines()) <= 66
    nll = runpy.run_path(str(folder / "mixture_of_a_plain_vae.py"))["main"](epochs=6, total_draws=50)
    assert set(nll) == {1, 4}
    assert all(15 < value < 64 * 0.6931 for value in nll.values()), "better than coins"


@pytest.mark.parametrize("page", ["data", "training"])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL):
        exec(block, {})
    assert re.search(r"\d\.\d", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run")
def test_the_tutorial_of_queries_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for language, block in re.findall(r"```(python|sh)\n(.*?)```", (ROOT / "docs/queries.md").read_text(), re.DOTALL):
        if language == "python":
            exec(block, space)
            continue
        for line in block.splitlines():
            cli.main(shlex.split(line)[1:])
    written = {"turned.csv", "turned.png", "aggregated.png", "path.png", "encoder.pt2"}
    assert written <= {p.name for p in tmp_path.iterdir()}
    assert "nan" not in capsys.readouterr().out


def test_parts_implemented_in_the_documentation_work_together():
    torch.manual_seed(0)
    space: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/implementing.md").read_text(), re.DOTALL):
        exec(block, space)
    posterior, x = space["posterior"], space["x"]
    assert posterior(x, torch.tensor([2, 0])).batch_shape == (2, 5)
    before = posterior(x).mean
    posterior.extend(6, noise=0.0)
    torch.testing.assert_close(posterior(x).mean, before.repeat(2, 1, 1))
    assert space["model"].decoder(torch.zeros(1, 4)).event_shape == space["shape"]
