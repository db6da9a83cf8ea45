"""Runs on the hub: what is pushed, what is pulled, and what is refused; against a server on this machine."""

import getpass
import json
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants  # noqa: E402

import mixvae  # noqa: E402
from conftest import USER_MODULE, Recorded, forge, refused  # noqa: E402
from hub_server import at_hub, serving  # noqa: E402
from mixvae import config, hub, publishing, reports, runs  # noqa: E402
from mixvae.cli import main  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of httpx2
SMALL = [
    "--data.limit=60", "--data.limit_validation=20", "--model.latent=2", "--training.epochs=1",
    "--model.encoder.hidden=[4]", "--model.decoder.hidden=[4]",
]  # fmt: skip
REPO = "ada/S2"


@pytest.fixture(scope="module")
def server():
    with serving() as started:
        yield started


@pytest.fixture
def at(server, monkeypatch, tmp_path):
    """The hub, empty, and a working folder of the test's own."""
    at_hub(monkeypatch, server.url, tmp_path)
    server.reset()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return server


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Evaluated runs of one and two components, by number; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    made = {s: runs.train(config.read("digits", [*SMALL, f"--model.components={s}"]), folder / f"S{s}") for s in (1, 2)}
    for run in made.values():
        runs.evaluate(run, 12, examples=15)
    return made


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run of two components, to change."""
    return Path(shutil.copytree(trained[2].path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def first_push(server, trained, tmp_path_factory):
    """The run of two components on the hub, and what the hub holds then."""
    with pytest.MonkeyPatch.context() as patch:
        at_hub(patch, server.url, tmp_path_factory.mktemp("first"))
        server.reset()
        made = publishing.push(trained[2], REPO, license="mit", baseline=trained[1])
        return made, deepcopy((server.repos, server.blobs))


@pytest.fixture
def pushed(first_push, at):
    """The same for a test of its own."""
    made, held = first_push
    at.repos, at.blobs = deepcopy(held)
    return made


def test_a_pulled_run_is_the_one_that_was_pushed(at, trained, pushed, capsys):
    main(["pull", REPO])
    assert f"runs/S2: {REPO} at commit {pushed.address.revision}; 1 epoch, done" in capsys.readouterr().out
    run = runs.open_run("runs/S2")
    assert run.manifest["hub"] == {"repo": REPO, "commit": pushed.address.revision}
    assert run.recipe.sha256 == trained[2].recipe.sha256
    assert run.metrics == trained[2].metrics
    for name, values in trained[2].load().state_dict().items():
        assert torch.equal(run.load().state_dict()[name], values)
    one, other = runs.evaluation_of(run), runs.evaluation_of(trained[2])
    assert one.results == other.results
    np.testing.assert_array_equal(one.bounds["log_px"], other.bounds["log_px"])
    assert run.evaluate(12, examples=15).results == other.results
    assert [file.name for file in run.layout.evaluations.glob("*.json")] == [
        file.name for file in trained[2].layout.evaluations.glob("*.json")
    ]


def test_only_what_a_run_needs_is_pushed(at, pushed):
    names = {"run.json", "config.yaml", "model.safetensors", "README.md", ".gitattributes"}
    assert {name for name in at.repos[REPO].files if not name.startswith("evaluations/")} == names
    assert {Path(name).suffix for name in at.repos[REPO].files if name.startswith("evaluations/")} == {".json", ".npz"}


def test_the_card_says_what_the_report_says(at, trained, pushed):
    text = at.repos[REPO].files["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "mixvae", "license": "mit", "datasets": ["digits"],
        "tags": ["mixvae", "variational-autoencoder", "mixture-model"],
    }  # fmt: skip
    compared = reports.compare([trained[1], trained[2]])
    for column in (reports.NLL, reports.GAIN, *reports.SPLIT):
        assert publishing.escaped(column.text(compared.table[1])) in text
    results = compared.evaluations[1].results
    assert f"{results['nll_mc_se']:.4f}" in text
    assert "Pareto k̂" in text
    run = trained[2]
    sums = [run.recipe.sha256, run.weights_sha256, run.recipe.identity["data"]["sha256"]]
    assert all(one in text for one in sums)
    assert f"mixvae train {' '.join(SMALL[:1])}" in text
    assert str(run.manifest["runtime"]["git_commit"]) in text
    assert "Nothing in this repository is executed" in text
    assert "one training: says nothing about the method" in text


def section(text, title):
    """One section of a card."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def test_the_card_says_how_the_baseline_was_made(at, trained, pushed):
    """It showed a gain over something that it did not describe."""
    text, base = at.repos[REPO].files["README.md"].decode(), trained[1]
    about, evaluation = section(text, "The baseline, S1"), runs.evaluation_of(base)
    runtime = base.manifest["runtime"]
    for one in (base.recipe.sha256, base.weights_sha256, runtime["git_commit"], evaluation.identity.observations):
        assert str(one) in about
    assert re.search("mixvae train --data.limit=60 .*--out S1$", about, re.MULTILINE)
    assert re.search("mixvae evaluate S1 --draws-per-component 12 ", about)
    assert "| model.components | 1 | 2 |" in about
    assert "model.latent" not in about.partition("| setting |")[2]
    assert "The baseline" not in publishing.card(publishing.pack(base, "packed"), hub.Address(REPO), "mit")


