"""A plugin of pytest that puts mixtures in SCVI's place, if PEER is "mixture": `pytest -p peer_plugin`."""

import os

import rich.pretty  # noqa: F401  scvi-tools uses it without importing it
import scvi.model

if os.environ.get("PEER") == "mixture":
    from mixvae.single_cell import MixtureSCANVI, MixtureSCVI

    for cls in (MixtureSCVI, MixtureSCANVI):
        defaults = cls.__init__.__kwdefaults__
        assert defaults is not None
        defaults["n_components"] = 3  # the constructor's signature stays as it is
    scvi.model.SCVI, scvi.model.SCANVI = MixtureSCVI, MixtureSCANVI
