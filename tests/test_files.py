"""Files survive crashes, and damaged ones are told in one line."""

import os
import stat

import pytest
import torch
from torch import nn

from mixvae.files import (
    RunDirectory,
    atomic,
    load_state,
    load_tensors,
    load_weights,
    read_json,
    save_state,
    save_weights,
    write_json,
    write_text,
)  # fmt: skip


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_is_flushed_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    write_text(tmp_path / "deep" / "a.txt", "new")
    assert order == ["fsync", "replace"]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / "b").write_text("")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json is not a JSON file"):
        read_json(tmp_path / "a.json")


def test_weights_survive_a_round_trip(tmp_path):
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(tmp_path / "w.safetensors", net.state_dict())
    load_tensors(other, load_weights(tmp_path / "w.safetensors"), "w")
    assert torch.equal(net.weight, other.weight)


@pytest.mark.parametrize("keep", [0, 5, -3])
def test_truncated_weights_are_told(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(3, 2).state_dict())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_weights(path)


def test_weights_of_another_architecture_name_the_first_difference():
    with pytest.raises(ValueError, match=r"the model's weight is \(2, 3\), the file's \(2, 4\)"):
        load_tensors(nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), "w")
    with pytest.raises(ValueError, match=r"the model's bias is \(2,\), the file's none"):
        load_tensors(nn.Linear(3, 2), {"weight": torch.zeros(2, 3)}, "w")


def test_state_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save({"x": Evil()}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match="s.pt is truncated or damaged"):
        load_state(tmp_path / "s.pt")
    save_state(tmp_path / "s.pt", {"x": torch.ones(2), "n": 3})
    assert load_state(tmp_path / "s.pt")["n"] == 3


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume; start the run again"):
        load_state(tmp_path / "s.pt")
    with pytest.raises(FileNotFoundError, match="has not finished an epoch yet"):
        load_weights(tmp_path / "w.safetensors")


def test_a_torn_line_of_the_metrics_is_left_out(tmp_path):
    run = RunDirectory(tmp_path)
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch})
    run.metrics.write_text(run.metrics.read_text()[:-4])
    assert run.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
    run.keep_metrics(lambda row: row["epoch"] < 2)
    assert run.read_metrics() == [{"epoch": 1}]
