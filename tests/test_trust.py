"""Nothing from a stranger runs: a class that is named in a file is imported only if it is allowed or trusted."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mixvae
from conftest import refused
from mixvae import config, runs
from mixvae.cli import main
from mixvae.files import canonical, checksum, read_json
from mixvae.runs import _memory as memory
from mixvae.runs import _store as store

SMALL = [
    "--data.limit=60", "--model.latent=2", "--training.epochs=1", "--model.decoder.hidden=[4]", "--training.batch=60",
]  # fmt: skip
ENCODER = """
from pathlib import Path
import torch
Path({marker!r}).touch()

class Encoder(torch.nn.Module):
    def __init__(self, shape, latent):
        super().__init__()
        self.net = torch.nn.Linear(64, 2 * latent)

    def forward(self, x):
        return self.net(x.flatten(1)).chunk(2, -1)
"""


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A state folder and a working folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def marker(tmp_path):
    """A module in the working folder that leaves a mark when it is imported, by a name of its own."""
    name = f"evil{checksum(str(tmp_path))[:8]}"
    mark = tmp_path / "imported"
    Path(f"{name}.py").write_text(ENCODER.format(marker=str(mark)))
    yield name, mark
    sys.modules.pop(name, None)


PLACES = {
    "encoder": "model: {encoder: %s}",
    "with arguments": "model: {encoder: {class_path: %s, command: touch x}}",
    "init_args": "model: {encoder: {class_path: %s, init_args: {command: touch x}}}",
    "posterior": "model: {posterior: %s}",
    "decoder": "model: {decoder: {class_path: %s}}",
    "flow": "model: {flow: %s}",
    "prior": "model: {prior: %s}",
    "lower": "model: {lower: %s}",
    "likelihood": "model: {likelihood: %s}",
    "in an argument": "model: {decoder: {class_path: Decoder, network: {class_path: %s}}}",
    "in an argument's argument": "model: {encoder: {class_path: GatedEncoder, hidden: [{class_path: %s}]}}",
    "as a function in an argument": "model: {encoder: {class_path: GatedEncoder, activation: %s}}",
    "bound": "training: {bound: %s}",
    "gradient": "training: {gradient: %s}",
    "optimizer": "training: {optimizer: {class_path: %s, lr: 1}}",
    "in the optimizer": "training: {optimizer: {class_path: Adam, foreach: {class_path: %s}}}",
    "schedule": "training: {schedule: %s}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_names_a_strangers_class_imports_nothing(place, marker, capsys):
    name, mark = marker
    Path("stranger.yaml").write_text(PLACES[place] % f"{name}.Encoder")
    error = refused(capsys, "train", "stranger.yaml", "--out", "run")
    assert f"names {name}.Encoder as " in error
    assert f"--trust {name}" in error
    assert not mark.exists()
    assert not Path("run").exists()
    with pytest.raises(ValueError, match="--trust"):
        config.read("stranger.yaml")


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load", "torch.nn.functional.relu",
        "torch.nn.modules.module.torch.load", "mixvae.networks._dense.torch.load", "mixvae.runs.train", "nn", "torch",
        "torch.optim.sgd.torch.load", "mixvae.sweeps._children.subprocess.Popen", "mixvae", "partial", "log_mean_exp",
    ],
)  # fmt: skip
def test_functions_and_ways_around_are_refused(path, capsys):
    Path("stranger.yaml").write_text(f"model: {{encoder: {{class_path: {path}}}}}")
    assert f"names {path} as model.encoder" in refused(capsys, "train", "stranger.yaml")


@pytest.mark.parametrize(
    ("place", "spec"),
    [
        ("training.schedule", "{class_path: CyclicLR, base_lr: 0.1, max_lr: 0.2, scale_fn: ref}"),
        ("model.flow", "{class_path: ZukoFlow, transform: cast}"),
        ("model.flow", "{class_path: ZukoFlow, transform: Path}"),
    ],
)
def test_bare_name_in_an_argument_reaches_no_module_function(tmp_path, capsys, place, spec):
    group, _, name = place.partition(".")
    path = tmp_path / "bare.yaml"
    path.write_text(f"data: {{name: digits, limit: 20}}\n{group}: {{{name}: {spec}}}\n")
    error = refused(capsys, "train", path, "--out", tmp_path / "run")
    bare = spec.rstrip("}").rpartition(" ")[2]
    assert f"got {bare!r}" in error or f"has no {bare!r}" in error or "has no argument" in error
    assert not (tmp_path / "run").exists()


def test_every_place_makes_only_its_own_kind():
    for place, other in (
        ("encoder", "MLPDecoder"),
        ("decoder", "GatedEncoder"),
        ("prior", "OneHotPosterior"),
        ("bound", "jsd"),
    ):
        content = {"model": {place: other}} if place != "bound" else {"training": {place: other}}
        with pytest.raises(ValueError, match="--trust"):
            config.check_config(content, "x")


def test_what_is_on_the_allowlist_needs_no_trust():
    assert all(config.check_file(path) is None for path in config.presets().values())
    for path in (
        "GatedEncoder",
        "mixvae.networks.GatedEncoder",
        "mixvae.networks.GatedEncoder",
        "mixvae.networks._dense.GatedEncoder",
    ):
        assert config.check_config({"model": {"encoder": path}}, "x") == []
    content = {"optimizer": "SGD", "schedule": {"class_path": "torch.optim.lr_scheduler.StepLR", "step_size": 3}}
    assert config.check_config({"training": content}, "x") == []


HIDDEN = {
    "dotted": "model.latent: 2\nmodel.encoder: {class_path: %s.Encoder}",
    "dotted in a group": 'model: {"encoder.class_path": %s.Encoder}',
    "dotted optimizer": "training.optimizer: {class_path: %s.Encoder}",
    "pairs": "model: {encoder: [[class_path, %s.Encoder]]}",
    "a class within a class": "model: {encoder: {class_path: {class_path: %s.Encoder}}}",
    "a class within an argument's class": "model: {encoder: {class_path: GatedEncoder, hidden: {class_path: [%s.E]}}}",
    "a text that reads as a class": "model: {encoder: {class_path: GatedEncoder, hidden: '{class_path: %s.Encoder}'}}",
    "a text of JSON": """model: {encoder: {class_path: GatedEncoder, hidden: '{"class_path": "%s.Encoder"}'}}""",
    "a text of escapes": r"""model: {prior: {class_path: VampPrior, squash: '{"class\u005fpath": "%s.Encoder"}'}}""",
    "all arguments a text": "model: {encoder: {class_path: GatedEncoder, init_args: '{hidden: {class_path: %s.E}}'}}",
    "a text as a class": "model: {encoder: '{class_path: %s.Encoder}'}",
    "a text in the optimizer": "training: {optimizer: {class_path: Adam, lr: '{class_path: %s.Encoder}'}}",
    "another alphabet": "model: {prior: {class_path: VampPrior, squash: é%s.f}}",
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_no_form_of_writing_a_class_passes_by_the_check(marker, capsys, kind):
    name, mark = marker
    Path(f"é{name}.py").write_text(Path(f"{name}.py").read_text())
    sys.path.append(os.getcwd())
    Path("a.yaml").write_text(HIDDEN[kind] % name)
    refused(capsys, "train", "a.yaml", *SMALL, "--out", "run")
    with pytest.raises(ValueError, match=r"a\.yaml|class"):
        config.read("a.yaml")
    assert not mark.exists()
    assert not Path("run").exists()


def test_a_file_in_the_home_folder_is_checked_too(marker, capsys, monkeypatch):
    """The parser expands ~, which a shell leaves alone after an equals sign."""
    name, mark = marker
    sys.path.append(os.getcwd())
    monkeypatch.setenv("HOME", os.getcwd())
    Path("e.yaml").write_text(f"model: {{encoder: {name}.Encoder}}")
    assert f"--trust {name}" in refused(capsys, "train", "digits", *SMALL, "--config=~/e.yaml", "--out", "run")
    assert not mark.exists()


def test_a_legacy_run_that_is_listed_imports_nothing(marker, capsys):
    name, mark = marker
    sys.path.append(os.getcwd())
    Path("old/r").mkdir(parents=True)
    Path("old/r/model.safetensors").touch()
    for text in (
        f"model.encoder: {name}.Encoder\ntraining.bound: {name}.Encoder",
        f"model: {{encoder: {{class_path: GatedEncoder, hidden: '{{class_path: {name}.Encoder}}'}}}}",
    ):
        Path("old/r/config.yaml").write_text(text)
        main(["list", "old"])
        assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        "set: {config: {model: {encoder: {class_path: NAME.Encoder}}}}\naxes: {a: {S1: {}}}",
        "set: {model.encoder: {class_path: NAME.Encoder}}\naxes: {a: {S1: {model: {}}}}",
        "set: {model.encoder: {class_path: NAME.Encoder}}\naxes: {a: {S1: {model.encoder: GatedEncoder}}}",
        'set: {"model.encoder=NAME.Encoder #": 1}\naxes: {a: {S1: {}}}',
        'set: {"model.encoder+": NAME.Encoder}\naxes: {a: {S1: {}}}',
        'axes: {a: {S1: {model: {"encoder.class_path": NAME.Encoder}}}}',
        "axes: {a: {S1: {model.encoder: {class_path: GatedEncoder, hidden: '{class_path: NAME.Encoder}'}}}}",
    ],
)
def test_no_spelling_of_a_class_in_a_grid_bypasses_the_check(marker, capsys, content):
    name, mark = marker
    sys.path.append(os.getcwd())
    Path("g.yaml").write_text("base: digits\n" + content.replace("NAME", name))
    assert "g.yaml" in refused(capsys, "sweep", "g.yaml")
    assert not mark.exists()


def test_pairs_in_a_run_are_no_class(marker, capsys):
    name, mark = marker
    sys.path.append(os.getcwd())
    main(["train", "digits", *SMALL, "--out", "run"])
    content = read_json("run/run.json")
    content.pop("checksum")
    for encoder, told in (
        ([["class_path", f"{name}.Encoder"]], "model.encoder must be the name of a class"),
        ({"class_path": "GatedEncoder", "hidden": f"{{class_path: {name}.Encoder}}"}, f"--trust {name}"),
    ):
        content["config"]["model"]["encoder"] = encoder
        Path("run/run.json").write_text(json.dumps(content | {"checksum": checksum(canonical(content))}))
        for command in (["sample", "run"], ["train", "--resume", "run", "--training.epochs=2"]):
            assert told in refused(capsys, *command)
            assert not mark.exists()


def test_class_typed_as_a_flag_stays_trusted_for_its_run(marker, capsys):
    name, _ = marker
    flag = f"--model.encoder={name}.Encoder"
    main(["train", "digits", *SMALL, flag, "--out", "run"])
    assert sys.path[-1] == os.getcwd()
    main(["evaluate", "run", "--total-draws=4", "--examples=5"])  # this user trained it
    shutil.copytree("run", "elsewhere/copy")
    main(["sample", "elsewhere/copy", "--n=2"])
    main(["train", "--resume", "run", "--training.epochs=2"])
    main(["encode", "run"])


def as_a_new_process(name):
    """Forget what this one has imported, and where it looks."""
    sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(Path.cwd().parent))]


@pytest.mark.parametrize("command", [["evaluate", "run", "--total-draws=4"], ["train", "start.yaml", "--out", "new"]])
def test_a_run_that_comes_back_brings_no_module_along(marker, tmp_path, capsys, command):
    """A copy of this user's own run, with another module of the same name beside it, ran that module."""
    name, mark = marker
    main(["train", "digits", *SMALL, f"--model.encoder={name}.Encoder", "--out", "run"])
    shutil.copytree("run", tmp_path / "bundle/run")
    Path(tmp_path / "bundle/start.yaml").write_text("data: {name: digits, limit: 60}\nstart: {run: run}\n")
    hijacked = tmp_path / "hijacked"
    Path(tmp_path / f"bundle/{name}.py").write_text(ENCODER.format(marker=str(hijacked)))
    as_a_new_process(name)
    mark.unlink()
    os.chdir(tmp_path / "bundle")
    if command[0] == "evaluate":
        main(command)
        assert mark.exists()  # it is the class of then, from wherever the command is given
    else:
        refused(capsys, *command)
    assert not hijacked.exists()


