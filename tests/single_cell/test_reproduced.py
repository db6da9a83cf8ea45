"""Experiments without a run directory, by name: what is recorded is what was done."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from mixvae import cli
from mixvae.files import read_json, write_bytes, write_json
from mixvae.progress import SILENT
from mixvae.reports import ONE_TRAINING
from mixvae.reproduce import reproduce, toys
from mixvae.single_cell import runs
from mixvae.sweeps import LOCAL


def test_the_command_recorded_for_cells_repeats_what_was_done(tmp_path, monkeypatch, capsys, as_users_run):
    found = reproduce("single_cell", "smoke", tmp_path / "a folder")
    rows = {(row["model"], row["size"]) for row in found.table}
    assert rows == {("scvi", 1), ("mixture", 1), ("mixture", 2), ("frozen", 2), *(("samples", s) for s in range(1, 6))}
    assert all(verdict.holds is None for verdict in found.verdicts)
    results = read_json(tmp_path / "a folder" / "results.json")
    assert len(results["table"]) == len(rows)
    words = shlex.split(results["command"])
    assert words[:3] == ["mixvae", "reproduce", "single_cell"]

    def fit(*args, **kwargs):
        raise AssertionError("it trains something else")

    monkeypatch.setattr(runs, "fit", fit)
    capsys.readouterr()
    cli.main(words[1:])
    text = capsys.readouterr().out
    for row in found.table:
        assert f"{row['ari']:.3f} ±" in text
        assert "elbo" not in row or f"{row['elbo']:,.1f}".replace("-", "−") in text
    changed = [*words[1:], "--epochs", "3"]
    with pytest.raises(SystemExit):
        cli.main(changed)
    assert "epochs is 2, not 3" in capsys.readouterr().err


def test_toys_are_reused_only_if_settings_and_files_match(tmp_path, monkeypatch):
    made = []

    def toy(target, folder, **settings):
        made.append(target)
        content = f"{target} {settings['span']} {settings['rival']}".encode()
        write_bytes(folder / "toy.png", content)
        write_bytes(folder / "toy.gif", content)
        write_json(folder / "results.json", {"anything": 1})
        row = {"name": "S = 1", "bound": -1.0, "bound_se": 0.1, "log_z": 0.0, "gap": 1.0, "covered": 0.5}
        return SimpleNamespace(table=[row, row | {"name": "flow"}])

    monkeypatch.setattr(toys, "toy", toy)

    def carry_out(steps=2):
        made.clear()
        found = toys.Toys((1,), steps=steps, seeds=(0,)).carry_out(tmp_path, runner=LOCAL, progress=SILENT)
        return list(made), str(found.table)

    first, table = carry_out()
    assert first == ["ring", "bigaussian"]
    assert carry_out() == ([], table)
    write_bytes(tmp_path / "ring-seed0" / "toy.png", b"another picture")
    assert carry_out() == (["ring"], table)
    toy("bigaussian", tmp_path / "bigaussian-seed0", span=2.0, rival=False)  # as `mixvae toy --out` there does
    assert carry_out() == (["bigaussian"], table)
    assert carry_out(3)[0] == ["ring", "bigaussian"]
    monkeypatch.setattr(toys, "VERSION", toys.VERSION + 1)
    assert carry_out(3)[0] == ["ring", "bigaussian"]


def test_toys_are_judged_between_optimisations(tmp_path, monkeypatch):
    bounds = {0: (-3.0, -2.0, -1.5), 1: (-3.2, -2.1, -1.4)}

    def toy(target, folder, *, seed, **settings):
        for name in ("toy.png", "toy.gif"):
            write_bytes(folder / name, b"a picture")
        names = ("S = 1", "S = 2", "flow")
        rows = [
            {"name": n, "bound": b, "log_z": 0.0, "gap": -b, "covered": 0.5}
            for n, b in zip(names, bounds[seed], strict=True)
        ]
        return SimpleNamespace(table=rows)

    monkeypatch.setattr(toys, "toy", toy)
    single = toys.Toys((1, 2), seeds=(0,)).carry_out(tmp_path, runner=LOCAL, progress=SILENT)
    assert [verdict.holds for verdict in single.verdicts] == [None, None]
    assert ONE_TRAINING in single.verdicts[0].evidence
    both = toys.Toys((1, 2), seeds=(0, 1)).carry_out(tmp_path, runner=LOCAL, progress=SILENT)
    assert [verdict.holds for verdict in both.verdicts] == [True, False]
    values = np.array(list(bounds.values()))
    spread = np.sqrt(values.var(0, ddof=1).mean())  # pooled over three approximations: three degrees of freedom
    for row, mean in zip(both.table[:3], values.mean(0), strict=True):
        assert row["bound"] == pytest.approx(mean)
        assert row["bound_margin"] == pytest.approx(3.1824463 * spread / np.sqrt(2))
