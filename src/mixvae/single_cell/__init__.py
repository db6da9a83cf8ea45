"""Mixture VAEs of single cells, on scvi-tools: `pip install 'mixvae[scvi]'`. Importing this imports scvi-tools."""

try:
    import scvi  # noqa: F401
except ImportError as error:
    raise ImportError(f"mixvae.single_cell needs scvi-tools: pip install 'mixvae[scvi]' ({error})") from error

from mixvae.single_cell.atlas import Atlas, read_cells
from mixvae.single_cell.data import cortex, pbmc68k
from mixvae.single_cell.diagnostics import CellDiagnosis, diagnose, distinguishing_genes, integration_scores
from mixvae.single_cell.joint import CellJoint, joint_and_posterior
from mixvae.single_cell.likelihoods import bounds, get_marginal_ll
from mixvae.single_cell.model import MixtureSCVI
from mixvae.single_cell.module import MixtureModule
from mixvae.single_cell.posterior import CellPosterior
from mixvae.single_cell.scanvae import MixtureSCANVAE
from mixvae.single_cell.scanvi import MixtureSCANVI

__all__ = [
    "Atlas",
    "CellDiagnosis",
    "CellJoint",
    "CellPosterior",
    "MixtureModule",
    "MixtureSCANVAE",
    "MixtureSCANVI",
    "MixtureSCVI",
    "bounds",
    "cortex",
    "diagnose",
    "distinguishing_genes",
    "get_marginal_ll",
    "integration_scores",
    "joint_and_posterior",
    "pbmc68k",
    "read_cells",
]
