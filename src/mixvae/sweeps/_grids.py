"""Grids: configurations that differ along axes, read from YAML or generated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from mixvae import config, runs
from mixvae._resources import check_count
from mixvae.datasets import Dataset
from mixvae.evaluation import ProposalName, check_draws
from mixvae.files import canonical

MOST_CELLS = 10_000
"""Maximum number of trainings in one grid."""


@dataclass(frozen=True)
class Grid:
    """Configurations that differ along some axes.

    Args:
        out: folder of the cells' run directories.
        cells: the configuration of every cell, by name.
        total_draws: total draws per test example.
        examples: evaluate only the first N test examples.
        draws_per_component: draws of each component instead, the paper's protocol.
        proposal: where the draws of the NLL come from: proposals refined for each example, or the posterior.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.config import read
        >>> from mixvae.sweeps import Grid
        >>> cells = {f"S{s}": read("digits", [f"--model.components={s}"]) for s in (1, 2)}
        >>> Grid(Path("runs/sizes"), cells, total_draws=200).standing()
        {'S1': 'new', 'S2': 'new'}
    """

    out: Path
    cells: dict[str, config.Config]
    total_draws: int = 1000
    examples: int | None = None
    draws_per_component: int | None = None
    proposal: ProposalName = "refined"

    @property
    def evaluation(self) -> dict[str, Any]:
        """Settings of every evaluation, as arguments of `runs.evaluate`."""
        names = ("total_draws", "draws_per_component", "examples", "proposal")
        return {name: getattr(self, name) for name in names}

    def standing(self) -> dict[str, str]:
        """State of every cell's run directory with respect to its configuration: new, unfinished or trained.

        Raises:
            ValueError: a directory holds something else, such as a run of another configuration.
        """
        check_draws(self.total_draws, self.draws_per_component)
        loaded: dict[str, Dataset] = {}
        states = {}
        for name, cell in self.cells.items():
            key = canonical(asdict(cell.data))
            if key not in loaded:
                loaded[key] = runs.open_data(cell.data)
            states[name] = runs.standing(cell, self.out / name, loaded[key])
        return states


def read_grid(name: str | Path) -> Grid:
    r"""Read a grid from a YAML file.

    The file names a `base` (preset or file), options to `set`, and `axes`: each maps the names of its values to the
    options that they set, in dotted form. Every combination is a cell. It may also name the folder `out`, and the
    `total_draws`, `examples` and `proposal` of the evaluations.

    Raises:
        ValueError: the file is not such a grid, or a cell's options are wrong; nothing is run then.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.sweeps import read_grid
        >>> sizes = "{S1: {model.components: 1}, S2: {model.components: 2}}"
        >>> text = f"base: digits\naxes:\n  size: {sizes}\n  seed: {{a: {{seed: 0}}, b: {{seed: 1}}}}\n"
        >>> _ = Path("grid.yaml").write_text(text)
        >>> list(read_grid("grid.yaml").cells)
        ['S1-a', 'S1-b', 'S2-a', 'S2-b']
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no grid {str(name)!r}: give a YAML file with a base, axes and what they set")
    content = config.read_yaml(path)
    known = {"base", "set", "axes", "out", "total_draws", "examples", "proposal"}
    for key in content if isinstance(content, dict) else ():
        if key not in known:
            near = config.nearest(str(key), sorted(known))
            raise ValueError(f"{path}: unknown key {key}" + (f": did you mean {near}?" if near else ""))
    if not isinstance(content, dict) or not isinstance(content.get("axes"), dict):
        raise ValueError(f"{path} must hold axes, and may hold {', '.join(sorted(known - {'axes'}))}; got {content}")
    named = all(
        isinstance(a, dict) and all(isinstance(v, dict | None) for v in a.values()) for a in content["axes"].values()
    )
    if not content["axes"] or not all(content["axes"].values()):
        raise ValueError(f"{path}: axes must name at least one axis, and every axis a value; got {content['axes']}")
    if not named or not isinstance(content.get("set") or {}, dict):
        raise ValueError(f"{path}: every axis must map names to options, as in `size: {{S1: {{model.components: 1}}}}`")
    for key in ("base", "out"):
        if key in content and not isinstance(content[key], str):
            raise ValueError(f"{path}: {key} must be a string; got {content[key]!r}")
    for key in ("total_draws", "examples"):
        number = content.get(key)
        if number is not None and not (type(number) is int and number >= 1):
            raise ValueError(f"{path}: {key} must be a whole number, at least 1; got {number!r}")
    proposal = content.get("proposal", "refined")
    if proposal not in get_args(ProposalName):
        raise ValueError(f"{path}: proposal must be refined or posterior; got {proposal!r}")
    number = math.prod(map(len, content["axes"].values()))
    check_count(number, MOST_CELLS, f"the cells of {path}", "give fewer axes or values")
    cells = {}
    common = config.check_options(content.get("set") or {}, str(path))
    axes = [
        [(value, config.check_options(more or {}, str(path))) for value, more in axis.items()]
        for axis in content["axes"].values()
    ]
    _check_apart(path, content["axes"], axes)
    for values in itertools.product(*axes):
        options = dict(common)
        for _, more in values:
            options |= more
        name = "-".join(str(value) for value, _ in values)
        if name in cells:
            raise ValueError(f"{path}: two cells are called {name}: name the values of the axes so that they differ")
        if not name or "/" in name or name.startswith(".") or name in ("cells", "report.html"):
            raise ValueError(f"{path}: {name!r} cannot be the name of a cell's folder: choose another value's name")
        cells[name] = config.read(content.get("base", "digits"), config.flags(options))
    return Grid(
        Path(content.get("out", f"runs/{path.stem}")).expanduser(),
        cells,
        content.get("total_draws", 1000),
        content.get("examples"),
        proposal=cast("ProposalName", proposal),
    )


def _check_apart(path: Path, names: Iterable[str], axes: Sequence[Sequence[tuple[Any, Mapping[str, Any]]]]) -> None:
    """Refuse axes that set one option, of which the last would win.

    Raises:
        ValueError: two of them do.
    """
    of: dict[str, str] = {}
    for name, axis in zip(names, axes, strict=True):
        for option in {option for _, more in axis for option in more}:
            if option in of:
                raise ValueError(
                    f"{path}: the axes {of[option]} and {name} both set {option}, and the last would win: "
                    "set it in one axis only"
                )
        of |= {option: name for _, more in axis for option in more}
