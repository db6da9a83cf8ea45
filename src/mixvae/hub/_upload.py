"""Uploading runs: all files in one commit, so that nobody ever sees a part of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixvae.hub._address import MAIN, Address
from mixvae.hub._client import library, plain_answers, without_bars
from mixvae.hub._listing import CARD, LISTED, MANIFEST
from mixvae.progress import SILENT, Progress

BEGUN = {".gitattributes", CARD}
"""Files of a newly created repository."""


class Commit(NamedTuple):
    """A run on the hub.

    Args:
        address: repository and commit.
        url: where people see it.
    """

    address: Address
    url: str


def upload(
    repo: str,
    files: Mapping[str, Path],
    *,
    message: str,
    tag: str,
    private: bool = False,
    progress: Progress = SILENT,
) -> Commit:
    """Upload the files of a run in one commit, replacing those of an earlier run.

    Files are sent one by one and are committed together, once the last has arrived. If that is interrupted, the same
    call sends only those that are missing; what is on the hub already is neither sent nor committed again.

    Args:
        repo: ORG/NAME, created if it does not exist.
        files: what to upload, by path in the repository.
        message: what the commit says.
        tag: a name for the commit, reserved for exactly these files: if a tag of that name exists, it is kept.
        private: create a repository that only its owners see.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: there is no token, it may not write there, the repository holds something other than a run, it is
            public but should not be, or huggingface_hub is not installed.
        Unreachable: the hub cannot be reached.
    """
    address, hub = Address.parse(repo), library()
    if address.revision != MAIN:
        raise ValueError(f"a run is pushed to the branch {MAIN}: leave out @{address.revision}")
    if hub.get_token() is None:
        raise ValueError(f"there is no token for {repo}: run `hf auth login`, or set HF_TOKEN, with one that may write")
    client = hub.HfApi()
    with plain_answers(address), without_bars():
        client.create_repo(address.repo, private=private or None, exist_ok=True)
        info = client.model_info(address.repo)
        before = {file.rfilename for file in info.siblings}
        _check_own(address, before)
        if private and not info.private:
            raise ValueError(f"{address.repo} is public: make it private on the hub first, or leave out --private")
        added = [hub.CommitOperationAdd(path, file) for path, file in files.items()]
        _send(client, address, added, progress)
        removed = [hub.CommitOperationDelete(path) for path in sorted(before - set(files)) if LISTED.fullmatch(path)]
        made = client.create_commit(
            address.repo, [*removed, *added], commit_message=message, parent_commit=info.sha
        )  # fmt: skip
        client.create_tag(address.repo, tag=tag, revision=made.oid, exist_ok=True)
    return Commit(Address(address.repo, made.oid), f"{client.endpoint}/{address.repo}")


def _check_own(address: Address, before: set[str]) -> None:
    """Refuse a repository that holds something other than a run."""
    others = sorted(before - BEGUN)
    if others and MANIFEST not in before:
        raise ValueError(f"{address.repo} holds something other than a run ({others[0]}): push to another name")


def _send(client: Any, address: Address, files: list[Any], progress: Progress) -> None:
    """Send the content of new files; they take effect once committed."""
    total, before = sum(file.upload_info.size for file in files), 0
    for file in files:
        progress.update(before, total, f"uploading {file.path_in_repo}")
        client.preupload_lfs_files(address.repo, [file], free_memory=False, gitignore_content="")
        before += file.upload_info.size
    progress.update(before, total, f"sent {len(files)} files")
