"""Progress is shown where it is asked for, and nowhere else."""

import io

import pytest
from rich.console import Console

from conftest import Recorded, binary, tiny_model
from mixvae import fit, load_dataset, progress, sweeps
from mixvae.evaluation import evaluate
from mixvae.progress import Terminal


@pytest.fixture
def digits():
    return load_dataset("digits", limit=40, limit_validation=20)


@pytest.fixture
def small(digits):
    from functools import partial

    from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
    from mixvae.networks import GatedEncoder

    posterior = SeparateEncoders(partial(GatedEncoder, digits.shape, 2, (4,)), 2)
    return MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, digits.shape, (4,)))


def test_the_library_is_silent_unless_asked(small, digits, tmp_path, capfd):
    fit(small, digits, epochs=2, run=tmp_path / "run")
    evaluate(tiny_model(), binary(4), 6)
    sweeps.demo(tmp_path / "demo", components=(1,), total_draws=2, epochs=1)
    assert capfd.readouterr() == ("", "")


def test_an_epoch_and_a_batch_are_told_as_they_end(small, digits, monkeypatch):
    """Epochs of one step each, which are told of in steps."""
    monkeypatch.setattr("mixvae.training._shown.SECONDS", 1e9)
    seen = Recorded()
    fit(small, digits, epochs=3, progress=seen)
    assert [(done, total) for done, total, _ in seen.seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen.seen[0][2].startswith("epoch 1/3  bound -")
    seen = Recorded()
    evaluate(tiny_model(), binary(7), 6, chunk=6, progress=seen)
    assert [done for done, *_ in seen.seen] == [*range(1, 8)]
    assert {total for _, total, _ in seen.seen} == {7}


def test_a_page_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Terminal()
    shown.console = Console(file=(page := io.StringIO()), width=100)
    for epoch in range(1, 31):
        now[0] += 1.0
        shown.update(epoch, 30, f"epoch {epoch}/30")
    assert page.getvalue().splitlines() == [
        "epoch 1/30", "epoch 11/30  19 s left", "epoch 21/30  9 s left", "epoch 30/30",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_that_goes_and_obeys_no_name():
    shown = Terminal()
    shown.console = Console(file=(page := io.StringIO()), width=80, force_terminal=True, markup=False)
    with shown:
        shown.update(1, 3, "epoch \x1b]0;title\x07 [bold]")
        assert shown.bar is not None
        shown.announce("\x1b[2Jcleared")
        shown.update(3, 3)
        assert shown.bar is None
    assert "\x1b]0;title" not in page.getvalue()
    assert "\x1b[2J" not in page.getvalue()
    assert "[bold]" in page.getvalue()
