"""Which runs this user trained: the user's own classes need no grant when such a run is opened again.

A run is recognised by its content (configuration, recipe and weights) and not by its path, so that a copy is recognised
and a changed run is not. The memory is a folder in the user's state folder ($XDG_STATE_HOME), with one file per run
that lists the folders its classes came from. Classes are looked up there and not in the working folder, where a run
that comes back from someone else may be accompanied by other classes of the same name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_state_dir

from mixvae import config
from mixvae.files import canonical, checksum, read_json, write_json


def folder() -> Path:
    """Folder of the memory."""
    return Path(user_state_dir("mixvae")) / "trained"


def names_of_others(manifest: Mapping[str, Any], source: str, trust: config.Trust) -> list[str]:
    """Classes named by a run that belong neither to mixvae nor to torch.

    Raises:
        ValueError: one of them is not trusted.
    """
    names = [] if manifest["config"] is None else config.check_config(manifest["config"], source, trust)
    spec = (manifest["model"] or {}).get("spec")
    return names if spec is None else [*names, *config.check_description(spec, source, trust)]


def check(manifest: Mapping[str, Any], source: str, trust: config.Trust) -> None:
    """Refuse a run whose classes are neither allowed nor trusted, unless this user trained it.

    Args:
        manifest: what `run.json` holds.
        source: the file, for the error message.
        trust: what the user trusts.

    Raises:
        ValueError: a class is not trusted.
    """
    folders = _remembered(manifest)
    if folders is not None:
        names = names_of_others(manifest, source, _trusted(()))
        trust = _trusted(folders) if all(_is_there(name, folders) for name in names) else trust
    names_of_others(manifest, source, trust)


def _remembered(manifest: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Folders that a run's classes came from when this user trained it; None for someone else's run."""
    with suppress(OSError, ValueError):  # someone else's home cannot be read
        folders = read_json(folder() / _key(manifest))
        if isinstance(folders, list) and all(isinstance(one, str) for one in folders):
            return tuple(folders)
    return None


def _trusted(folders: tuple[str, ...]) -> config.Trust:
    return config.Trust(everything=True, folders=folders)


def remember(manifest: Mapping[str, Any]) -> str | None:
    """Remember a run that is about to be committed, if it names third-party classes.

    This comes before the commit: a process killed between the two would otherwise leave its own run unrecognised.

    Args:
        manifest: what `run.json` will hold.

    Returns:
        The name under which it is remembered, if it is.
    """
    names = names_of_others(manifest, "", config.EVERYBODY)
    if not names:
        return None
    key = _key(manifest)
    with suppress(OSError):  # without a state folder the user gives --trust
        folder().mkdir(parents=True, exist_ok=True)
        write_json(folder() / key, sorted({home for name in names if (home := _home(name))}))
    return key


def forget(key: str) -> None:
    """Forget a run as it was before its last commit."""
    with suppress(OSError):
        (folder() / key).unlink(missing_ok=True)


def _home(name: str) -> str | None:
    """Folder from which the package of a class was imported."""
    module: Any = sys.modules.get(name.partition(".")[0])
    places = list(getattr(module, "__path__", [])) or [getattr(module, "__file__", None)]
    return None if places[0] is None else str(Path(places[0]).resolve().parent)


def _is_there(name: str, folders: tuple[str, ...]) -> bool:
    """Whether the package of a class is in one of some folders."""
    top = name.partition(".")[0]
    return any((Path(folder) / top).is_dir() or any(Path(folder).glob(f"{top}.*")) for folder in folders)


def _key(manifest: Mapping[str, Any]) -> str:
    parts = {name: manifest[name] for name in ("config", "model", "recipe")}
    weights = manifest["files"].get("weights", {}).get("sha256")
    return checksum(canonical({**parts, "weights": weights}))
