"""Publishing runs: which parts of a run are shared, its model card, and the push to the hub."""

from mixvae.publishing._card import card, escaped
from mixvae.publishing._packing import pack
from mixvae.publishing._push import push

__all__ = ["card", "escaped", "pack", "push"]
