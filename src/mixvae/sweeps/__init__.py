"""Many trainings: grids of configurations, mixtures grown component by component, and the demo."""

from mixvae.sweeps._demonstration import demo
from mixvae.sweeps._grids import Grid, read_grid
from mixvae.sweeps._growth import Growth, Step, grow
from mixvae.sweeps._ray import RayRunner
from mixvae.sweeps._runners import LOCAL, LocalRunner, Runner, choose_runner
from mixvae.sweeps._running import Sweep, run_cells, sweep
from mixvae.sweeps._tasks import run_cell

__all__ = [
    "LOCAL",
    "Grid",
    "Growth",
    "LocalRunner",
    "RayRunner",
    "Runner",
    "Step",
    "Sweep",
    "choose_runner",
    "demo",
    "grow",
    "read_grid",
    "run_cell",
    "run_cells",
    "sweep",
]
