"""Where data files are found, and how missing ones are downloaded. Imports what downloads need only for one."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

SYSTEM_FOLDER = Path("/usr/share/datasets")
TIMEOUT = 30
"""Seconds without an answer after which a server counts as out of reach."""
SLOWEST = 1000
"""Bytes a second, over `TIMEOUT` seconds, that a server has to send."""
LARGEST = 2**30
"""Bytes of a file at most: no data set here has as many, and what never ends would fill the disk."""
BLOCK = 2**18


def folders(name: str, root: str | Path | None) -> list[Path]:
    """Where the files of a data set may lie: root, $MIXVAE_DATA, the cache, then the system's folder."""
    bases = [Path(base).expanduser() for base in (root, os.environ.get("MIXVAE_DATA")) if base]
    plain = [folder for base in bases for folder in (base, base / name, base / name.replace("_", "-"))]
    usual = cache(name), SYSTEM_FOLDER / name.replace("_", "-")
    return [*plain, *(folder for folder in usual if os.access(folder, os.X_OK))]  # the cache may be another user's


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
        OSError: the server cannot be reached, has no such file, is too slow or breaks off, or the cache cannot be
            written.
        ValueError: the file's checksum is wrong. Nothing is left behind in either case.
    """
    import pooch
    import requests
    import urllib3

    folder = cache(name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    target = folder / url.rpartition("/")[2]
    manual = f"put {target.name} into {folder}, or name its folder with --data.root"
    bar = _Bar(target.name)

    download: Any = partial(_download, bar)
    logger = pooch.get_logger()
    level, _ = logger.level, logger.setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, checksum, fname=target.name, path=folder, downloader=download))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise OSError(f"cannot download {url}: {_reason(error)}; {manual}") from None
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise ValueError(
            f"{url} does not have the checksum {checksum}: it is damaged or was changed; {manual}"
        ) from None
    except OSError as error:
        told = error.__cause__ if isinstance(error.__cause__, OSError) else error  # pooch tells it at length
        reason = told.strerror or " ".join(str(error).split())
        raise OSError(f"cannot download {url} into {folder}: {reason}; {manual}") from None
    finally:
        bar.close()
        logger.setLevel(level)
        for ours in made:
            with suppress(OSError):  # it holds something
                ours.rmdir()


def _download(bar: _Bar, url: str, path: str, _: object) -> None:
    """Write what a server sends to a file, as it comes, so that one that sends a byte now and then is noticed."""
    import requests

    with requests.get(url, stream=True, timeout=TIMEOUT) as response, open(path, "wb") as file:
        response.raise_for_status()
        length = response.headers.get("content-length", "")
        bar.start(int(length) if length.isdecimal() else None)
        read = getattr(response.raw, "read1", response.raw.read)  # urllib3 1 has none, and waits for whole blocks
        since, before, size = time.monotonic(), 0, 0
        while block := read(BLOCK, decode_content=True):
            file.write(block)
            bar.update(len(block))
            size += len(block)
            if size > LARGEST:
                raise OSError(f"the server sends more than {LARGEST // 10**6} MB")
            if time.monotonic() - since > TIMEOUT:
                if size - before < SLOWEST * TIMEOUT:
                    raise requests.ReadTimeout
                since, before = time.monotonic(), size


def _reason(error: Exception) -> str:
    """Why a download failed, in words."""
    import requests
    import urllib3

    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code if error.response is not None else 'an error'}"
    if isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidURL):
        return "the server sends us to an address that is not of the web"
    if isinstance(error, requests.TooManyRedirects):
        return "the server sends us in circles"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return "the server is too slow, or does not answer"
    if isinstance(error, urllib3.exceptions.HTTPError):
        return "the connection broke off"
    return "the server cannot be reached"


class _Bar:
    """A progress bar on standard error, where that is a terminal."""

    def __init__(self, description: str):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, markup=False, emoji=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(description, total=None)

    def start(self, total: int | None) -> None:
        self.progress.start()
        self.progress.update(self.task, total=total)

    def update(self, amount: int) -> None:
        self.progress.update(self.task, advance=amount)

    def close(self) -> None:
        self.progress.stop()
