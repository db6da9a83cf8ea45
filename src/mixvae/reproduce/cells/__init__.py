"""The paper's single-cell experiment, and four more. Importing this imports no scvi-tools."""

from mixvae.reproduce.cells.equal import cortex
from mixvae.reproduce.cells.label_plan import Labels
from mixvae.reproduce.cells.plan import Cells, Integration
from mixvae.reproduce.cells.prior_plan import Priors

__all__ = ["Cells", "Integration", "Labels", "Priors", "cortex"]
