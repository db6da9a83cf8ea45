"""Files survive crashes, and damaged ones are refused in one line."""

import errno
import json
import os
import random
import re
import stat
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import fork
from mixvae.files import _commits as commits
from mixvae.files import (
    atomic,
    canonical,
    check_file,
    check_folder,
    checksum,
    commit,
    is_intact,
    load_tensors,
    load_weights,
    read_json,
    read_manifest,
    read_part,
    remove_orphans,
    save_weights,
    settle,
    state_from_bytes,
    state_to_bytes,
    weights_from_bytes,
    weights_to_bytes,
    write_json,
    write_text,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
KILLED = 9


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Single files.


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    long = tmp_path / ("x" * 300)
    for path, told in (
        (Path("/proc/x/y"), "--out it cannot be written: no file can be made in /proc (No such file or directory); "),
        (tmp_path / "file" / "x" / "y", f"--out it cannot be made: {tmp_path}/file is a file; remove it, or"),
        (tmp_path / "dangling" / "y", f"--out it cannot be made: {tmp_path}/dangling is a broken link; remove it"),
        (long / "y", "--out it has a name of more than 200 bytes: give a shorter one"),
    ):
        for check in (check_file, check_folder):
            with pytest.raises(ValueError, match=re.escape(told)):
                check(path, "--out it")
    with pytest.raises(ValueError, match="folder is a directory: give the name of a file, or remove it"):
        check_file(tmp_path / "folder")
    with pytest.raises(ValueError, match="more than 200 bytes"):
        check_file(long)
    for check in (check_file, check_folder):
        check(tmp_path / "new" / "er")
    check_folder(tmp_path / "folder")
    check_file(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to the administrator")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match=r"no file can be made in .* \(Permission denied\)"):
            check_file(tmp_path / "x")
    finally:
        tmp_path.chmod(0o700)


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise RuntimeError
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_file_is_synced_before_replacing_and_its_name_after(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    write_text(tmp_path / "deep" / "a.txt", "new")
    assert order == ["fsync", "replace", "fsync"]


def test_a_full_disk_keeps_the_old_file_and_says_which(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: No space left on device"):
        write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_writers_of_one_path_never_share_a_temporary_name(tmp_path):
    path = tmp_path / "a.json"

    def write(letter):
        for _ in range(30):
            write_json(path, letter * 5000)

    writers = [fork(lambda letter=letter: write(letter)) for letter in "abc"]
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        if path.exists():
            assert read_json(path) in {letter * 5000 for letter in "abc"}
    assert [status(pid) for pid in writers] == [0, 0, 0]
    assert read_json(path) in {letter * 5000 for letter in "abc"}
    assert names(tmp_path) == ["a.json"]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / "b").write_text("")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000], ids=range(4))
def test_what_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not a JSON file") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_json_refuses_nan_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_json_stays_readable_and_holds_paths_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"runs/\xff\xe9")
    write_json(tmp_path / "a.json", {"path": name, "name": "Jäger"})
    assert read_json(tmp_path / "a.json")["path"] == name
    assert "Jäger".encode() in (tmp_path / "a.json").read_bytes()
    assert len(checksum(canonical(name))) == 64


# One text for one value.


def test_canonical_floats_are_exact():
    assert canonical(0.1 + 0.2) != canonical(0.3)
    assert canonical(-0.0) != canonical(0.0)
    assert canonical(1e-300) == f'"{(1e-300).hex()}"'
    assert canonical(float("inf")) != canonical(float("-inf"))
    assert canonical(float("nan")) == canonical(float("nan"))


def test_canonical_tells_types_apart():
    values = [1, 1.0, True, "1", "true", None, "null", (1.0).hex(), "=" + (1.0).hex(), float("nan"), "nan", "=nan", [1]]
    assert len({canonical(value) for value in values}) == len(values)


def test_canonical_ignores_key_order_and_tuple_versus_list():
    assert canonical({"a": (1, 2), "b": {}}) == canonical({"b": {}, "a": [1, 2]})
    assert canonical([1, 2]) != canonical([2, 1])


def test_canonical_takes_integer_keys_like_json_and_no_others(tmp_path):
    assert canonical({3: "x"}) == canonical(json.loads(json.dumps({3: "x"})))
    for key in (True, None, 1.5, (1, 2)):
        with pytest.raises(ValueError, match="keys are text or integers"):
            canonical({key: "x"})
    with pytest.raises(ValueError, match="two keys .* are the same text"):
        canonical({1: "a", "1": "b"})


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)


