"""The model card of a run: what it is, how good it is and how far that can be relied on, and how it was made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mixvae import config, reports
from mixvae._failures import typed
from mixvae._tables import counted, plain
from mixvae.datasets import SOURCES
from mixvae.hub import Address
from mixvae.publishing._portable import SEPARATOR
from mixvae.reports._settings import UNRECORDED, facts, reproduction
from mixvae.runs import Run
from mixvae.runs._memory import names_of_others

TAGS = ("mixvae", "variational-autoencoder", "mixture-model")
FLAGS = {
    "batch_key": "--batch-key", "labels_key": "--labels-key", "layer": "--layer",
    "categorical_covariate_keys": "--categorical-covariates", "continuous_covariate_keys": "--continuous-covariates",
}  # fmt: skip
"""Flags of `mixvae sc train` for the keys of the cells."""
_MARKUP = re.compile(r"([\\`*_\[\]<>|#~])")


def card(run: Run, address: Address, license: str, baseline: Run | None = None) -> str:
    """The model card of a run as Markdown.

    Its numbers are those of `mixvae report`: the tight NLL with its errors over examples and by Monte Carlo, the share
    of examples whose k̂ is unreliable, and, with a baseline, the gain, its split into model and posterior, and how the
    baseline was made.

    Args:
        run: the run, packed by `pack`. It must have been evaluated, unless it is of cells.
        address: the repository, and the tag of these weights.
        license: the licence, as the hub abbreviates it.
        baseline: a packed and evaluated run on the same data to compare with.

    Raises:
        FileNotFoundError: the run or the baseline has no evaluation.
        ValueError: they are on different data, or a class that the run names is malformed.
    """
    sections = _cells(run, address) if run.is_of_cells else _images(run, address, baseline)
    environment = Environment(
        loader=FileSystemLoader(str(files("mixvae") / "templates")),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["text"] = escaped
    return environment.get_template("card.md").render(
        front=_front(run, license), name=address.name, address=address, license=license,
        strangers=sorted(set(names_of_others(run.manifest, str(run.path), config.EVERYBODY))),
        settings=_rows(reports.settings(run)), **sections,
    )  # fmt: skip


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    Example:
        >>> from mixvae.publishing._card import escaped
        >>> print(escaped("a|b <i>"))
        a\|b \<i\>
    """
    return _MARKUP.sub(r"\\\1", " ".join(plain(text).split()))


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def _rows(values: Mapping[str, str]) -> str:
    """Rows of a table of names and values."""
    return "\n".join(_row(name, value) for name, value in values.items())


