"""Many trainings: any grid of configurations, a mixture grown component by component, and the demo."""

from mixvae.sweeps.demonstration import demo
from mixvae.sweeps.grids import Grid, read_grid
from mixvae.sweeps.growth import grow
from mixvae.sweeps.running import Sweep, run_cell, run_cells, sweep

__all__ = ["Grid", "Sweep", "demo", "grow", "read_grid", "run_cell", "run_cells", "sweep"]