def test_a_baseline_of_the_same_name_is_told_apart(at, trained, copy, tmp_path):
    other = shutil.copytree(trained[1].path, tmp_path / "other" / "S2")
    publishing.push(copy, REPO, license="mit", baseline=other)
    about = section(card_at(at, "main").decode(), r"The baseline, S2 \(baseline\)")
    assert re.search(r"mixvae train .* --out 'S2 \(baseline\)'$", about, re.MULTILINE)
    assert str(tmp_path) not in about


def test_what_a_baseline_does_not_record_is_said(at, copy, trained, tmp_path):
    other = Path(shutil.copytree(trained[1].path, tmp_path / "base"))
    forge(other / "run.json", lambda record: record["runtime"].update(git_commit=None, machine=None))
    publishing.push(copy, REPO, license="mit", baseline=other)
    about = section(card_at(at, "main").decode(), "The baseline, base")
    assert re.search(r"^\| trained with \| mixvae .*, commit not recorded \|$", about, re.MULTILINE)
    assert "| machine | not recorded |" in about


def test_a_baseline_built_in_python_is_described(at, copy, tmp_path):
    data = mixvae.load_dataset("digits", limit=60)
    posterior = mixvae.SeparateEncoders(lambda: mixvae.networks.GatedEncoder(data.shape, 2, (4,)), 1)
    model = mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, data.shape, (4,)))
    mixvae.fit(model, data, epochs=1, run=tmp_path / "base", label="mine")
    runs.evaluate(runs.open_run(tmp_path / "base", model=model), 12, examples=15)
    publishing.push(copy, REPO, license="mit", baseline=tmp_path / "base")
    about = section(card_at(at, "main").decode(), "The baseline, base")
    assert "Built in Python, so no command trains it again" in about
    assert "mixvae train" not in about


def test_the_cards_own_snippet_loads_the_run(at, trained, pushed):
    text = at.repos[REPO].files["README.md"].decode()
    tag = re.search(r'mixvae.load\("(hub://ada/S2@(weights-\w{12}-\w{8}))"\)', text)
    assert at.repos[REPO].tags == {tag[2]: pushed.address.revision}
    at.push(REPO, {"README.md": b"something else"})
    model = mixvae.load(tag[1])
    assert torch.equal(model.state_dict()["log_pi"] if "log_pi" in model.state_dict() else torch.ones(1), torch.ones(1))
    x = trained[2].data.test.batch(slice(0, 3))
    assert torch.equal(model.posterior(x).loc, trained[2].load().posterior(x).loc)


