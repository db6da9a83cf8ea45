"""huggingface_hub as the other modules use it: imported when needed, with one-line errors and our own progress."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from mixvae._failures import said
from mixvae.hub._address import Address
from mixvae.progress import SILENT, Progress


class Unreachable(OSError):
    """The hub does not answer."""


def library() -> ModuleType:
    """Import huggingface_hub.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("the hub needs huggingface_hub, which is not installed: pip install 'mixvae[hub]'") from None
    return huggingface_hub


@contextmanager
def plain_answers(address: Address) -> Iterator[None]:
    """Turn whatever huggingface_hub raises about a repository into one line.

    Raises:
        Unreachable: the hub does not answer, or not as a hub would.
        ValueError: the hub refuses.
        OSError: the cache on this machine cannot be read or written.
    """
    from huggingface_hub import errors

    transport: Any = errors.HfHubHTTPError.__bases__[0]  # HTTPError of httpx or httpx2, by version
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refusal(error, address) from None
    except (transport, errors.OfflineModeIsEnabled, json.JSONDecodeError) as error:
        raise _unreachable(error) from None
    except (errors.LocalEntryNotFoundError, RuntimeError) as error:  # around one of the above
        cause = error.__cause__ or error
        raise _refusal(cause, address) if isinstance(cause, errors.HfHubHTTPError) else _unreachable(cause) from None
    except OSError as error:
        if error.filename is None:
            raise
        raise OSError(
            f"the hub's cache cannot be used: {error.filename}: {error.strerror}; HF_HOME names another place for it"
        ) from None


def _unreachable(error: BaseException) -> Unreachable:
    """The error for a hub that does not answer."""
    return Unreachable(f"the hub cannot be reached ({said(error)}): check the network, and HF_ENDPOINT if it is set")


def _refusal(error: Any, address: Address) -> Exception:
    """The error for a hub that answers with an error."""
    from huggingface_hub import errors

    repo, status = address.repo, error.response.status_code
    reason = f" ({' '.join(error.server_message.split())})" if error.server_message else ""
    match error:
        case errors.GatedRepoError():
            return ValueError(f"{repo} is gated: request access on its page on the hub")
        case errors.RepositoryNotFoundError():
            return ValueError(f"the hub has no {repo}, or hides it from you: check the name, or run `hf auth login`")
        case errors.RevisionNotFoundError():
            return ValueError(f"{repo} has no revision {address.revision}: name a branch, a tag or a whole commit")
    if status in (401, 403):
        return ValueError(
            f"the hub does not allow this with your token{reason}: run `hf auth login` with one that may use {repo}"
        )
    if status == 412:
        return ValueError(f"{repo} was changed by somebody else meanwhile: run the command again")
    if status == 429 or status >= 500:
        return Unreachable(f"the hub answers {status}{reason}: try again later")
    return ValueError(f"the hub answers {status} for {repo}{reason}")


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing progress bars of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def bar(progress: Progress = SILENT, before: int = 0, total: int = 0, text: str = "") -> type:
    """A class for huggingface_hub to use as its progress bar, which draws nothing and reports to ours.

    Args:
        progress: where to report; silent by default.
        before: bytes of the files before this one.
        total: bytes of all files.
        text: what is being transferred.
    """
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **(kwargs | {"disable": True}))
            self.received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            progress.update(min(before + self.received, total), total, text)
            return None

    return Bar
