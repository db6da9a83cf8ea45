"""Many trainings: grids of configurations, mixtures grown component by component, and the demo."""

from mixvae.sweeps._demonstration import demo
from mixvae.sweeps._grids import Grid, read_grid
from mixvae.sweeps._growth import Growth, Step, grow
from mixvae.sweeps._running import Sweep, run_cell, run_cells, sweep

__all__ = ["Grid", "Growth", "Step", "Sweep", "demo", "grow", "read_grid", "run_cell", "run_cells", "sweep"]