@pytest.fixture
def private_run(tmp_path, monkeypatch):
    """A run on files below a folder whose name nobody should see, started from another run there."""
    home = tmp_path / "home-of-ada"
    (home / "secret").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    data = mixvae.load_dataset("digits", limit=60, binarize="none")
    np.savez(home / "secret" / "mine.npz", x_train=data.train.x.numpy(), x_test=data.test.x[:20].numpy())
    flags = [f"--data.name={home}/secret/mine.npz", *SMALL[2:]]
    runs.train(config.read("digits", flags), home / "secret" / "first")
    loggers = f"--training.loggers=[{{class_path: lightning_fabric.loggers.CSVLogger, root_dir: {home}/secret/logs}}]"
    run = runs.train(
        config.read("digits", [*flags, f"--start.run={home}/secret/first", loggers]), home / "secret" / "second"
    )
    run.evaluate(12, examples=10)
    return run


def test_nothing_of_the_machine_is_pushed(at, private_run, tmp_path):
    base = private_run.path.with_name("first")
    runs.evaluate(base, 12, examples=10)
    publishing.push(private_run, REPO, license="mit", baseline=base)
    whole = b"".join(at.repos[REPO].files.values()) + "".join(at.repos[REPO].files).encode()
    for word in (tmp_path.name, "home-of-ada", "secret", str(Path.home()), f"/{getpass.getuser()}/"):
        assert word.encode() not in whole, word
    record = json.loads(at.repos[REPO].files["run.json"])
    assert record["runtime"]["data"]["origin"]["name"] == record["config"]["data"]["name"] == "mine.npz"
    assert record["config"]["start"]["run"] == "first"


def test_a_pulled_run_asks_for_data_of_ones_own(at, private_run, capsys):
    publishing.push(private_run, REPO, license="mit")
    data = private_run.data_config.name
    main(["pull", REPO, "--out", "pulled"])
    assert "say where they are with --data.name" in refused(capsys, "evaluate", "pulled")
    assert runs.open_run("pulled", data=data).data.sha256() == private_run.data.sha256()
    shutil.copy(data, "mine.npz")  # beside it
    assert runs.open_run("pulled").evaluate(12, examples=10).results == runs.evaluation_of(private_run).results


def test_a_path_in_the_recipe_is_not_given_away(at, copy, capsys):
    def leak(record):
        record["recipe"]["identity"]["model"]["encoder"]["vocabulary"] = "/home/ada/words.txt"

    forge(copy / "run.json", leak)
    recipe = mixvae.runs.open_run(copy).recipe.sha256
    for file in copy.glob("evaluations/*.json"):  # which is theirs too
        forge(file, lambda record: record["identity"].update(recipe=recipe))
    error = refused(capsys, "--quiet", "push", copy, REPO, "--license=mit")
    assert "model.encoder.vocabulary '/home/ada/words.txt'" in error
    assert at.repos == {}


@pytest.mark.parametrize("broken", ["POST /api/models/.*/commit", "PUT /storage", "POST .*/preupload"])
def test_a_push_that_breaks_off_shows_nothing_and_resumes(at, trained, broken, capsys):
    at.refused = broken
    assert "the hub answers 503" in refused(capsys, "--quiet", "push", trained[2].path, REPO, "--license=mit")
    assert set(at.repos[REPO].files) == {".gitattributes"}
    stored, at.refused, at.requests = len(at.blobs), None, []
    main(["push", str(trained[2].path), REPO, "--license=mit"])
    assert len(at.asked("PUT /storage")) == 2 - stored
    assert len(at.repos[REPO].commits) == 2
    mixvae.load(f"hub://{REPO}")


def test_the_same_push_again_changes_nothing(at, trained, pushed):
    again = publishing.push(trained[2], REPO, license="mit", baseline=trained[1])
    assert again == pushed
    assert len(at.repos[REPO].commits) == 2