@given(VALUES, VALUES)
def test_canonical_survives_json_and_differs_where_values_do(one, other):
    assert canonical(json.loads(json.dumps(one))) == canonical(one)
    assert (canonical(one) == canonical(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


# Several files, one commit point.

OLD = {"state": ("last/state.pt", b"old state" * 9), "weights": ("model.safetensors", b"old weights" * 9)}
NEW = {"state": ("last/state.pt", b"new state" * 9), "weights": ("model.safetensors", b"new weights" * 9)}


def parts_of(manifest):
    """Epoch of a commit and all of its parts, which must be of the same commit."""
    read = {name: read_part(manifest, name) for name in read_manifest(manifest)["files"]}
    (epoch,) = {content["epoch"] for content, _ in read.values()}
    return epoch, {name: data for name, (_, data) in read.items()}


def whole(parts):
    return {name: data for name, (_, data) in parts.items()}


def interrupt(monkeypatch, k, end):
    """Let the k-th step of writing end in something else; returns the steps taken."""
    steps = []
    targets = [(os, "replace"), (os, "fsync"), (Path, "write_bytes"), (Path, "mkdir"), (Path, "unlink")]
    for owner, name in targets:
        real = getattr(owner, name)

        def step(*arguments, _real=real, _name=name, **named):
            steps.append(_name)
            if len(steps) == k:
                if _name == "write_bytes":
                    _real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                end()
            return _real(*arguments, **named)

        monkeypatch.setattr(owner, name, step)
    return steps


def steps_of_a_commit(folder, monkeypatch):
    commit(folder / "count" / "run.json", {"epoch": 1}, OLD)
    with monkeypatch.context() as patch:
        steps = interrupt(patch, -1, None)
        commit(folder / "count" / "run.json", {"epoch": 2}, NEW)
    assert len(steps) > 10
    return len(steps)


def test_kill_at_any_step_leaves_the_old_commit_or_the_new_one(tmp_path, monkeypatch):
    seen = set()
    for k in range(1, steps_of_a_commit(tmp_path, monkeypatch) + 1):
        manifest = tmp_path / str(k) / "run.json"
        commit(manifest, {"epoch": 1}, OLD)

        def write(manifest=manifest, k=k):
            interrupt(monkeypatch, k, lambda: os._exit(KILLED))
            commit(manifest, {"epoch": 2}, NEW)

        assert status(fork(write)) == KILLED
        epoch, read = parts_of(manifest)
        assert read == whole(NEW if epoch == 2 else OLD), f"killed at step {k}"
        seen.add(epoch)
        settle(manifest, read_manifest(manifest))  # as the next trainer does
        assert parts_of(manifest) == (epoch, read)
        assert (manifest.parent / "model.safetensors").read_bytes() == read["weights"]
        commit(manifest, {"epoch": 3, "files": read_manifest(manifest)["files"]}, {"state": ("last/state.pt", b"3")})
        assert parts_of(manifest) == (3, {"state": b"3", "weights": read["weights"]})
    assert seen == {1, 2}


def test_a_first_commit_that_is_killed_is_none(tmp_path, monkeypatch):
    seen = set()
    for k in range(1, 12):
        manifest = tmp_path / str(k) / "run.json"

        def write(manifest=manifest, k=k):
            interrupt(monkeypatch, k, lambda: os._exit(KILLED))
            commit(manifest, {"epoch": 1}, OLD)

        assert status(fork(write)) == KILLED
        seen.add(manifest.exists())
        if manifest.exists():
            assert parts_of(manifest) == (1, whole(OLD))
        assert all(
            name.rpartition("/")[2].startswith(".") for name in names(tmp_path / str(k)) if not manifest.exists()
        )
    assert False in seen


def test_error_at_any_step_is_raised_only_before_the_commit(tmp_path, monkeypatch):
    """An error after it would leave a trainer that goes on with files of an older commit."""
    for k in range(1, steps_of_a_commit(tmp_path, monkeypatch) + 1):
        manifest = tmp_path / str(k) / "run.json"
        commit(manifest, {"epoch": 1}, OLD)

        def end():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        failed = ""
        with monkeypatch.context() as patch:
            interrupt(patch, k, end)
            try:
                commit(manifest, {"epoch": 2}, NEW)
            except OSError as error:
                failed = str(error)
        assert "cannot write" in failed or not failed
        epoch, read = parts_of(manifest)
        assert epoch == (1 if failed else 2), f"failed at step {k}"
        assert read == whole(OLD if failed else NEW)


def test_staged_files_are_found_and_then_settled(tmp_path, monkeypatch):
    manifest = tmp_path / "run.json"
    with monkeypatch.context() as patch:
        patch.setattr(commits, "settle", lambda *_: None)
        content = commit(manifest, {"epoch": 1}, OLD)
    assert not (tmp_path / "model.safetensors").exists()
    assert parts_of(manifest) == (1, whole(OLD))
    assert all(is_intact(manifest, entry) for entry in content["files"].values())
    settle(manifest, content)
    assert names(tmp_path) == ["last/state.pt", "model.safetensors", "run.json"]
    assert parts_of(manifest) == (1, whole(OLD))


def test_failing_last_check_keeps_a_commit_from_counting(tmp_path):
    """A trainer may lose its lease while it writes its weights."""
    manifest = tmp_path / "run.json"
    commit(manifest, {"epoch": 1}, OLD)

    def lost():
        assert len(list(tmp_path.rglob("*.staged*"))) == 2, "it comes after the slow part"
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        commit(manifest, {"epoch": 2}, NEW, lost)
    assert parts_of(manifest) == (1, whole(OLD))


def test_readers_see_whole_commits_while_others_commit(tmp_path):
    manifest = tmp_path / "run.json"

    def write(first):
        for epoch in range(first, 120, 2):
            commit(manifest, {"epoch": epoch}, {"state": ("last/state.pt", str(epoch).encode() * 500)})

    write(118)
    writers = [fork(lambda first=first: write(first)) for first in (0, 1)]  # and two writers take turns
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        content, data = read_part(manifest, "state")
        assert data == str(content["epoch"]).encode() * 500
    assert [status(pid) for pid in writers] == [0, 0]
    content, data = read_part(manifest, "state")
    assert data == str(content["epoch"]).encode() * 500
    assert names(tmp_path) == ["last/state.pt", "run.json"]


def test_stopped_writer_does_not_block_others_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(commits, "TURN_SECONDS", 0.1)
    with commits._turn(tmp_path):
        commit(tmp_path / "run.json", {"epoch": 1}, OLD)
    assert parts_of(tmp_path / "run.json") == (1, whole(OLD))


def one_line_or_equal(manifest, committed, name="weights"):
    """Read a part of a damaged commit: it is refused in one line, or exactly what was committed."""
    refused = ""
    try:
        content, data = read_part(manifest, name)
    except (ValueError, FileNotFoundError) as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
        assert str(manifest.parent) in refused
        return False
    assert canonical(content) == canonical(committed[0])
    assert data == committed[1]
    return True


@pytest.mark.parametrize("file", ["run.json", "model.safetensors"])
def test_no_flipped_bit_is_silently_something_else(tmp_path, file):
    manifest, path = tmp_path / "run.json", tmp_path / file
    commit(manifest, {"epoch": 0.1, "rows": [{"a": 1, "b": None}, {"a": 2.5}], "name": "x1.5"}, NEW)
    committed, good, draw = read_part(manifest, "weights"), path.read_bytes(), random.Random(0)
    kept = 0
    for position in range(len(good)):
        for flip in {1 << draw.randrange(8), draw.randrange(1, 256)}:
            bad = bytearray(good)
            bad[position] ^= flip
            path.write_bytes(bad)
            kept += one_line_or_equal(manifest, committed)
    assert kept < len(good) / 5  # white space, and digits that a float does not need


@pytest.mark.parametrize("file", ["run.json", "model.safetensors"])
def test_no_truncated_or_longer_file_is_silently_something_else(tmp_path, file):
    manifest, path = tmp_path / "run.json", tmp_path / file
    commit(manifest, {"epoch": 1}, NEW)
    committed, good = read_part(manifest, "weights"), path.read_bytes()
    for size in range(len(good) - 1):
        path.write_bytes(good[:size])
        assert not one_line_or_equal(manifest, committed)
    path.write_bytes(good + b"x")
    assert not one_line_or_equal(manifest, committed)
    path.unlink()
    assert not one_line_or_equal(manifest, committed)


def test_files_of_two_commits_are_not_mixed_by_hand(tmp_path):
    for folder, parts in (("a", OLD), ("b", NEW)):
        commit(tmp_path / folder / "run.json", {"epoch": 1}, parts)
    os.replace(tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated, damaged or replaced: .* run\.json names"):
        read_part(tmp_path / "b" / "run.json", "weights")
    assert not is_intact(tmp_path / "b" / "run.json", read_manifest(tmp_path / "b" / "run.json")["files"]["weights"])
    assert read_part(tmp_path / "b" / "run.json", "state")[1] == NEW["state"][1]


@pytest.mark.parametrize(
    "files",
    [None, [], {"a": 1}, {"a": {"path": "x"}}, {"a": {"path": "x", "sha256": "0"}}]
    + [{"a": {"path": path, "sha256": "0" * 64}} for path in ("/etc/passwd", "../x", "a/../../x", "", "a/b/c", 3)]
    + [{n: {"path": "x", "sha256": "0" * 64} for n in "ab"}],
)
def test_a_strangers_manifest_is_checked_before_it_is_believed(tmp_path, files):
    content = {"files": files}
    write_json(tmp_path / "run.json", content | {"checksum": checksum(canonical(content))})
    with pytest.raises(ValueError, match=r"run\.json is damaged: "):
        read_manifest(tmp_path / "run.json")


@pytest.mark.parametrize("path", ["../x", "/x", "a/b/c"])
def test_a_commit_elsewhere_is_refused_and_writes_nothing(tmp_path, path):
    with pytest.raises(ValueError, match="cannot be committed"):
        commit(tmp_path / "run.json", {}, {"a": (path, b"")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        commit(tmp_path / "run.json", {"x": float("nan")}, OLD)
    assert names(tmp_path) == []


def test_a_part_that_a_commit_does_not_have_is_one_line(tmp_path):
    commit(tmp_path / "run.json", {}, {})
    with pytest.raises(ValueError, match=r"run\.json names no weights"):
        read_part(tmp_path / "run.json", "weights")
    with pytest.raises(FileNotFoundError):
        read_part(tmp_path / "other.json", "weights")


# What killed processes leave.


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def orphans(folder, monkeypatch):
    """An unfinished and a staged file, as killed writers leave them."""
    before = set(folder.rglob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(RuntimeError), atomic(folder / "config.yaml") as temporary:  # noqa: PT012
            temporary.write_text("half")
            raise RuntimeError
    with pytest.raises(RuntimeError):
        commit(folder / "run.json", {"epoch": 2}, NEW, lambda: (_ for _ in ()).throw(RuntimeError))
    return sorted(set(path for path in folder.rglob(".*") if path.is_file()) - before)


def test_orphans_are_ignored_and_taken_away_by_age_alone(tmp_path, monkeypatch):
    commit(tmp_path / "run.json", {"epoch": 1}, OLD)
    left = orphans(tmp_path, monkeypatch)
    assert len(left) == 3
    assert parts_of(tmp_path / "run.json") == (1, whole(OLD))
    settle(tmp_path / "run.json", read_manifest(tmp_path / "run.json"))
    assert all(path.exists() for path in left), "they may be another writer's work in progress"
    for path in left:
        age(path, 4000)
    commit(tmp_path / "run.json", {"epoch": 3}, OLD)
    assert names(tmp_path) == ["last/state.pt", "model.safetensors", "run.json"]


def test_age_is_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    """A machine whose clock is hours ahead of the file server's would take away what others write at this moment."""
    commit(tmp_path / "run.json", {"epoch": 1}, OLD)
    left = orphans(tmp_path, monkeypatch)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 1e5)
    commit(tmp_path / "run.json", {"epoch": 3}, {})
    assert all(path.exists() for path in left)


def test_ordinary_files_are_never_orphans(tmp_path):
    ordinary = ["a.json", ".notes.partial.md", ".partial", "x.1-00000000.partial", ".env.staged", ".a.staged.txt", ".b"]
    for name in ordinary:
        (tmp_path / name).write_text("")
        age(tmp_path / name, 1e6)
    (tmp_path / ".x.1-00000000.partial").mkdir()
    remove_orphans(tmp_path)
    assert names(tmp_path) == sorted(ordinary)
    remove_orphans(tmp_path / "missing")


@pytest.mark.parametrize(("mine", "other"), [("a", "b"), ("a", "sub/b"), ("sub/a", "b")])
def test_committed_but_unrenamed_file_is_no_neighbours_orphan(tmp_path, monkeypatch, mine, other):
    """Evaluations share a folder: one that was killed right after its commit has but its staged files."""
    (tmp_path / "sub").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(commits, "settle", lambda *_: None)
        folder = "" if mine.startswith("sub") else "sub/"
        commit(tmp_path / f"{mine}.json", {"epoch": 1}, {"arrays": (f"{folder}a.npz", b"arrays")})
    for path in tmp_path.rglob(".*.staged*"):
        age(path, 1e5)
    folder = "" if other.startswith("sub") else "sub/"
    commit(tmp_path / f"{other}.json", {"epoch": 1}, {"arrays": (f"{folder}b.npz", b"others")})
    assert read_part(tmp_path / f"{mine}.json", "arrays")[1] == b"arrays"


# Tensors.


def test_weights_survive_a_round_trip(tmp_path):
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(tmp_path / "w.safetensors", net.state_dict())
    load_tensors(other, load_weights(tmp_path / "w.safetensors"), "w")
    assert torch.equal(net.weight, other.weight)


def test_tied_weights_are_stored(tmp_path):
    """Encoders may share a trunk; safetensors refuses memory that is shared."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    read = weights_from_bytes(weights_to_bytes(net.state_dict()), "w")
    assert torch.equal(read["0.weight"], read["1.weight"])
    assert torch.equal(weights_from_bytes(weights_to_bytes({"t": net[0].weight.T}), "w")["t"], net[0].weight.T)


@pytest.mark.parametrize("keep", [0, 5, -3])
def test_truncated_weights_are_refused(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(3, 2).state_dict())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_weights(path)


@pytest.mark.parametrize(
    ("to_bytes", "read"), [(weights_to_bytes, weights_from_bytes), (state_to_bytes, state_from_bytes)]
)
def test_damaged_tensors_load_or_give_a_one_line_value_error(to_bytes, read):
    good, draw = to_bytes(nn.Linear(3, 2).state_dict()), random.Random(0)
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(draw.choice([1, 1, 5])):
            bad[draw.randrange(min(len(good), 700))] = draw.randrange(256)
        refused = ""
        try:
            read(bytes(bad), "w")
        except ValueError as error:
            refused = str(error)
        assert "\n" not in refused


def test_weights_of_another_model_name_the_first_difference():
    with pytest.raises(ValueError, match=r"the model's weight is \(2, 3\), the file's \(2, 4\)"):
        load_tensors(nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), "w")
    with pytest.raises(ValueError, match=r"the model's bias is \(2,\), the file's none"):
        load_tensors(nn.Linear(3, 2), {"weight": torch.zeros(2, 3)}, "w")
    with pytest.raises(ValueError, match=r"the model's extra is none, the file's \(1,\)"):
        load_tensors(nn.Linear(3, 2), nn.Linear(3, 2).state_dict() | {"extra": torch.zeros(1)}, "w")


def test_weights_are_never_silently_rounded_on_loading():
    half, single, double = (nn.Linear(2, 2).to(kind) for kind in (torch.bfloat16, torch.float32, torch.float64))
    before = single.weight.clone()
    double.weight.data.fill_(0.1)
    with pytest.raises(ValueError, match=r"weight is torch.float64, and would be rounded to the model's torch.float32"):
        load_tensors(single, double.state_dict(), "w")
    assert torch.equal(single.weight, before), "nothing was loaded"
    load_tensors(single, half.state_dict(), "w")  # exact
    assert torch.equal(single.weight, half.weight.float())
    load_tensors(double, single.state_dict(), "w")
    load_tensors(single, double.state_dict(), "w")  # these doubles are single ones
    counts = nn.BatchNorm1d(2)
    wrong = counts.state_dict() | {"num_batches_tracked": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="num_batches_tracked is torch.float32"):
        load_tensors(counts, wrong, "w")


def test_state_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save({"x": Evil()}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match=r"s\.pt is truncated or damaged"):
        state_from_bytes((tmp_path / "s.pt").read_bytes(), tmp_path / "s.pt")
    assert names(tmp_path) == ["s.pt"]
    assert state_from_bytes(state_to_bytes({"x": torch.ones(2), "n": 3}), "s")["n"] == 3


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="has not finished an epoch yet"):
        load_weights(tmp_path / "w.safetensors")
