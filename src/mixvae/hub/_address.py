"""Where a run is on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeGuard

SCHEME = "hub://"
MAIN = "main"
"""The branch used if no revision is given."""
LONGEST = 96
"""Maximum number of characters in a repository's name."""
_ADDRESS = re.compile(r"(?:hub://)?(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A repository and a revision of it.

    Args:
        repo: ORG/NAME, where ORG is a user or an organisation.
        revision: branch, tag or commit.

    Example:
        >>> from mixvae.hub import Address
        >>> Address.parse("ORG/NAME@v1"), str(Address("ORG/NAME"))
        (Address(repo='ORG/NAME', revision='v1'), 'hub://ORG/NAME@main')
    """

    repo: str
    revision: str = MAIN

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}"

    @property
    def name(self) -> str:
        """The repository's own name, without the organisation."""
        return self.repo.rpartition("/")[2]

    @staticmethod
    def parse(text: str) -> Address:
        """Read an address, with or without `hub://`.

        Raises:
            ValueError: it is not ORG/NAME or ORG/NAME@REVISION.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or ".." in text or "--" in found[1] or len(found[1]) > LONGEST:
            raise ValueError(f"{text!r} is not a run on the hub: write ORG/NAME, or ORG/NAME@REVISION")
        return Address(found[1], found[2] or MAIN)


def is_address(text: object) -> TypeGuard[str]:
    """Whether this is meant as an address rather than a folder.

    Example:
        >>> from mixvae.hub import is_address
        >>> is_address("hub://ORG/NAME"), is_address("runs/S4")
        (True, False)
    """
    return isinstance(text, str) and text.startswith(SCHEME)