def named_by(card):
    """The tag that a model card says to pull."""
    return re.search(rf"^mixvae pull {REPO}@(\S+)$", card.decode(), re.MULTILINE)[1]


def card_at(at, revision):
    return at.repos[REPO].find(revision)[1]["README.md"]


def test_a_card_names_a_tag_of_what_it_describes(at, copy, trained):
    """After a further evaluation, the card named a tag that stayed at the commit before."""
    first = publishing.push(copy, REPO, license="mit").address.revision
    runs.evaluate(copy, 24, examples=20)
    second = publishing.push(copy, REPO, license="mit").address.revision
    third = publishing.push(copy, REPO, license="mit", baseline=trained[1]).address.revision
    fourth = publishing.push(copy, REPO, license="cc-by-4.0").address.revision
    for revision in (first, second, third, fourth):
        tag = named_by(card_at(at, revision))
        assert tag.startswith(f"weights-{runs.open_run(copy).weights_sha256[:12]}-")
        assert at.repos[REPO].tags[tag] == revision
    pulled = runs.open_run(hub.pull(f"{REPO}@{named_by(card_at(at, 'main'))}", "pulled"))
    assert runs.evaluation_of(pulled)["examples"] == 20
    assert (pulled.path / "README.md").read_bytes() == card_at(at, "main")


def test_the_next_push_makes_the_tag_that_is_missing(at, copy, capsys):
    """The commit counts before its tag is made: where the push breaks off between the two, the same one ends it."""
    publishing.push(copy, REPO, license="mit")
    runs.evaluate(copy, 24, examples=20)
    at.refused = "POST .*/tag/"
    assert "the hub answers 503" in refused(capsys, "--quiet", "push", copy, REPO, "--license=mit")
    at.refused, commits = None, list(at.repos[REPO].commits)
    main(["push", str(copy), REPO, "--license=mit"])
    assert at.repos[REPO].commits == commits
    assert at.repos[REPO].tags[named_by(card_at(at, "main"))] == commits[-1][0]


def test_a_return_to_an_earlier_push_finds_its_tag(at, copy):
    first, _, third = (publishing.push(copy, REPO, license=one).address.revision for one in ("mit", "cc0-1.0", "mit"))
    tag = named_by(card_at(at, third))
    assert len(at.repos[REPO].tags) == 2
    assert at.repos[REPO].find(tag)[1] == at.repos[REPO].find(third)[1] == at.repos[REPO].find(first)[1]


def test_evaluations_of_older_weights_go(at, copy):
    publishing.push(copy, REPO, license="mit")
    before = set(at.repos[REPO].files)
    run = runs.train(config.read("digits", [*SMALL, "--model.components=2", "--training.epochs=3"]), copy, resume=True)
    assert run.weights_sha256 != json.loads(at.repos[REPO].files["run.json"])["files"]["weights"]["sha256"]
    run.evaluate(14, examples=15)
    publishing.push(copy, REPO, license="mit")
    after = set(at.repos[REPO].files)
    assert len(before) == len(after)
    assert {name.rpartition(".")[0] for name in after - before} == {"evaluations/test-15-draws14-seed0-refined"}
    assert len(at.repos[REPO].tags) == 2


def test_somebody_elses_commit_meanwhile_is_not_overwritten(at, trained, pushed, capsys):
    at.meanwhile = lambda: at.push(REPO, at.repos[REPO].files | {"notes.txt": b"theirs"})
    error = refused(capsys, "--quiet", "push", trained[2].path, REPO, "--license=apache-2.0")
    assert f"{REPO} was changed by somebody else meanwhile: run the command again" in error
    main(["push", str(trained[2].path), REPO, "--license=apache-2.0"])
    assert at.repos[REPO].files["notes.txt"] == b"theirs"


def test_a_gitignore_on_the_hub_does_not_drop_files(at, trained, pushed):
    at.push(REPO, {"run.json": b"older", ".gitignore": b"*"})
    publishing.push(trained[2], REPO, license="mit")
    assert runs.open_run(hub.pull(REPO, "pulled")).evaluate(12, examples=15)


