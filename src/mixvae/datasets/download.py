"""Where data files are found, and how missing ones are downloaded. Imports what downloads need only for one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

SYSTEM_FOLDER = Path("/usr/share/datasets")
TIMEOUT = 30
"""Seconds without an answer after which a server counts as out of reach."""


def folders(name: str, root: str | Path | None) -> list[Path]:
    """Where the files of a data set may lie: root, $MIXVAE_DATA, the cache, then the system's folder."""
    bases = [Path(base).expanduser() for base in (root, os.environ.get("MIXVAE_DATA")) if base]
    plain = [folder for base in bases for folder in (base, base / name, base / name.replace("_", "-"))]
    return [*plain, cache(name), SYSTEM_FOLDER / name.replace("_", "-")]


def cache(name: str) -> Path:
    """Folder that downloads of a data set are kept in."""
    return Path(user_cache_dir("mixvae")) / name


def locate(names: list[str], name: str, root: str | Path | None) -> Path | None:
    """First of the files `names` in the first folder that has one."""
    for folder in folders(name, root):
        for file in names:
            if (folder / file).exists():
                return folder / file
    return None


def fetch(url: str, checksum: str, name: str) -> Path:
    """Download a file into the cache, with progress, and check it.

    Args:
        url: where the file is.
        checksum: `md5:…` or `sha256:…` of the file.
        name: data set that the file belongs to.

    Raises:
        OSError: the server cannot be reached, has no such file, or breaks off.
        ValueError: the file's checksum is wrong. Nothing is left behind in either case.
    """
    import pooch
    import requests

    folder = cache(name)
    target = folder / url.rpartition("/")[2]
    manual = f"put {target.name} into {folder}, or name its folder with --data.root"
    bar = _Bar(target.name)
    download: Any = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**18, timeout=TIMEOUT)  # pyright: ignore
    logger = pooch.get_logger()
    level, _ = logger.level, logger.setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, checksum, fname=target.name, path=folder, downloader=download))
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise OSError(f"cannot download {url}: the server answered {status}; {manual}") from None
    except requests.RequestException as error:
        broken = isinstance(error, requests.exceptions.ChunkedEncodingError)
        reason = "the connection broke off" if broken else "the server cannot be reached"
        raise OSError(f"cannot download {url}: {reason}; {manual}") from None
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise ValueError(
            f"{url} does not have the checksum {checksum}: it is damaged or was changed; {manual}"
        ) from None
    finally:
        bar.close()
        logger.setLevel(level)


class _Bar:
    """A progress bar as pooch wants it, drawn by rich."""

    def __init__(self, description: str):
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            transient=True,
        )
        self.task = self.progress.add_task(description, total=None)

    @property
    def total(self) -> float | None:
        return self.progress.tasks[0].total

    @total.setter
    def total(self, value: Any) -> None:
        self.progress.start()
        self.progress.update(self.task, total=int(value))

    def update(self, amount: int) -> None:
        self.progress.update(self.task, advance=amount)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        self.progress.stop()
