"""The paper's single-cell experiment, and two more on batches and labels. Importing this room imports no scvi-tools."""

from mixvae.reproduce.cells.label_plan import Labels
from mixvae.reproduce.cells.plan import Cells, Integration

__all__ = ["Cells", "Integration", "Labels"]