def test_an_interrupted_download_goes_on_where_it_was(at, pushed):
    at.break_after = {"/storage/": 1000}
    hub.pull(REPO, "pulled")
    assert len(at.asked("GET /storage")) == 3  # the weights in two parts, the arrays in one
    assert runs.open_run("pulled").state == "done"


def test_the_next_pull_downloads_what_is_missing(at, pushed, capsys):
    at.refused = "GET .*npz|GET /storage"
    assert "the hub answers 503" in refused(capsys, "--quiet", "pull", REPO)
    assert not Path("runs").exists()
    at.refused, at.requests = None, []
    main(["pull", REPO])
    assert not at.asked("GET .*resolve.*run.json")
    assert sorted(Path().glob("runs/*")) == [Path("runs/S2")]


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


FILES = ["model.safetensors", "config.yaml", "run.json", "npz", "json"]


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("how", ["on the way", "in the repository", "another length", "gone"])
def test_a_file_that_differs_is_refused_and_nothing_appears(at, pushed, which, how, capsys):
    files = at.repos[REPO].files
    name = next(name for name in files if name.endswith(which) and (which != "json" or name != "run.json"))
    match how:
        case "on the way":
            at.swapped[name] = flipped(files[name])
        case "in the repository":
            at.push(REPO, files | {name: flipped(files[name])})
        case "another length":
            at.push(REPO, files | {name: files[name] + b" x"})
        case "gone":
            at.push(REPO, {path: content for path, content in files.items() if path != name})
    error = refused(capsys, "--quiet", "pull", REPO)
    assert name in error
    assert "is not what its run.json lists" in error or "has no run.json" in error
    assert not Path("runs").exists()
    with pytest.raises(ValueError, match=re.escape(name)):
        mixvae.load(f"hub://{REPO}")
    at.swapped.clear()
    main(["pull", f"{REPO}@{pushed.address.revision}"])


@pytest.mark.parametrize("name", ["model.safetensors", "run.json"])
def test_a_damaged_cache_is_mended(at, pushed, name):
    path = hub.fetch(REPO) / name
    damaged = path.resolve()
    damaged.write_bytes(flipped(damaged.read_bytes()))
    at.requests.clear()
    mixvae.load(str(pushed.address))
    assert len(at.asked(f"GET .*{'storage' if 'model' in name else name}")) == 1


STRANGE = [
    "conftest.py",
    "last/state.pt",
    "evaluations/x.py",
    "../model.safetensors",
    "/etc/passwd",
    "evaluations/a/b.json",
]


@pytest.mark.parametrize("path", STRANGE)
def test_a_run_brings_no_files_but_those_of_a_run(at, pushed, path, capsys, tmp_path):
    files = dict(at.repos[REPO].files)
    (record := tmp_path / "run.json").write_bytes(files["run.json"])
    forge(record, lambda content: content["hub"]["files"].append(hub.entry_of(path, b"x")))
    at.push(REPO, files | {"run.json": record.read_bytes(), path: b"x"})
    error = refused(capsys, "--quiet", "pull", REPO)
    assert "was not written by `mixvae push`" in error
    assert repr(path) in error
    assert not at.asked(re.escape(f"resolve/main/{path}"))


@pytest.mark.parametrize(
    "listing", [5, {"files": 5}, {"files": [{"path": "a"}]}, {"files": [{**hub.entry_of("a", b""), "bytes": "1"}]}]
)
def test_a_listing_of_another_form_is_one_line(at, pushed, listing, capsys, tmp_path):
    (record := tmp_path / "run.json").write_bytes(at.repos[REPO].files["run.json"])
    forge(record, lambda content: content.update(hub=listing))
    at.push(REPO, at.repos[REPO].files | {"run.json": record.read_bytes()})
    assert "run.json of ada/S2 was not written by `mixvae push`: it.hub" in refused(capsys, "--quiet", "pull", REPO)


