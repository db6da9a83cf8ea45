"""The paper's single-cell experiment, and a second one on batches. Importing this room imports no scvi-tools."""

from mixvae.reproduce.cells.plan import Cells, Integration

__all__ = ["Cells", "Integration"]
