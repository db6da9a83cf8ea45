"""Mixtures over a model that is trained already: more components, parts held fixed, and how many are worth it."""

from dataclasses import replace

import pytest
import torch

from conftest import binary, tiny_model
from mixvae import runs
from mixvae.bounds import elbo, log_weights
from mixvae.cli import main
from mixvae.files import load_weights, read_json
from mixvae.priors import GaussianMixturePrior, VampPrior

TINY = [
    "--data.limit=200", "--training.epochs=2", "--model.latent=2",
    "--model.encoder.hidden=[8]", "--model.decoder.hidden=[8]",
]  # fmt: skip


def vamp(q, shape, latent):
    return VampPrior(q, shape, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with one component and a VampPrior."""
    path = tmp_path_factory.mktemp("extending") / "S1"
    prior = "--model.prior={class_path: VampPrior, pseudo_inputs: 20}"
    main(["train", "digits", "--out", str(path), "--model.components=1", prior, *TINY])
    return path


def value(model, x, noise):
    with torch.no_grad():
        terms = model(x, noise=noise)
        return elbo(log_weights(terms), terms.weight)


def test_vampprior_of_an_extended_model_uses_new_components():
    model, x = tiny_model(2, prior=vamp), binary(4)
    more = model.extended(4, noise=0.0)
    noise = torch.randn(1, 2, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(value(more, x, noise.repeat(1, 2, 1, 1)), value(model, x, noise))
    assert more.prior().components.batch_shape[0] == 4
    assert model.posterior.components == 2, "the old model stays as it was"
    with torch.no_grad():
        more.posterior.encoders[3].head.bias += 1
    z = torch.zeros(2, dtype=torch.float64)
    assert not torch.allclose(more.prior().log_prob(z), model.prior().log_prob(z))


def test_frozen_vampprior_keeps_its_density_as_encoders_move():
    model = tiny_model(2, prior=vamp, weights=[3.0, 1.0])
    z = torch.randn(50, 2, dtype=torch.float64)
    before = model.prior().log_prob(z)
    model.freeze("prior", "decoder")
    assert isinstance(model.prior, GaussianMixturePrior)
    torch.testing.assert_close(model.prior().log_prob(z), before)
    with torch.no_grad():
        model.posterior.encoders[0].head.bias += 1
    torch.testing.assert_close(model.prior().log_prob(z), before)
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"posterior"}
    with pytest.raises(ValueError, match="no part 'encoder' to freeze: choose among posterior, prior and decoder"):
        model.freeze("encoder")


def test_extending_a_run_trains_encoders_but_not_frozen_parts(trained, tmp_path, capsys):
    out = tmp_path / "S3"
    main(["extend", str(trained), "--components", "3", "--out", str(out), "--freeze", "decoder,prior", "--epochs", "3"])
    assert "3 epochs" in capsys.readouterr().out
    old, new = runs.load(trained), runs.load(out)
    assert new.posterior.components == 3
    for name, tensor in old.decoder.state_dict().items():
        assert torch.equal(new.decoder.state_dict()[name], tensor)
    z = torch.randn(20, 2)
    with torch.no_grad():
        torch.testing.assert_close(new.prior().log_prob(z), old.prior().log_prob(z))
    first = new.posterior.encoders[0].state_dict()
    assert any(not torch.equal(first[name], t) for name, t in old.posterior.encoders[0].state_dict().items())
    main(["evaluate", str(out), "--total-draws", "20"])
    again = tmp_path / "again"
    main(["extend", str(out), "--components=4", f"--out={again}", "--epochs=1", "--fresh=true"])
    assert runs.load(again).posterior.components == 4


def test_interrupted_extension_resumes_to_the_same_weights(trained, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.train(runs.extension(trained, 2, epochs=3), whole)
    runs.train(runs.extension(trained, 2, epochs=1), broken)
    main(["train", "--resume", str(broken), "--training.epochs=3"])
    one, other = load_weights(whole / "model.safetensors"), load_weights(broken / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["extend", "{run}", "--components=0"], "already has 1 components; got components = 0"),
        (["extend", "{run}", "--components=2", "--freeze=head"], "no part 'head' to freeze"),
        (["extend", "{run}/none", "--components=2"], "is not a run"),
        (["components", "{run}", "--draws-per-component=0"], "at least one example and one draw"),
        (["train", "digits", "--out={run}2", "--training.freeze=[prior]", *TINY,
          "--model.prior={{class_path: VampPrior, pseudo_inputs: 5}}"], "frozen only with `mixvae extend"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(trained, capsys, words, told):
    with pytest.raises(SystemExit) as end:
        main([word.format(run=trained) for word in words])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert told in error[-1]
    assert not any("Traceback" in line for line in error)


def test_growing_stops_at_too_small_a_gain_and_is_idempotent(trained, tmp_path, capsys):
    out = tmp_path / "grown"
    words = ["grow", str(trained), f"--out={out}", "--epochs=1", "--total-draws=20", "--examples=50", "--most=3"]
    main(words)
    rows = read_json(out / "growth.json")
    assert [row["components"] for row in rows] == list(range(2, 2 + len(rows)))
    for row in rows:
        assert row["accepted"] == (row["gain"] > 2 * row["gain_se"])
        paths = (out / f"S{row['components']}", out / f"S{row['components'] - 1}-on")
        settings = {"total_draws": 20, "split": "validation", "examples": 50, "proposal": "posterior"}
        more, same = (runs.find_evaluation(path, **settings).bounds["pooled"] for path in paths)
        assert row["gain"] == pytest.approx((more - same).mean())
    assert all(row["accepted"] for row in rows[:-1])
    assert (out / "growth.png").stat().st_size > 5000
    trained_once = runs.open_run(out / "S2").metrics
    capsys.readouterr()
    main(words)
    assert read_json(out / "growth.json") == rows
    assert runs.open_run(out / "S2").metrics == trained_once
    for change, told in (
        (["--epochs=2", "--freeze=decoder"], "training.freeze is [], not ['decoder']"),
        (["--epochs=1", "--freeze=prior"], "model.prior.class is mixvae.VampPrior, not mixvae.GaussianMixturePrior"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["grow", str(trained), f"--out={out}", "--total-draws=20", "--examples=50", "--most=3", *change])
        assert end.value.code == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1], "the old result passed for the new settings"
    for change, told in ((["--most=1"], "most must be at least 2"), (["--examples=1"], "examples must be at least 2")):
        with pytest.raises(SystemExit) as end:
            main(["grow", str(trained), f"--out={out}", *change])
        assert end.value.code == 2
        assert told in capsys.readouterr().err


def test_growing_for_more_epochs_spares_bases_of_later_steps(trained, tmp_path, capsys):
    out = tmp_path / "grown"
    words = ["grow", str(trained), f"--out={out}", "--total-draws=20", "--examples=50", "--most=3", "--errors=-100"]
    main([*words, "--epochs=1"])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        main([*words, "--epochs=2"])
    assert end.value.code == 2
    assert "started from it: choose another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    main([*words, "--epochs=1"])


def test_extension_resumes_after_its_base_advanced_or_vanished(tmp_path, capsys):
    base, more = tmp_path / "base", tmp_path / "more"
    main(["train", "digits", "--out", str(base), *TINY])
    main(["extend", str(base), "--out", str(more), "--epochs=1"])
    main(["train", "--resume", str(base), "--training.epochs=3"])
    main(["train", "--resume", str(more), "--training.epochs=2"])
    base.rename(tmp_path / "elsewhere")
    main(["train", "--resume", str(more), "--training.epochs=3"])
    assert runs.open_run(more).epoch == 3
    before = (more / "config.yaml").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(more), "--training.epochs=4", f"--start.run={tmp_path / 'none'}"])
    assert end.value.code == 2
    assert "none is not a run" in capsys.readouterr().err
    assert (more / "config.yaml").read_bytes() == before


def test_a_run_that_holds_its_data_set_can_be_extended(trained):
    """`runs.train` returns such a run; its Dataset was written out as if it were the name of a file."""
    run = runs.open_run(trained)
    held = runs.open_run(trained, data=run.data)
    assert runs.extension(held, 3) == runs.extension(run, 3)
    nameless = runs.open_run(trained, data=replace(run.data, origin=None))
    with pytest.raises(ValueError, match="made in Python, so that no configuration can name them"):
        runs.extension(nameless, 3)