def test_a_commit_is_loaded_from_the_cache_alone(at, pushed):
    first = mixvae.open_run(str(pushed.address))
    assert first.path.name == pushed.address.revision
    at.requests.clear()
    mixvae.load(str(pushed.address))
    assert at.requests == []


def test_a_branch_is_resolved_anew_and_pinned(at, pushed):
    one = mixvae.open_run(f"hub://{REPO}")
    newer = at.push(REPO, at.repos[REPO].files | {"notes.txt": b"more"})
    assert mixvae.open_run(f"hub://{REPO}").path.name == newer
    assert one.path.name == pushed.address.revision
    one.load()


def test_without_a_network_the_cache_is_used_and_named(at, pushed, monkeypatch):
    hub.fetch(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    seen = Recorded()
    assert hub.fetch(REPO, seen).name == pushed.address.revision
    assert "the hub cannot be reached" in seen.lines[0]
    assert f"using commit {pushed.address.revision} of {REPO} from the cache" in seen.lines[0]


def test_a_download_shows_how_far_it_is(at, pushed):
    seen = Recorded()
    hub.pull(REPO, "pulled", seen)
    done = [done for done, _, _ in seen.seen]
    assert done == sorted(done)
    assert seen.seen[-1][0] == seen.seen[-1][1]


def test_an_upload_shows_how_far_it_is(at, trained):
    seen = Recorded()
    publishing.push(trained[2], REPO, license="mit", progress=seen)
    assert seen.seen[0][0] == 0
    assert seen.seen[-1][0] == seen.seen[-1][1]
    assert seen.seen[-1][0] == sum(
        len(content) for name, content in at.repos[REPO].files.items() if name != ".gitattributes"
    )


def test_pulling_the_same_commit_again_changes_nothing(at, trained, pushed, capsys):
    main(["pull", REPO])
    before = (Path("runs/S2/run.json").stat().st_mtime_ns, sorted(Path("runs/S2").rglob("*")))
    main(["pull", REPO])
    assert (Path("runs/S2/run.json").stat().st_mtime_ns, sorted(Path("runs/S2").rglob("*"))) == before
    publishing.push(trained[2], REPO, license="apache-2.0")
    assert "runs/S2 already exists and is something else" in refused(capsys, "--quiet", "pull", REPO)


def test_a_pull_overwrites_nothing(at, pushed, copy, capsys):
    Path("file").touch()
    for target in (copy, "file"):
        assert "already exists and is something else" in refused(capsys, "--quiet", "pull", REPO, "--out", target)
    Path("empty").mkdir()
    main(["pull", REPO, "--out", "empty"])
    assert runs.open_run("empty").state == "done"


def test_places_no_run_can_be_pulled_to_are_named(at, pushed, copy, capsys):
    """It was all downloaded first; then the system's own words said which temporary folder could not be made."""
    Path("file").touch()
    (copy.parent / "empty").mkdir()
    (copy.parent / "link").symlink_to("empty")
    at.requests.clear()
    for out, told in (
        ("/proc/x/y", "/proc/x/y cannot be written: no file can be made in /proc ("),
        ("file/x", "file/x cannot be made: file is a file; remove it, or name another place"),
        ("x" * 300, "has a name of more than 200 bytes: give a shorter one"),
        ("file", "file already exists and is something else: choose another --out"),
        (copy, "copy already exists and is something else: choose another --out"),
        (copy.parent / "link", "link already exists and is something else: choose another --out"),
    ):
        assert told in refused(capsys, "--quiet", "pull", REPO, "--out", out)
    assert at.requests == []
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize("cache", ["/proc/x", "file", "file/x"])
def test_a_cache_that_cannot_be_written_is_named(at, pushed, capsys, monkeypatch, cache):
    Path("file").touch()
    place = str(Path(cache).absolute())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", place)
    error = refused(capsys, "--quiet", "pull", REPO)
    assert f"the hub's cache cannot be used: {place}" in error
    assert "HF_HOME names another place for it" in error
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_pull_that_cannot_be_written_leaves_nothing(at, pushed, capsys, monkeypatch):
    from mixvae.hub import _download

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_download, "write_bytes", full)
    assert "No space left on device" in refused(capsys, "--quiet", "pull", REPO)
    assert list(Path("runs").iterdir()) == []


