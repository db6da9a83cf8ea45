"""A run, an evaluation or data of somebody else: what they hold is looked at before it is believed."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import forge, refused
from mixvae import config, runs
from mixvae.cli import main
from mixvae.figures import png
from mixvae.figures._style import blank
from mixvae.files import checksum

SMALL = [
    "--data.limit=60", "--data.limit_validation=20", "--model.latent=2", "--training.epochs=1",
    "--model.encoder.hidden=[4]", "--model.decoder.hidden=[4]",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was evaluated."""
    run = runs.train(config.read("digits", SMALL), tmp_path_factory.mktemp("received") / "run")
    runs.evaluate(run, 4, examples=10)
    return run.path


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of it in a folder of its own."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "run"))


RECORDS = {
    "name of the data": (lambda c: c["runtime"]["data"].update(name=[1]), "it.runtime.data.name cannot be list"),
    "origin": (lambda c: c["runtime"]["data"]["origin"].update(more=1), "origin has an unknown part more"),
    "root": (lambda c: c["runtime"]["data"]["origin"].update(root=5), "origin.root cannot be int"),
    "relative": (lambda c: c["runtime"]["data"].update(relative=5), "relative cannot be int"),
    "model": (lambda c: c["recipe"]["identity"].update(model=[]), "identity.model cannot be list"),
    "data": (lambda c: c["recipe"]["identity"].update(data="x"), "identity.data cannot be str"),
    "epoch": (lambda c: c["progress"].update(epoch="1"), "progress.epoch cannot be str"),
    "description": (lambda c: c.update(model={"spec": []}), "model.spec cannot be list"),
    "rows": (lambda c: c["rows"][0].update(validation=10**400), "rows[0].validation cannot be int"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_form_is_damaged_for_every_command(copy, capsys, name):
    change, told = RECORDS[name]
    forge(copy / "run.json", change)
    for words in (["sample", copy], ["evaluate", copy, "--total-draws=4"], ["train", "--resume", copy]):
        assert "run.json is damaged: it" in (error := refused(capsys, *words))
        assert told in error
    assert [row["state"] for row in runs.listing(copy.parent).table] == ["damaged"]


RESULTS = {
    "results": (lambda c: c.update(results=[]), "it.results cannot be list"),
    "a mean": (lambda c: c["results"].update(elbo="x" * 99), "it.results.elbo cannot be str"),
    "parameters": (lambda c: c["results"].update(parameters=10**400), "it.results.parameters cannot be int"),
    "split": (lambda c: c["identity"].update(split=[]), "it.identity.split cannot be list"),
    "components": (lambda c: c["identity"].update(components="x" * 20000), "it.identity.components cannot be str"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_an_evaluation_of_another_form_is_told_at_once(copy, capsys, name):
    """A text as number of components, times 100,000 draws, filled the memory of `mixvae list`."""
    change, told = RESULTS[name]
    [path] = (copy / "evaluations").glob("*.json")
    forge(path, change)
    assert told in refused(capsys, "report", copy)
    assert [row["state"] for row in runs.listing(copy.parent).table] == ["damaged"]


def test_a_checkpoint_of_another_form_is_one_line(copy, capsys):
    from mixvae.files import state_from_bytes, state_to_bytes

    state = state_from_bytes((copy / "last/state.pt").read_bytes(), "state")
    for change in ({"state": {"epoch": "1"}}, {"model": "x"}, {"optimizer": []}, {"base": 3}, {"noise": 5}):
        content = state_to_bytes(state | change)
        (copy / "last/state.pt").write_bytes(content)

        def put(record, content=content):
            record["files"]["state"] |= {"sha256": checksum(content), "bytes": len(content)}

        forge(copy / "run.json", put)
        error = refused(capsys, "train", "--resume", copy, "--training.epochs=2")
        assert "checkpoint" in error or "has another form" in error


PLANTED = {
    ".lease.json": "link", ".lease": "pipe", "metrics.jsonl": "device", "zz.json": "pipe", "figures": "folder",
    "evaluations": "folder", "last": "folder", "last/state.pt": "pipe", "evaluations/x.json": "device",
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_irregular_files_in_a_run_are_neither_read_nor_written(copy, tmp_path, capsys, name):
    """`mixvae list` waited for a pipe for ever; `report` wrote its pictures where a link led."""
    (outside := tmp_path / "outside").mkdir()
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    kind = PLANTED[name]
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": tmp_path / "nowhere", "device": Path("/dev/zero"), "folder": outside}[kind])
    for words in (["sample", copy], ["train", "--resume", copy, "--training.epochs=2"], ["evaluate", copy]):
        assert "a run holds ordinary files and folders of its own" in refused(capsys, *words)
    assert [row["state"] for row in runs.listing(copy.parent).table] == ["damaged"]
    assert not list(outside.iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_a_run_may_lie_behind_a_link_and_its_weights_too(copy, tmp_path):
    weights = copy / "model.safetensors"
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    (tmp_path / "link").symlink_to(copy)
    runs.open_run(tmp_path / "link").model.sample(1)


def test_a_pipe_is_not_replaced_by_a_page(copy, tmp_path, capsys):
    """`--out /dev/full` put a page in the place of the device."""
    os.mkfifo(tmp_path / "page.html")
    assert "is a pipe, a device or a socket" in refused(capsys, "report", copy, "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_fifo()


def test_described_model_is_measured_before_it_is_filled(copy, capsys, monkeypatch):
    from mixvae import _resources as resources

    monkeypatch.setattr(resources, "memory", lambda: 2**28)
    node = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 11000, "out_features": 11000}}
    with pytest.raises(ValueError, match="the model that is described needs at least"):
        config.rebuild({"version": 1, "dtype": "float32", "model": node})


def test_an_image_is_read_as_one_whatever_its_content_is(tmp_path, capsys):
    """An EPS file by the name of b.png started Ghostscript."""
    (folder := tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    eps = io.BytesIO()
    Image.new("L", (8, 8)).save(eps, format="EPS")
    (folder / "b.png").write_bytes(eps.getvalue())
    assert "b.png is not a readable image" in refused(capsys, "train", "digits", "--data.name", folder)


def test_names_cannot_write_to_the_terminal(copy, capsys):
    forge(copy / "run.json", lambda c: c["runtime"]["data"].update(name="\x1b]0;owned\x07\x1b[31mred\x9b"))
    main(["list", str(copy.parent)])
    assert not set(capsys.readouterr().out) & {"\x1b", "\x07", "\x9b"}
    (strange := copy.parent / "\x1b[31mred").mkdir()
    assert "\x1b" not in refused(capsys, "sample", strange)


def test_pictures_start_no_tex_and_draw_names_as_they_are():
    """A matplotlibrc in the working folder is obeyed when matplotlib is imported."""
    figure, axes = blank(2, 2)
    axes.set_title(r"a$\frac{$b")
    axes.set_xlabel("latex", usetex=True)
    assert png(figure)[:4] == b"\x89PNG"


def test_a_style_of_the_working_folder_starts_nothing(copy, tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    (tmp_path / "bin").mkdir()
    for name in ("latex", "dvipng", "kpsewhich"):
        fake = tmp_path / "bin" / name
        fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
        fake.chmod(0o755)
    done = subprocess.run(
        [Path(sys.executable).with_name("mixvae"), "sample", copy, "--n=4"], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "started").exists()
