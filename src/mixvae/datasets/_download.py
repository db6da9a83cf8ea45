"""Where data files are found, and how missing ones are downloaded. What downloads need is imported only for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from mixvae.progress import SILENT, Progress

SYSTEM_FOLDER = Path("/usr/share/datasets")
TIMEOUT = 30
"""Seconds without an answer after which a server counts as unreachable."""
SLOWEST = 1000
"""Minimum bytes per second that a server has to send, over `TIMEOUT` seconds."""
LARGEST = 2**30
"""Maximum number of bytes in a file: no data set here is that large, and an endless file would fill the disk."""
BLOCK = 2**18


def folders(name: str, root: str | Path | None) -> list[Path]:
    """Where the files of a data set may be: root, $MIXVAE_DATA, the cache, then the system's folder."""
    bases = [Path(base).expanduser() for base in (root, os.environ.get("MIXVAE_DATA")) if base]
    plain = [folder for base in bases for folder in (base, base / name, base / name.replace("_", "-"))]
    usual = cache(name), SYSTEM_FOLDER / name.replace("_", "-")
    return [*plain, *(folder for folder in usual if os.access(folder, os.X_OK))]  # the cache may be another user's


def cache(name: str) -> Path:
    """Folder where downloads of a data set are kept."""
    return Path(user_cache_dir("mixvae")) / name


def locate(
    names: list[str], name: str, root: str | Path | None, is_there: Callable[[Path], bool] = Path.exists
) -> Path | None:
    """First of the files `names` in the first folder that has one."""
    for folder in folders(name, root):
        for file in names:
            if is_there(folder / file):
                return folder / file
    return None


def fetch(url: str, checksum: str | None, name: str, progress: Progress = SILENT) -> Path:
    """Download a file into the cache and check it.

    Args:
        url: where the file is.
        checksum: `md5:…` or `sha256:…` of the file; None if it is unknown, which is reported.
        name: data set that the file belongs to.
        progress: where progress is reported; silent by default.

    Raises:
        OSError: the server cannot be reached, has no such file, is too slow or drops the connection, or the cache
            cannot be written.
        ValueError: the file's checksum is wrong. Nothing is left behind in either case.
    """
    import pooch
    import requests
    import urllib3

    folder = cache(name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    target = folder / url.rpartition("/")[2]
    manual = f"put {target.name} into {folder}, or name its folder with --data.root"
    download: Any = partial(_download, progress)
    logger = pooch.get_logger()
    level, _ = logger.level, logger.setLevel("WARNING")
    try:
        path = Path(pooch.retrieve(url, checksum, fname=target.name, path=folder, downloader=download))
        if checksum is None:
            progress.announce(f"untested: {url} has no known checksum; its SHA-256 is {pooch.file_hash(str(path))}")
        return path
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise OSError(f"cannot download {url}: {_reason(error)}; {manual}") from None
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise ValueError(
            f"{url} does not have the checksum {checksum}: it is damaged or was changed; {manual}"
        ) from None
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # pooch's own message is long
        reason = cause.strerror or " ".join(str(error).split())
        raise OSError(f"cannot download {url} into {folder}: {reason}; {manual}") from None
    finally:
        logger.setLevel(level)
        for ours in made:
            with suppress(OSError):  # it is not empty
                ours.rmdir()


def _download(progress: Progress, url: str, path: str, _: object) -> None:
    """Write what a server sends to a file as it arrives, so that a server that only trickles is noticed."""
    import requests

    with requests.get(url, stream=True, timeout=TIMEOUT) as response, open(path, "wb") as file:
        response.raise_for_status()
        length = response.headers.get("content-length", "")
        read = getattr(response.raw, "read1", response.raw.read)  # urllib3 1 has no `read1`, and waits for whole blocks
        since, before, size = time.monotonic(), 0, 0
        while block := read(BLOCK, decode_content=True):
            file.write(block)
            size += len(block)
            if length.isdecimal():
                progress.update(size, max(size, int(length)), f"downloading {url.rpartition('/')[2]}")
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
        return "the server redirects to an address that is not on the web"
    if isinstance(error, requests.TooManyRedirects):
        return "the server redirects in circles"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return "the server is too slow, or does not answer"
    if isinstance(error, urllib3.exceptions.HTTPError):
        return "the connection broke off"
    return "the server cannot be reached"