def test_a_pulled_run_cannot_resume_but_extends(at, pushed, capsys):
    main(["pull", REPO])
    error = refused(capsys, "train", "--resume", "runs/S2", "--training.epochs=3")
    assert "came without the state that a training resumes from" in error
    main(["extend", "runs/S2", "--epochs=1", "--out", "runs/S3"])
    assert runs.open_run("runs/S3").load().posterior.components == 3


def test_pushing_a_pulled_run_gives_the_same_files(at, trained, pushed):
    publishing.push(hub.pull(REPO, "S2"), "bob/S2", license="mit", baseline=trained[1])
    one, other = (at.repos[repo].files for repo in (REPO, "bob/S2"))
    assert {name for name in one if one[name] != other.get(name)} <= {"README.md", "run.json"}
    assert json.loads(other["run.json"])["hub"] == json.loads(one["run.json"])["hub"]


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A run with a class of its user's, as somebody else sees it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "theirs"), *sys.path])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "theirmodels.py").write_text(USER_MODULE)
    with config.granting("theirmodels"):
        settings = config.read(
            "digits", [*SMALL[:4], "--model.decoder.hidden=[4]", "--model.encoder=theirmodels.MyEncoder"]
        )
        run = runs.train(settings, tmp_path / "strange")
        run.evaluate(12, examples=10)
    yield run
    sys.modules.pop("theirmodels", None)


def test_a_run_that_needs_trust_says_so_and_stops(at, strange, capsys, monkeypatch, tmp_path):
    with config.granting("theirmodels"):
        publishing.push(strange, REPO, license="mit")
    assert "theirmodels.MyEncoder" in at.repos[REPO].files["README.md"].decode()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    sys.modules.pop("theirmodels", None)
    main(["pull", REPO])
    assert "note: runs/S2/run.json names theirmodels.MyEncoder as model.encoder" in capsys.readouterr().out
    assert "--trust theirmodels" in refused(capsys, "sample", "runs/S2")
    with pytest.raises(ValueError, match="--trust theirmodels"):
        mixvae.load(f"hub://{REPO}")
    assert "theirmodels" not in sys.modules
    assert mixvae.load(f"hub://{REPO}", trust=["theirmodels"]).posterior.components == 1


