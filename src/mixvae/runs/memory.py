"""Which runs this user trained: their own classes need no grant when such a run is opened again.

A run is known by what it holds, its configuration, recipe and weights, and not by where it lies, so that a copy is
known and a run that was changed is not. The memory is a folder of empty files in the user's state folder
($XDG_STATE_HOME).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_state_dir

from mixvae import config
from mixvae.files import canonical, checksum


def folder() -> Path:
    """Where it is kept."""
    return Path(user_state_dir("mixvae")) / "trained"


def names_of_others(manifest: Mapping[str, Any], source: str, trust: config.Trust) -> list[str]:
    """Classes of a run that are neither mixvae's nor torch's.

    Raises:
        ValueError: one of them is not trusted.
    """
    found = [] if manifest["config"] is None else config.check_config(manifest["config"], source, trust)
    spec = (manifest["model"] or {}).get("spec")
    return found if spec is None else [*found, *config.check_description(spec, source, trust)]


def check(manifest: Mapping[str, Any], source: str, trust: config.Trust) -> None:
    """Refuse a run whose classes are neither allowed nor trusted, unless this user trained it.

    Args:
        manifest: what `run.json` holds.
        source: the file, for the error.
        trust: what the user trusts.

    Raises:
        ValueError: a class is not trusted.
    """
    known = False
    with suppress(OSError):  # a home of somebody else's cannot be looked into
        known = (folder() / _key(manifest)).exists()
    names_of_others(manifest, source, config.EVERYBODY if known else trust)


def remember(manifest: Mapping[str, Any]) -> str | None:
    """Remember a run that is about to be committed, only where it names classes of others.

    Before the commit and not after it: a process that is killed in between would leave its own run as a stranger's.

    Args:
        manifest: what `run.json` will hold.

    Returns:
        The name that it is remembered by, if it is.
    """
    if not names_of_others(manifest, "", config.EVERYBODY):
        return None
    key = _key(manifest)
    with suppress(OSError):  # without a state folder the user gives --trust
        folder().mkdir(parents=True, exist_ok=True)
        (folder() / key).touch()
    return key


def forget(key: str) -> None:
    """Forget what a run was before its last commit."""
    with suppress(OSError):
        (folder() / key).unlink(missing_ok=True)


def _key(manifest: Mapping[str, Any]) -> str:
    parts = {name: manifest[name] for name in ("config", "model", "recipe")}
    weights = manifest["files"].get("weights", {}).get("sha256")
    return checksum(canonical({**parts, "weights": weights}))