def test_a_remembered_run_whose_module_is_gone_asks_for_trust(marker, tmp_path, capsys):
    name, mark = marker
    main(["train", "digits", *SMALL, f"--model.encoder={name}.Encoder", "--out", "run"])
    as_a_new_process(name)
    mark.unlink()
    (tmp_path / "moved").mkdir()
    shutil.move(f"{name}.py", tmp_path / f"moved/{name}.py")
    shutil.move("run", tmp_path / "moved/run")
    os.chdir(tmp_path / "moved")
    assert f"--trust {name}" in refused(capsys, "evaluate", "run", "--total-draws=4")
    assert not mark.exists()
    main(["evaluate", "run", "--total-draws=4", "--trust", name])


def test_a_run_is_known_from_the_instant_of_its_commit(marker, monkeypatch):
    """A process that was killed between commit and memory left its own run as a stranger's."""
    name, _ = marker
    committed = store.commit

    def then_killed(manifest, *args, **kwargs):
        committed(manifest, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", then_killed)
        with pytest.raises(SystemExit, match="130"):
            main(["train", "digits", *SMALL, f"--model.encoder={name}.Encoder", "--out", "run"])
    main(["train", "--resume", "run"])
    assert len(list(memory.folder().iterdir())) < 3  # what it was before is forgotten


@pytest.fixture
def strangers(marker, tmp_path, monkeypatch):
    """A run of somebody else, which names a class of theirs."""
    name, mark = marker
    with config.granting(working_folder=True):
        runs.train(config.read("digits", [*SMALL]), "base")
    main(["train", "digits", *SMALL, f"--model.encoder={name}.Encoder", "--out", "run"])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    sys.modules.pop(name)
    sys.path[:] = [entry for entry in sys.path if entry != os.getcwd()]
    mark.unlink()
    return name, mark


COMMANDS = [
    ["evaluate", "run", "--total-draws=4"], ["sample", "run"], ["reconstruct", "run"], ["encode", "run"],
    ["components", "run"], ["extend", "run"], ["grow", "run"], ["train", "--resume", "run", "--training.epochs=2"],
    ["train", "digits", *SMALL, "--start.run=run"],
]  # fmt: skip


def test_a_strangers_run_executes_nothing_until_it_is_trusted(strangers, capsys):
    name, mark = strangers
    for words in COMMANDS:
        assert f"--trust {name}" in refused(capsys, *words), words
    for call in (lambda: mixvae.load("run"), lambda: mixvae.open_run("run").config):
        with pytest.raises(ValueError, match="--trust"):
            call()
    main(["list", "."])
    assert not mark.exists()
    main(["sample", "run", "--n=2", "--trust", name])
    assert mark.exists()
    main(["sample", "run", "--n=2", f"--trust={name}"])
    assert mixvae.load("run", trust=[name]).posterior.components == 1
    assert "takes the name of a package" in refused(capsys, "sample", "run", "--trust")


def test_a_remembered_run_that_was_changed_is_a_strangers(marker, capsys):
    """The memory is of what a run holds: a class that was slipped into a known run is not trusted."""
    name, _ = marker
    main(["train", "digits", *SMALL, f"--model.encoder={name}.Encoder", "--out", "run"])
    content = read_json("run/run.json")
    content["config"]["model"]["decoder"] = {"class_path": "os.system", "command": "touch pwned"}
    content.pop("checksum")
    Path("run/run.json").write_text(json.dumps(content | {"checksum": checksum(canonical(content))}))
    for trust in ([], ["--trust", name]):
        assert f"names {'os.system as model.decoder' if trust else name}" in refused(capsys, "sample", "run", *trust)
    assert not Path("pwned").exists()


def test_the_description_of_a_model_built_in_python_is_checked(tmp_path):
    for spec in (
        {"class_path": "os.system", "init_args": {"command": "touch pwned"}},
        {"class_path": "mixvae.MLPDecoder", "init_args": {"activation": {"object": "os.system"}}},
        {"class_path": "mixvae.sweeps._children.subprocess.Popen"},
        {"class_path": "mixvae.networks._dense.torch.load"},
        {"partial": {"object": "builtins.eval"}, "args": ["1"]},
        {"attribute": "system", "of": {"object": "torch.nn.Linear"}},
    ):
        with pytest.raises(ValueError, match="--trust"):
            config.check_description({"model": spec}, "run.json")
    posterior = mixvae.SeparateEncoders(functools.partial(mixvae.networks.GatedEncoder, (1, 8, 8), 2), 2)
    for prior in (mixvae.StandardNormal(2), mixvae.VampPrior(posterior, (1, 8, 8), 3)):  # whose squash is torch.sigmoid
        model = mixvae.MixtureVAE(posterior, prior, mixvae.MLPDecoder(2, (1, 8, 8)))
        assert config.check_description(config.describe(model, (1, 8, 8)), "run.json") == []


def test_a_grid_that_names_a_strangers_class_imports_nothing(marker, capsys):
    name, mark = marker
    for axis in (f"model.encoder: {name}.Encoder", f"model.encoder.class_path: {name}.Encoder"):
        Path("grid.yaml").write_text(f"axes: {{a: {{b: {{{axis}}}}}}}\n")
        assert f"--trust {name}" in refused(capsys, "sweep", "grid.yaml")
    assert not mark.exists()
    small = ", ".join(flag.removeprefix("--").replace("=", ": ") for flag in SMALL)
    Path("grid.yaml").write_text(
        f"set: {{{small}}}\ntotal_draws: 4\nout: cells\naxes: {{a: {{b: {{model.encoder: {name}.Encoder}}}}}}\n"
    )
    main(["sweep", "grid.yaml", "--trust", name])  # the child is given the grant
    assert runs.open_run("cells/b").state == "done"


def test_working_directory_cannot_shadow_installed_modules(capsys):
    """A `rich.py` beside the data was imported by a sweep's children."""
    Path("rich.py").write_text("raise SystemExit('hijacked')")
    Path("grid.yaml").write_text(
        "set: {training.epochs: 1, data.limit: 60, model.latent: 2, training.batch: 60}\ntotal_draws: 4\nexamples: 5\n"
        "out: cells\naxes: {a: {b: {}}}\n"
    )
    main(["sweep", "grid.yaml"])
    assert runs.open_run("cells/b").state == "done"
    assert os.getcwd() not in sys.path
    program = Path(sys.executable).with_name("mixvae")
    done = subprocess.run([program, "list", "cells"], capture_output=True, text=True)
    assert (done.returncode, "hijacked" in done.stderr) == (0, False)


def test_a_state_folder_that_cannot_be_read_is_as_good_as_none(monkeypatch):
    """Catches a run without classes of anybody's that a user with another's home could not open."""
    monkeypatch.setenv("XDG_STATE_HOME", f"/{'x' * 300}")  # which raises, as a folder without permission does
    memory.check({"config": None, "model": None, "recipe": {}, "files": {}}, "run.json", config.NOBODY)


def test_memory_holds_one_file_for_a_training(marker):
    name, _ = marker
    words = [*SMALL, f"--model.encoder={name}.Encoder", "--training.epochs=4", "--training.save_every=0"]
    main(["train", "digits", *words, "--out", "run"])
    assert len(list(memory.folder().iterdir())) == 1
    assert torch.__version__