WRONG = {
    "name": (["pull", "S2"], "'S2' is not a run on the hub: write ORG/NAME, or ORG/NAME@REVISION"),
    "nobody's": (["pull", "ada/none"], "the hub has no ada/none, or hides it from you: check the name"),
    "revision": (["pull", f"{REPO}@v9"], f"{REPO} has no revision v9: name a branch, a tag or a whole commit"),
    "address": (["evaluate", f"hub://{REPO}"], f"`mixvae pull {REPO}`"),
    "branch": (["push", "RUN", f"{REPO}@dev", "--license=mit"], "a run is pushed to the branch main: leave out @dev"),
    "no licence": (["push", "RUN", REPO], "give --license, such as --license mit"),
    "licence": (["push", "RUN", REPO, "--license", "MIT License"], "'MIT License' is not a licence"),
    "unknown licence": (["push", "RUN", REPO, "--license", "unheard-of"], '"license" must be one of'),
    "no run": (["push", "nowhere", REPO, "--license=mit"], "nowhere is not a run: it has no run.json"),
    "public": (["push", "RUN", REPO, "--license=mit", "--private"], f"{REPO} is public"),
    "other": (
        ["push", "RUN", "ada/bert", "--license=mit"],
        "ada/bert holds something other than a run (pytorch_model.bin)",
    ),
    "not ours": (["pull", "ada/bert"], "ada/bert holds no run of mixvae: it has no run.json"),
    "scvi": (["pull", "ada/scvi"], "scvi.hub.HubModel reads models of scvi-tools"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(at, trained, pushed, name, capsys):
    at.push("ada/bert", {"pytorch_model.bin": b"x", "README.md": b"bert"})
    at.push("ada/scvi", {"_scvi_required_metadata.json": b"{}", "model.pt": b"x"})
    words, told = WRONG[name]
    before = {repo: held.commits[-1] for repo, held in at.repos.items()}
    assert told in refused(capsys, "--quiet", *(trained[2].path if word == "RUN" else word for word in words))
    assert {repo: held.commits[-1] for repo, held in at.repos.items()} == before
    assert list(Path().iterdir()) == []


def test_tokens_that_are_missing_or_weak_are_told(at, trained, capsys, monkeypatch):
    at.push("bob/S2", {"run.json": b"{}"})
    at.push("bob/private", {"run.json": b"{}"}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    error = refused(capsys, "--quiet", "push", trained[2].path, "bob/S2", "--license=mit")
    assert "the hub does not allow this with your token (you have no right to write here)" in error
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token for ada/S2: run `hf auth login`" in refused(
        capsys, "push", trained[2].path, REPO, "--license=mit"
    )
    assert "the hub has no bob/private, or hides it from you" in refused(capsys, "--quiet", "pull", "bob/private")


def test_no_network_is_one_line(at, trained, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for words in (["pull", REPO], ["push", trained[2].path, REPO, "--license=mit"]):
        assert "the hub cannot be reached (ConnectError: " in refused(capsys, "--quiet", *words)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached" in refused(capsys, "--quiet", "pull", REPO)


def test_without_the_extra_every_door_says_how_to_get_it(at, trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for words in (["pull", REPO], ["push", trained[2].path, REPO, "--license=mit"]):
        assert "pip install 'mixvae[hub]'" in refused(capsys, "--quiet", *words)
    with pytest.raises(ValueError, match=r"mixvae\[hub\]"):
        mixvae.load(f"hub://{REPO}")


def test_damaged_and_unfinished_runs_are_not_pushed(at, copy, capsys):
    from mixvae.files._lease import Lease

    words = ["push", copy, REPO, "--license=mit"]
    lease = Lease.acquire(copy)
    assert "is being trained: wait for its end" in refused(capsys, "--quiet", *words)
    lease.release()
    for path in ("last/state.pt", "model.safetensors", "evaluations/test-15-draws12-seed0-refined.npz"):
        content = (copy / path).read_bytes()
        (copy / path).write_bytes(flipped(content))
        assert path.rpartition("/")[2] in refused(capsys, "--quiet", *words)
        (copy / path).write_bytes(content)
    shutil.rmtree(copy / "evaluations")
    error = refused(capsys, "--quiet", *words)
    assert f"{copy} has no evaluation of its weights: run `mixvae evaluate {copy}` first" in error
    assert at.repos == {}


def test_a_private_run_is_private_from_its_first_file_on(at, trained):
    publishing.push(trained[2], REPO, license="mit", private=True)
    assert at.repos[REPO].private


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c", "a/b@", "hub:/a/b", "a/../b", "a/b@../x", "a--b/c", "a b/c", "/a/b", "ä/b", "a/b@v 1"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="is not a run on the hub"):
        hub.Address.parse(text)


def test_texts_of_a_run_cannot_shape_the_card(at, copy):
    forge(copy / "run.json", lambda record: record["runtime"]["data"].update(name="<script>|x|\n# title\x1b[31m"))
    publishing.push(copy, REPO, license="mit")
    text = at.repos[REPO].files["README.md"].decode()
    assert "<script>" not in text.replace(r"\<script", "")
    assert "\n# title" not in text
    assert "\x1b" not in text
