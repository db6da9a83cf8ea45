"""Whether a folder holds ordinary files and folders of its own, as every run does, and whether it is writable."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from tempfile import TemporaryFile

LONGEST_NAME = 200
"""Maximum number of bytes in a new name: temporary names beside it are longer, and file systems allow 255."""


def check_ordinary(folder: Path, below: tuple[str, ...] = ()) -> None:
    """Refuse a folder with pipes, devices, or links to other folders: reading may never end, writing goes elsewhere.

    Args:
        folder: the folder, which may be a link itself.
        below: subfolders that are checked too.

    Raises:
        ValueError: it holds one of these.

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


def check_file(path: Path, name: str = "") -> None:
    """Refuse a file that could not be written, before work begins on what it is to hold.

    Args:
        path: the file, which need not exist, and whose folder need not either.
        name: what the error calls it, such as `--out x.png`; its path by default.

    Raises:
        ValueError: it is a folder, a pipe or a device, or no file can be made in its folder.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.files import check_file
        >>> check_file(Path("/proc/x/y.png"), "--out /proc/x/y.png")
        Traceback (most recent call last):
        ValueError: --out /proc/x/y.png cannot be written: no file can be made in /proc (...); name another place...
    """
    name = name or str(path)
    if os.path.isdir(path):  # False for whatever cannot be looked up; `Path` raises an error
        raise ValueError(f"{name} is a directory: give the name of a file, or remove it")
    check_replaceable(path)
    check_folder(path.parent, name)
    if not os.path.exists(path):
        _check_name(path, name)


def check_folder(path: Path, name: str = "") -> None:
    """Refuse a folder in which no file could be created, before work begins on the results it is to hold.

    A nameless file is created there, or where the folder would be created, and vanishes at once: permissions alone do
    not show it, for example for the administrator or in `/proc`.

    Args:
        path: the folder, which need not exist.
        name: what the error calls it; its path by default.

    Raises:
        ValueError: something on the path is not a folder, or nothing can be written there.
    """
    name = name or str(path)
    there = next(place for place in (path, *path.parents) if os.path.lexists(place) or place == place.parent)
    if not os.path.isdir(there):
        what = "a file" if os.path.exists(there) else "a broken link"
        raise ValueError(f"{name} cannot be made: {there} is {what}; remove it, or name another place")
    for part in path.relative_to(there).parts:
        _check_name(Path(part), name)
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} cannot be written: no file can be made in {there} ({error.strerror or error}); name another "
            "place, or make that one writable"
        ) from None


def _check_name(path: Path, name: str) -> None:
    """Refuse a name that is too long for a file system."""
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(f"{name} has a name of more than {LONGEST_NAME} bytes: give a shorter one")