def _facts(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    return f"| | |\n| --- | --- |\n{_rows(values)}"


def _front(run: Run, license: str) -> str:
    """What the hub reads, as YAML."""
    name = run.manifest["runtime"]["data"]["name"]
    tags = [*TAGS, *(["single-cell"] if run.is_of_cells else [])]
    front = {"library_name": "mixvae", "license": license, "tags": tags}
    return yaml.safe_dump({**front, **({"datasets": [name]} if name in SOURCES else {})}, sort_keys=False)


def _images(run: Run, address: Address, baseline: Run | None) -> dict[str, Any]:
    """What the card says about a model of images or tables."""
    comparison = reports.compare([*([] if baseline is None else [baseline]), run])
    rows = comparison.table
    of = next(i for i, row in enumerate(rows) if row["path"] == str(run.path))
    data, examples = run.manifest["runtime"]["data"], comparison.evaluations[of].identity
    size = data.get("sizes", {}).get("train")
    trained = escaped(data["name"]) + ("" if size is None else f" ({counted(size, 'example')})")
    encoders = counted(examples.components, "encoder")
    return {
        "about": f"A mixture VAE of {encoders}, trained on {trained}.",
        "extras": "hub",
        "then": typed("sample", f"runs/{address.name}"),
        "python": f'import mixvae\n\nmodel = mixvae.load("{address}")',
        "title": f"Likelihood of {counted(examples.examples, f'{examples.split} example')}",
        "results": f"{_measures(comparison)}\n\n{_facts(facts(run, rows[of]))}",
        "notes": [*reports.legend(comparison.columns, rows), *comparison.warnings],
        "baseline": None if baseline is None else _baseline(baseline, run, comparison, 1 - of),
        **_made(run, comparison, of),
    }


def _made(run: Run, comparison: reports.Comparison, number: int) -> dict[str, Any]:
    """How a run of a comparison was made.

    Args:
        run: the run.
        comparison: what it is part of.
        number: which of its runs it is.
    """
    made = reproduction(run, comparison.evaluations[number], comparison.table[number])
    return {
        "commands": [command.replace(f"{run.path.parent}/", "") for command in made["commands"]],
        "remark": made["note"],
        "provenance": _facts(made["facts"]),
    }


def _baseline(baseline: Run, run: Run, comparison: reports.Comparison, number: int) -> dict[str, Any]:
    """What the card says about the baseline, from the arguments of `_made` and the card's run."""
    differing = reports.differing({"baseline": reports.settings(baseline), "run": reports.settings(run)})
    return {
        "name": baseline.name,
        "results": _facts(facts(baseline, comparison.table[number])),
        "differing": "\n".join(_row(*cells) for cells in differing),
        **_made(baseline, comparison, number),
    }


def _measures(comparison: reports.Comparison) -> str:
    """The table of a comparison with one row for each measure, and what it means."""
    first, *measures = reports.filled(comparison.columns, comparison.table)
    head = _row("", *(first.text(row) for row in comparison.table), "")
    lines = [_row(c.name, *(c.text(row) for row in comparison.table), c.hint) for c in measures]
    return "\n".join([head, f"|{' --- |' * (len(comparison.table) + 2)}", *lines])


def _cells(run: Run, address: Address) -> dict[str, Any]:
    """What the card says about a model of cells."""
    identity, runtime = run.recipe.identity, run.manifest["runtime"]
    data, model = identity["data"], identity["model"]
    encoders = counted(model.get("components", 1), "encoder")
    trained = f"{counted(data['cells'], 'cell')} and {counted(data['genes'], 'gene')}"
    return {
        "about": f"A {escaped(model['class'])} of {encoders}, trained on {trained}.",
        "extras": "hub,scvi",
        "then": typed("sc", "embed", f"runs/{address.name}", "CELLS.h5ad"),
        "python": "from mixvae import hub\nfrom mixvae.single_cell import runs\n\n"
        f'model = runs.load(hub.fetch("{address}"), adata)  # cells with the genes and batches of the training',
        "title": "Validation",
        "results": f"After epoch {run.epoch}, the last one, the ELBO of the validation cells was "
        f"{run.metrics[-1]['validation']:.2f} nats per cell.",
        "notes": [
            "run.json holds the names of all genes, and of all batches, labels and covariates of the training.",
            "scvi.hub does not open it: it knows the classes of scvi-tools only.",
        ],
        "baseline": None,
        "commands": [_sc_train(run)],
        "remark": "The command gives the settings that it accepts; all of them are below.",
        "provenance": _facts(
            {
                "trained with": ", ".join(f"{name} {version}" for name, version in runtime["versions"].items()),
                "commit": runtime["git_commit"] or UNRECORDED,
                "machine": runtime["machine"],
                "recipe SHA-256": run.recipe.sha256,
                "data SHA-256": data["sha256"],
                "weights SHA-256": str(run.weights_sha256),
            }
        ),
    }


def _sc_train(run: Run) -> str:
    """The command that trains on the same cells again."""
    identity = run.recipe.identity
    data, model = identity["data"], identity["model"]
    given = {flag: data["setup"].get(key) for key, flag in FLAGS.items()}
    given |= {f"--{name}": model.get(name) for name in ("components", "latent", "likelihood")}
    given |= {f"--{name}": value for name, value in {**run.manifest["goal"], "seed": identity["seed"]}.items()}
    words = ["mixvae", "sc", "train", *run.manifest["runtime"]["data"]["name"].split(SEPARATOR)]
    for flag, value in given.items():
        if value is not None:
            words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join([*words, *(["--backed"] if data.get("backed") else [])])
