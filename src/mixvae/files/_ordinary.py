"""Whether a folder holds ordinary files and folders of its own, as every run does."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def check_ordinary(folder: Path, below: tuple[str, ...] = ()) -> None:
    """Refuse a folder with pipes, devices, or links to other folders: reading may never end, writing goes elsewhere.

    Args:
        folder: the folder, which may be a link itself.
        below: subfolders that are checked too.

    Raises:
        ValueError: there is such a thing in it.

    Example:
        >>> import os, tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import check_ordinary
        >>> folder = Path(tempfile.mkdtemp())
        >>> os.mkfifo(folder / "events")
        >>> check_ordinary(folder)
        Traceback (most recent call last):
        ValueError: ...events is a pipe, a device or a socket, but a run holds ordinary files and folders ...
    """
    for place in (folder, *(folder / name for name in below)):
        if place.is_dir():
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
                _check(Path(entry.path))


def _check(path: Path) -> None:
    """Refuse one entry of a folder."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            return  # it was removed just now
        kind = 0
    if path.is_symlink() and not stat.S_ISREG(kind):
        what = f"a link to {os.readlink(path)}"
    elif stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        return
    else:
        what = "a pipe, a device or a socket"
    raise ValueError(f"{path} is {what}, but a run holds ordinary files and folders of its own: remove it")


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of a pipe, a device or a socket.

    Raises:
        ValueError: there is such a thing at this path.
    """
    try:
        kind = path.lstat().st_mode
    except OSError:  # nothing is there, or writing will say why not
        return
    if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)):
        raise ValueError(f"{path} is a pipe, a device or a socket, which a file would replace: name another path")
