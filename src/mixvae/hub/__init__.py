"""Runs on the Hugging Face hub: fetched into its cache, pulled into run directories, uploaded in one commit.

Needs the extra `hub`: `pip install 'mixvae[hub]'`. Tokens, the cache and the address of the hub are huggingface_hub's:
`hf auth login`, `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`. `mixvae.publishing` decides what a run directory on the hub
consists of.
"""

from mixvae.hub._address import SCHEME, Address, is_address
from mixvae.hub._client import Unreachable
from mixvae.hub._download import fetch, pull
from mixvae.hub._listing import CARD, MANIFEST, Entry, entry_of
from mixvae.hub._upload import Commit, upload

__all__ = [
    "CARD",
    "MANIFEST",
    "SCHEME",
    "Address",
    "Commit",
    "Entry",
    "Unreachable",
    "entry_of",
    "fetch",
    "is_address",
    "pull",
    "upload",
]
