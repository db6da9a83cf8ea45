"""Downloading runs: every file is checked against the run's own manifest before anything uses it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from mixvae.files import check_folder, commit, read_manifest, read_regular, write_bytes
from mixvae.files._atomic import LARGEST_JSON, sync_folder
from mixvae.hub._address import Address
from mixvae.hub._client import Unreachable, bar, library, plain_answers
from mixvae.hub._listing import CARD, MANIFEST, is_listed, is_manifest, is_whole, listed, read_listed
from mixvae.progress import SILENT, Progress

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit hash, which always names the same files."""
LARGEST_CARD = 2**20
"""Maximum number of bytes of a model card that is downloaded."""
SCVI_MODEL = "_scvi_required_metadata.json"
"""A file that models of `scvi.hub` have."""


def fetch(address: str | Address, progress: Progress = SILENT) -> Path:
    """Download a run into the hub's cache, or find it there.

    A commit that is in the cache is found without the network. A branch or a tag is looked up on the hub; if the hub
    cannot be reached, the cached version is used, and `progress` says so. An interrupted download continues with the
    files that are missing.

    Args:
        address: ORG/NAME or ORG/NAME@REVISION, with or without `hub://`.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Returns:
        The folder of that commit in the cache, whose name is the commit: a run directory.

    Raises:
        ValueError: there is no such repository or revision, it holds no run, one of its files is not what its manifest
            lists, or huggingface_hub is not installed.
        Unreachable: the hub cannot be reached, and the cache does not have the run.
    """
    address = Address.parse(address) if isinstance(address, str) else address
    if COMMIT.fullmatch(address.revision) and (cached := _cached(address)) is not None:
        return cached
    try:
        return _look_up(address).download(progress)
    except Unreachable as error:
        if (cached := _cached(address)) is None:
            raise
        progress.announce(f"{error}; using commit {cached.name} of {address.repo} from the cache")
        return cached


def pull(address: str | Address, out: str | Path | None = None, progress: Progress = SILENT) -> Path:
    """Download a run and make a run directory of it, which appears whole or not at all.

    Its `run.json` records the repository and the commit under `hub`.

    Args:
        address: ORG/NAME or ORG/NAME@REVISION, with or without `hub://`.
        out: the run directory; runs/NAME by default. If it already holds this very commit, it is left as it is.
        progress: where to report progress; silent by default.

    Returns:
        The run directory.

    Raises:
        ValueError: something else is at `out`, or nothing can be written there, both of which are checked before
            anything is downloaded; or for the reasons given in `fetch`.
        Unreachable: the hub cannot be reached, and the cache does not have the run.
        OSError: the directory cannot be written.
    """
    address = Address.parse(address) if isinstance(address, str) else address
    target = Path(out or Path("runs") / address.name).expanduser()
    if _pulled_from(target) is None:
        for place in (target, target.parent):  # it is made next to its final place
            check_folder(place, str(target))
    folder = fetch(address, progress)
    origin = {"repo": address.repo, "commit": folder.name}
    if (there := _pulled_from(target)) is not None:
        if there == origin:
            return target
        raise _occupied(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{token_hex(4)}.partial")
    try:
        temporary.mkdir(parents=True)
        _copy(folder, temporary, origin)
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _pulled_from(target: Path) -> Mapping[str, Any] | None:
    """Repository and commit of the run that is already there; None if nothing is.

    Raises:
        ValueError: something else is there.
    """
    if not os.path.lexists(target):
        return None
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return None
    if is_manifest(target / MANIFEST) and (origin := read_manifest(target / MANIFEST).get("hub")):
        return origin
    raise _occupied(target)


def _occupied(target: Path) -> ValueError:
    return ValueError(f"{target} already exists and is something else: choose another --out")


def _copy(folder: Path, out: Path, origin: Mapping[str, str]) -> None:
    """Copy a run out of the cache, recording in its manifest where it is from."""
    content = read_manifest(folder / MANIFEST)
    for entry in listed(content, str(folder)):
        write_bytes(out / entry["path"], read_listed(folder / entry["path"], entry))
    if (card := folder / CARD).exists():
        write_bytes(out / CARD, read_regular(card, LARGEST_CARD))
    commit(out / MANIFEST, {**content, "hub": dict(origin)}, {})


def _cached(address: Address) -> Path | None:
    """The folder of a revision in the cache, if all of its files are there and as listed."""
    manifest = library().try_to_load_from_cache(address.repo, MANIFEST, revision=address.revision)
    folder = Path(manifest).parent if isinstance(manifest, str) else None
    return folder if folder is not None and is_whole(folder) else None


def _look_up(address: Address) -> _Revision:
    """Ask the hub which commit a revision is, and which files it has."""
    client = library().HfApi()
    with plain_answers(address):
        info = client.model_info(address.repo, revision=address.revision, files_metadata=True)
    return _Revision(address, info.sha, {file.rfilename: file.size or 0 for file in info.siblings})


@dataclass(frozen=True)
class _Revision:
    """One commit of a repository.

    Args:
        address: the requested revision.
        commit: the commit that it refers to.
        sizes: bytes of each of its files.
    """

    address: Address
    commit: str
    sizes: Mapping[str, int]

    def download(self, progress: Progress) -> Path:
        """Download the run into the cache, and return its folder there."""
        repo = self.address.repo
        if MANIFEST not in self.sizes:
            raise ValueError(f"{repo} holds no run of mixvae: it has no {MANIFEST}{self._instead}")
        if self.sizes[MANIFEST] > LARGEST_JSON:
            raise self._damaged(MANIFEST)
        manifest = self._get(MANIFEST, is_manifest, bar(), self.address.revision)
        if manifest.parent.name != self.commit:
            raise ValueError(f"{self.address} was changed meanwhile: run the command again")
        if self.sizes.get(CARD, LARGEST_CARD + 1) <= LARGEST_CARD:
            self._get(CARD, Path.is_file, bar())
        entries = listed(read_manifest(manifest), f"{MANIFEST} of {repo}")
        total, before = sum(entry["bytes"] for entry in entries), 0
        for entry in entries:
            path, size = entry["path"], entry["bytes"]
            if self.sizes.get(path) != size:
                raise self._damaged(path)
            self._get(path, partial(is_listed, entry=entry), bar(progress, before, total, f"downloading {path}"))
            before += size
        return manifest.parent

    def _get(self, path: str, fits: Callable[[Path], bool], shown: type, revision: str = "") -> Path:
        """Download one file, again if the cached one is not the right one.

        Args:
            path: the file.
            fits: whether a file is the right one.
            shown: the class of the progress bar.
            revision: name under which the cache finds it again; the commit by default.
        """
        hub, repo = library(), self.address.repo
        was_cached = isinstance(hub.try_to_load_from_cache(repo, path, revision=self.commit), str)
        for refreshed in (False, True) if was_cached else (False,):
            with plain_answers(self.address):
                got = hub.hf_hub_download(
                    repo, path, revision=revision or self.commit, force_download=refreshed, tqdm_class=shown
                )
            if fits(Path(got)):
                return Path(got)
        raise self._damaged(path)

    def _damaged(self, path: str) -> ValueError:
        return ValueError(
            f"{path} of {self.address.repo} at commit {self.commit} is not what its {MANIFEST} lists: it was damaged "
            "or changed after the push; take another revision, or ask its owner to push again"
        )

    @property
    def _instead(self) -> str:
        """What else the repository seems to hold."""
        return "; scvi.hub.HubModel reads models of scvi-tools" if SCVI_MODEL in self.sizes else ""
