"""Inputs for the fuzz tests: a folder with small runs and data, commands that work in it, and what is done to them."""

import contextlib
import gzip
import io
import json
import shlex
import shutil
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from fuzzing import Forks, faults, sandbox, tree
from mixvae.cli import COMMANDS, parser

TINY = {
    "data": {"name": "data.npz"},
    "model": {
        "components": 2,
        "latent": 2,
        "encoder": {"class_path": "GatedEncoder", "hidden": [4]},
        "decoder": {"class_path": "MLPDecoder", "hidden": [4]},
    },
    "training": {"epochs": 1, "batch": 40, "optimizer": {"class_path": "torch.optim.Adam", "lr": 0.001}},
}
GRID = {
    "base": "tiny.yaml",
    "out": "grid",
    "total_draws": 4,
    "examples": 3,
    "set": {"training.epochs": 1},
    "axes": {"S": {"S1": {"model.components": 1}}, "prior": {"plain": {}}},
}
BASES = {
    "presets": [""],
    "train": [
        "tiny.yaml --out runs/new",
        "tiny.yaml --out runs/new",
        "tiny.yaml",
        "--resume runs/S2 --training.epochs 2",
        "digits --data.limit 20 --training.epochs 1 --data.limit_validation 20 --out runs/new",
        "tiny.yaml --data.name images --data.binarize fixed --out runs/new",
        "tiny.yaml --data.name mnist --data.root idx --out runs/new",
        "tiny.yaml --data.name data.npy --out runs/new",
        "tiny.yaml --data.name data.pt --out runs/new",
        "tiny.yaml --start.run runs/S1 --out runs/new",
        "tiny.yaml --model.prior '{class_path: VampPrior, pseudo_inputs: 3}' --training.bound pooled --out runs/new",
        "tiny.yaml --model.prior '{class_path: GaussianMixturePrior, clusters: 2}' --model.learn_weights true --out n",
        "tiny.yaml --model.flow '{class_path: CouplingFlow, hidden: [3]}' --training.clip 1 --out runs/new",
        "tiny.yaml --model.likelihood ContinuousBernoulli --data.binarize none --training.ema 0.9 --out runs/new",
        "tiny.yaml --model.likelihood GaussianLikelihood --data.binarize none --training.precision 64-true --out n",
        "tiny.yaml --model.posterior TwoLevelPosterior --model.encoder '{class_path: TwoLevelDense, hidden: [3]}' "
        "--model.lower '{class_path: GaussianNetwork, hidden: [3]}' --out runs/new",
        "tiny.yaml --training.schedule '{class_path: StepLR, step_size: 1}' --out runs/new",
        "tiny.yaml --training.active 1 --training.scored active --training.validation_components 1 --out runs/new",
        "tiny.yaml --training.bound pooled --training.gradient doubly_reparameterised --out runs/new",
    ],
    "list": ["runs", "", "."],
    "evaluate": [
        "runs/S2 --total-draws 4",
        "runs/S2 --total-draws 8 --examples 3 --seed 3 --per-example values.npz",
        "runs/legacy --total-draws 4",
        "runs/S2 --total-draws 4 --representation",
    ],
    "sample": ["runs/S2 --n 2", "runs/S2 --n 2 --out samples.npy"],
    "reconstruct": ["runs/S2 --n 2", "runs/S2 --n 2 --out rebuilt.npy"],
    "encode": ["runs/S2", "runs/S2 --out latents.npz --split train"],
    "report": ["runs/S1", "runs/S1 runs/S2", "runs/legacy"],
    "demo": ["--out demo --total-draws 4"],
    "sweep": ["grid.yaml", "grid.yaml --jobs 2"],
    "extend": ["runs/S2 --epochs 1", "runs/S1 --out runs/more --freeze decoder --epochs 1"],
    "grow": ["runs/S1 --total-draws 4 --epochs 1 --most 2 --examples 3"],
    "components": ["runs/S2 --draws-per-component 2 --examples 4"],
    "toy": ["ring --components 1,2 --steps 2 --no-rival", "bigaussian --components 1 --steps 2 --no-rival"],
    "reproduce": [
        "--list",
        "mnist --scale smoke --models vanilla --epochs 1 --warmup 0 --seeds 0",
    ],
    "sc-train": ["cells.h5ad --epochs 1 --components 2 --latent 2 --out runs/new"],
    "sc-embed": ["runs/cells cells.h5ad", "runs/cells cells.h5ad --out embedded.h5ad"],
}
"""Commands that work, from which inputs are made. One that is not here is tried with odd words alone."""
SLOW = {"demo": 0.3, "report": 0.5, "reproduce": 0.5, "grow": 0.5, "sc-train": 0.4, "sc-embed": 0.4,
        "toy": 0.5, "presets": 0.3, "train": 6.0, "evaluate": 2.0}  # fmt: skip
"""How often a command is tried, where that is not once."""
LONG = {
    "epochs", "steps", "total_draws", "draws_per_component", "most", "warmup", "seeds",
    "training.epochs", "training.draws_per_component", "cells",
}  # fmt: skip
"""Options by which a user may rightly ask for hours of work: no large numbers are tried."""
HUGE = ("2147483648", "9223372036854775808", "1000000000000", "9" * 400, "9" * 5000, "1e400", "1e18")
ODD = (
    "", " ", "-1", "0", "1", "2", "3", "1.5", "-0.0", "1e-400", "nan", "inf", "-inf", ".inf", ".nan",
    "-9223372036854775809", "0x10", "1_000", "²", "٣", "true", "null", "~", "none", "None", "[]", "[1, 2]", "[[]]",
    "{}", "{a: 1}", "{class_path: 5}", "{class_path: MLPDecoder, init_args: 5}", "'", '"', "a: b: c", "[", "{", "*a",
    "&a [*a]", "!!python/name:os.system", "ä€😀", "\udcff", "\n", "a\nb", "\x1b[31m", "x" * 300, "x" * 5000, "[" * 2000,
    "..", ".", "/", "/dev/null", "/nowhere/at/all", "missing", "runs", "runs/S2", "runs/S1", "runs/legacy", "data.npz",
    "tiny.yaml", "images", "readonly", "readonly/x", "readonly/x.png", "readonly/x.npy", "readonly/x.npz",
    "data.npz/x", "new/x.png", "new.npz", "--", "%s", "{0}", "$HOME", "~/x", "~nobody/x", "1,2", ",", "a,b",
    "decoder,prior", "auto", "cpu", "cuda", "mixvae", "mixvae.networks", "os.system", "-h", "2000-01-01",
)  # fmt: skip
CLASSES = (
    "MLPDecoder", "ConvDecoder", "PixelCNN", "GatedEncoder", "GatedConvEncoder", "ConvEncoder", "TwoLevelDense",
    "GaussianNetwork", "SeparateEncoders", "OneHotPosterior", "TwoLevelPosterior", "FlowPosterior",
    "InverseAutoregressiveFlow", "CouplingFlow", "StandardNormal", "GaussianMixturePrior", "VampPrior",
    "TwoLevelPrior", "Bernoulli", "ContinuousBernoulli", "GaussianLikelihood", "LogisticMixture", "torch.optim.Adam",
    "torch.optim.SGD", "torch.optim.LBFGS", "torch.optim.SparseAdam", "torch.optim.Optimizer", "torch.optim",
    "torch.optim.lr_scheduler.StepLR", "torch.nn.Linear", "torch.nn.Module",
    "torch.optim.lr_scheduler.ReduceLROnPlateau", "torch.optim.lr_scheduler.CosineAnnealingLR", "torch.nn.ReLU",
    "torch.optim.lr_scheduler.LambdaLR", "torch.optim.lr_scheduler.OneCycleLR", "torch.nn.LazyLinear", "mlp", "a..b",
    ".", "..", "mixvae.networks",
    "mixvae.networks._dense.GatedEncoder", "mixvae.datasets.load_dataset", "builtins.eval",
    "own.Thing", "elbo", "miselbo", "pooled", "iwelbo", "sticking_the_landing", "doubly_reparameterised",
    "reparameterised", "mixvae.bounds.elbo", "mixvae.bounds.log_weights",
)  # fmt: skip
ARGUMENTS = (
    "hidden", "lr", "width", "mixtures", "levels", "pseudo_inputs", "clusters", "transforms", "step_size", "gamma",
    "activation", "shape", "latent", "components", "likelihood", "init_args", "class_path", "params", "fused", "betas",
    "std", "blocks", "channels", "encoder", "posterior", "build", "examples", "optimizer", "self", "T_max", "",
)  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One thing that is done to a command that works."""

    kind: str
    """add: words at the end; put: a word instead of another; drop: a word; file: other bytes in a file."""
    words: tuple[str, ...] = ()
    place: int = 0
    file: str = ""
    content: bytes | None = None
    """None where the file is removed."""

    def __str__(self) -> str:
        if self.kind != "file":
            return f"{self.kind} {self.place} {' '.join(map(repr, self.words))[:300]}"
        return f"{self.file} = {'removed' if self.content is None else repr(self.content[:300])}"


@dataclass(frozen=True)
class Input:
    """A command that works, and what is done to it."""

    command: str
    base: str
    edits: tuple[Edit, ...] = ()

    @property
    def words(self) -> list[str]:
        words: list[str | None] = [*shlex.split(self.base)]
        for edit in self.edits:
            if edit.kind == "add":
                words += edit.words
            elif edit.kind in ("put", "drop") and words:
                words[edit.place % len(words)] = edit.words[0] if edit.kind == "put" else None
        name = self.command.split("-", 1) if self.command.startswith("sc-") else [self.command]
        return [*name, *(word for word in words if word is not None)]

    def change_files(self, work: Path) -> None:
        """Put other bytes into files."""
        for edit in self.edits:
            if edit.kind == "file":
                path = work / edit.file
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                if edit.content is not None:
                    path.write_bytes(edit.content)

    def smaller(self) -> "list[Input]":
        """The same with one edit less."""
        return [replace(self, edits=self.edits[:i] + self.edits[i + 1 :]) for i in range(len(self.edits))]

    def __str__(self) -> str:
        files = "".join(f"{edit}; " for edit in self.edits if edit.kind == "file")
        return f"{files}mixvae {' '.join(shown(word) for word in self.words)}"


def shown(word: str) -> str:
    """A word as it is typed."""
    return shlex.quote(word if len(word) < 200 else f"{word[:20]}…({len(word)} characters)")


@lru_cache
def options(command: str) -> dict[str, object]:
    """Options of a command, and the type of each."""
    sub = parser(command)._subcommands_action._name_parser_map[command]  # pyright: ignore
    found = {}
    for action in sub._actions:
        for option in action.option_strings:
            if option not in ("-h", "--help"):
                found[option] = getattr(action, "_typehint", None) or action.type
    return found


def template(folder: Path, forks: Forks, *, cells: bool) -> Path:
    """Make the folder that commands are tried in: data of every kind, configurations, and small trained runs."""
    first = folder / "making"
    work = first / "work"
    for path in (
        work,
        first / "home" / "tmp",
        work / "images" / "a",
        work / "images" / "b",
        work / "idx",
        work / "readonly",
    ):
        path.mkdir(parents=True)
    random = np.random.default_rng(0)
    y = np.arange(100) % 2
    x = (random.random((100, 4, 4)) < 0.2 + 0.5 * y[:, None, None]).astype(np.uint8)
    np.savez(work / "data.npz", x=x, y=y)
    np.save(work / "data.npy", x)
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, work / "data.pt")
    for i in range(24):
        Image.fromarray(x[i] * 255).save(work / "images" / "ab"[i % 2] / f"{i}.png")
    for name, values in (("images-idx3", x * 255), ("labels-idx1", y.astype(np.uint8))):
        header = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
        for part in ("train", "t10k"):
            (work / "idx" / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes(), mtime=0))
    (work / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (work / "grid.yaml").write_text(yaml.safe_dump(GRID))
    (work / "readonly" / "file").write_text("nobody may change this")
    commands = [
        "train tiny.yaml --model.components 1 --out runs/S1",
        "train tiny.yaml --out runs/S2",
        "evaluate runs/S1 --total-draws 8",
        "evaluate runs/S2 --total-draws 8 --representation",
        "evaluate runs/S2 --total-draws 8 --split validation",
    ]
    if cells:
        _cells().write_h5ad(work / "cells.h5ad")
        commands.append("sc train cells.h5ad --epochs 1 --components 2 --latent 2 --out runs/cells")
    for command in commands:
        ended = forks.run(shlex.split(command), first, 120)
        assert ended.status == 0, (command, ended)
    new, old = work / "runs" / "S1", work / "runs" / "legacy"
    shutil.copytree(new, old)
    (old / "run.json").unlink()
    text = (new / "config.yaml").read_text().partition("\n")[2]
    (old / "config.yaml").write_text(text.replace(f"{work}/", ""))
    shutil.copy(next((new / "evaluations").glob("*.npz")), old / "examples.npz")
    shutil.rmtree(old / "evaluations")
    results = (old / "results.json").read_text().replace('"total_draws"', '"draws"')
    (old / "results.json").write_text(results)
    return first.rename(folder / "template")  # so that runs find the copy of their data, not these


def _cells():
    """Forty cells, twelve genes."""
    import anndata
    import pandas

    random = np.random.default_rng(0)
    counts = random.poisson(2.0, (40, 12)).astype(np.float32) + 1
    names = pandas.DataFrame({"batch": ["a", "b"] * 20, "size": counts.sum(1)}, index=[f"c{i}" for i in range(40)])
    return anndata.AnnData(counts, obs=names, var=pandas.DataFrame(index=[f"g{i}" for i in range(12)]))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.sampled_from([2**31, 2**63, 10**12, -(2**31), 0]), st.floats(),
    st.text(max_size=8), st.sampled_from(ODD), st.sampled_from(CLASSES),
)  # fmt: skip
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(ARGUMENTS), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=6,
)


def _dumped(value: object) -> str:
    """A value as a word of the command line."""
    with contextlib.suppress(Exception):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return repr(value)


SPECS = st.one_of(
    st.sampled_from(CLASSES),
    st.fixed_dictionaries(
        {"class_path": st.sampled_from(CLASSES)}, optional={name: NESTED for name in ("hidden", "lr", "init_args")}
    ).map(_dumped),
    st.dictionaries(st.sampled_from(ARGUMENTS), NESTED, max_size=3).map(_dumped),
)
WORDS = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(ODD),
    st.integers(-5, 70).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    NESTED.map(_dumped),
)


@st.composite
def values(draw, option: str, kind: object) -> str:
    """A value for an option: one of its kind, or anything."""
    name, text = option.lstrip("-"), str(kind)
    pick = draw(st.integers(0, 9))
    if pick < 5:  # of its kind
        if "Literal" in text:
            return draw(st.sampled_from(list(getattr(kind, "__args__", ("test",)))).map(str))
        if "dict" in text or name in ("training.bound", "training.gradient"):
            return draw(SPECS)
        if "bool" in text:
            return draw(st.sampled_from(["true", "false"]))
        if "int" in text:
            return str(draw(st.integers(0, 4)))
        if "float" in text:
            return str(draw(st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1.0, 0.5, 1e-3]))))
        if "path" in name or name in ("out", "per-example", "data.name"):
            return draw(st.sampled_from(["new", "new/deep/er", "new.npz", "new.npy", "new.png", "data.npy", "images"]))
    if pick < 6 and name not in LONG:
        return draw(st.sampled_from(HUGE))
    word = draw(WORDS)
    if name in LONG:
        try:
            return word if abs(float(yaml.safe_load(word))) < 100 else "3"
        except Exception:
            return word
    return word


@st.composite
def edits(draw, command: str, base: str) -> Edit:
    """One thing to do to a command."""
    known = options(command)
    size = max(1, len(shlex.split(base)))
    kinds = ["option"] * (6 if known else 0) + ["put", "put", "drop", "file", "file", "unknown"]
    kind = draw(st.sampled_from(kinds))
    if kind == "option":
        option = draw(st.sampled_from(sorted(known)))
        if draw(st.integers(0, 9)) == 0 and "." in option:
            option = f"{option}.{draw(st.sampled_from(ARGUMENTS))}"
        value = draw(values(option, known.get(option)))
        style = draw(st.integers(0, 19))
        return Edit("add", (option,) if style == 0 else (option, value) if style < 15 else (f"{option}={value}",))
    if kind == "unknown":
        return Edit("add", tuple(draw(st.lists(st.one_of(WORDS, st.just("--unknown")), min_size=1, max_size=2))))
    if kind in ("put", "drop"):
        place = draw(st.integers(0, size - 1))
        if place not in _short(command, base):
            return Edit("put", (draw(WORDS),), place) if kind == "put" else Edit("drop", (), place)
    return draw(files(base))


def _short(command: str, base: str) -> set[int]:
    """Places of the words that keep a command short."""
    words = shlex.split(base)
    places = {i for i, word in enumerate(words) if word.lstrip("-").replace("-", "_") in LONG}
    return places | {place + 1 for place in places} | ({0} if command == "train" else set())


@st.composite
def inputs(draw, command: str) -> Input:
    """A command with one to three edits."""
    base = draw(st.sampled_from(BASES.get(command, [""])))
    few = draw(st.sampled_from([1, 1, 1, 2, 2, 3]))
    return Input(command, base, tuple(draw(edits(command, base)) for _ in range(few)))


def commands(*, cells: bool) -> list[str]:
    """Commands that are tried."""
    return [name for name in COMMANDS if cells or not name.startswith("sc-")]


def cases(*, cells: bool) -> st.SearchStrategy[Input]:
    """Inputs for all commands, each as often as `SLOW` says."""
    for name in commands(cells=cells):
        options(name)  # its imports take random numbers, which Hypothesis refuses while it draws
    often = [name for name in commands(cells=cells) for _ in range(round(10 * SLOW.get(name, 1.0)))]
    return st.sampled_from(often).flatmap(inputs)


@st.composite
def files(draw, base: str) -> Edit:
    """Other bytes in one of the files that a command reads."""
    named = [word for word in ("tiny.yaml", "grid.yaml", "cells.h5ad") if word in base]
    data = next((name for name in ("data.npy", "data.pt", "images", "idx") if name in base), "data.npz")
    file = draw(st.sampled_from([*named, *named, data]))
    if file.endswith(".yaml"):
        return Edit("file", file=file, content=draw(yamls(GRID if file == "grid.yaml" else TINY)))
    if file == "images":
        return Edit("file", file=f"images/a/{draw(st.sampled_from(['0.png', '1.png']))}", content=draw(pictures()))
    if file == "idx":
        part = draw(st.sampled_from(["train-images-idx3", "train-labels-idx1", "t10k-images-idx3"]))
        return Edit("file", file=f"idx/{part}-ubyte.gz", content=draw(idx()))
    if file == "cells.h5ad":
        return Edit("file", file=file, content=draw(h5ad()))
    return Edit("file", file=file, content=draw(arrays(file)))


@st.composite
def yamls(draw, good: dict) -> bytes:
    """A configuration or grid with one to three changes, or no YAML at all."""
    if draw(st.integers(0, 5)) == 0:
        whole = yaml.safe_dump(good).encode()
        cut = draw(st.integers(0, len(whole)))
        return draw(
            st.sampled_from(
                [
                    b"", b"\n", b"\0\1\2", b"\xff\xfe", b"- 1", b"5", b"text", b"{", b"a: &a [*a]", b"&a {data: *a}",
                    b"a: &a {b: 1}\n<<: *a", b"? [1]\n: 2", b"1: 2", b"null: 1", b"data: !!python/name:os.system",
                    b"data: {name: digits}\ndata: {name: mnist}", b"\t- x", b"[" * 5000, b"{a: " * 3000, whole[:cut],
                    b"a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
                    b"data: &d [*c,*c,*c,*c,*c,*c,*c,*c]\nmodel: [*d,*d,*d,*d,*d,*d,*d,*d]",
                    whole + b"\n" + whole, whole.replace(b":", b""), whole + b"x: " + b"9" * 5000,
                    b"---\na: 1\n---\nb: 2",
                ]
            )
        )  # fmt: skip
    content = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        place, key = content, draw(st.sampled_from(sorted(content, key=str))) if content else "data"
        while isinstance(place.get(key), dict) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place, key=str)))
        how = draw(st.sampled_from(["drop", "rename", "value", "value", "value", "add", "deep"]))
        if how in ("drop", "rename"):
            value = place.pop(key, None)
            if how == "rename":
                place[draw(st.one_of(st.text(max_size=5), st.integers(), st.none(), st.booleans()))] = value
        elif how == "value":
            place[key] = draw(NESTED)
        elif how == "add":
            place[draw(st.one_of(st.sampled_from(ARGUMENTS), st.sampled_from(sorted(TINY["training"]))))] = draw(NESTED)
        else:
            for _ in range(draw(st.sampled_from([1, 5, 300]))):
                place[key] = {key: place.get(key)}
    try:
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except Exception:
        return repr(content).encode("utf-8", "surrogatepass")


@st.composite
def broken(draw, whole: bytes) -> bytes | None:
    """Bytes that were truncated, flipped, emptied or removed."""
    how = draw(st.sampled_from(["truncated", "flipped", "empty", "removed", "longer", "text"]))
    if how == "truncated":
        return whole[: draw(st.integers(0, max(0, len(whole) - 1)))]
    if how == "flipped" and whole:
        changed = bytearray(whole)
        for _ in range(draw(st.sampled_from([1, 1, 4, 50]))):
            changed[draw(st.integers(0, min(len(whole) - 1, draw(st.sampled_from([300, 10**9])))))] ^= draw(
                st.integers(1, 255)
            )
        return bytes(changed)
    longer = whole + draw(st.binary(min_size=1, max_size=20))
    return {"empty": b"", "removed": None, "longer": longer}.get(how, b"this is a text\n")


DTYPES = ("uint8", "int8", "int64", "uint64", "float16", "float32", "float64", "complex64", "bool", "U3", "S2", "M8[s]",
          "object", "longdouble")  # fmt: skip


@st.composite
def odd_array(draw, *, labels: bool) -> np.ndarray:
    """An array that is not quite what data are."""
    size = draw(st.sampled_from([0, 1, 2, 9, 10, 100, 100, 100]))
    shape = (
        (size,) if labels else (size, *draw(st.sampled_from([(4, 4), (4, 4), (16,), (1, 4, 4), (3, 4, 4), (4, 4, 3)])))
    )
    shape = draw(st.sampled_from([shape, shape, shape, shape, (), (size,), (size, 0), (size, 1, 1, 1, 1), (size, 1)]))
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape) % draw(st.sampled_from([1, 2, 2, 3, 100, 300])))
    with np.errstate(all="ignore"):
        array = array.astype(draw(st.sampled_from(DTYPES)))
    if array.dtype.kind == "f" and array.size:
        odd = [0.5, float("nan"), float("inf"), -1.0, 6e4, 1e30]
        with np.errstate(all="ignore"):
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(odd))
    return np.asfortranarray(array) if draw(st.booleans()) else array


@st.composite
def arrays(draw, file: str) -> bytes | None:
    """An array file that was damaged, or that holds something odd."""
    suffix = Path(file).suffix
    x, y = np.zeros((100, 4, 4), np.uint8), np.arange(100) % 2
    how = draw(st.sampled_from(["damaged", "odd", "odd", "labels", "names", "header"]))
    named = {"x": x, "y": y}
    if how == "odd":
        named["x"] = draw(odd_array(labels=False))
        named["y"] = (np.arange(named["x"].shape[0]) % 2) if named["x"].ndim else y
    elif how == "labels":
        named["y"] = draw(odd_array(labels=True))
    elif how == "names":
        named = draw(st.sampled_from([{}, {"y": y}, {"X": x}, {"x": x}, {"x": x, "y": y, "z": x}, {"x": y, "y": x}]))
    if how == "header" and suffix != ".pt":
        header = draw(st.sampled_from([
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 4, 4), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (100, 4, 4), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (100, 4), }",
            "{'descr': '<f999', 'fortran_order': False, 'shape': (100, 4, 4), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (2.5, 4, 4), }", "(" * 300, "", "{", "x" * 20000,
        ]))  # fmt: skip
        text = header.encode()
        member = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) % 65536) + text + bytes(1600)
        return member if suffix == ".npy" else _zip({"x.npy": member})
    whole = _saved(named, suffix)
    return draw(broken(whole)) if how == "damaged" else whole


def _saved(named: dict[str, np.ndarray], suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez(buffer, **named)  # pyright: ignore
    elif suffix == ".npy":
        np.save(buffer, named.get("x", np.zeros(0)))
    else:
        content = {}
        for name, array in named.items():
            try:
                content[name] = torch.from_numpy(array)
            except TypeError:
                content[name] = array.tolist()
        torch.save(content, buffer)
    return buffer.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


@st.composite
def pictures(draw) -> bytes | None:
    """A picture that was damaged, or that is not like the others."""
    mode = draw(st.sampled_from(["L", "RGB", "RGBA", "P", "1", "I;16", "LA", "F"]))
    form = (
        "TIFF" if mode in ("F", "I;16") else draw(st.sampled_from(["PNG", "GIF", "BMP"] if mode != "LA" else ["PNG"]))
    )
    size = draw(st.sampled_from([(4, 4), (4, 4), (5, 4), (1, 1)]))
    buffer = io.BytesIO()
    try:
        Image.new(mode, size).save(buffer, form)
    except (OSError, ValueError):
        return b""
    return draw(broken(buffer.getvalue())) if draw(st.booleans()) else buffer.getvalue()


@st.composite
def idx(draw) -> bytes | None:
    """An IDX file that was damaged, or promises something else than it holds."""
    shape = draw(
        st.sampled_from([(100, 4, 4), (0, 4, 4), (1, 4, 4), (2**31, 2**31, 2), (100,), (5, 2), (100, 4, 4, 1)])
    )
    kind = draw(st.sampled_from([8, 8, 8, 9, 13]))
    body = bytes(min(5000, int(np.prod(shape, dtype=object))))
    whole = struct.pack(f">I{len(shape)}I", kind * 256 + len(shape), *shape) + body
    whole = gzip.compress(whole, mtime=0) if draw(st.booleans()) else whole
    return draw(broken(whole)) if draw(st.booleans()) else whole


@st.composite
def h5ad(draw) -> bytes | None:
    """Cells that were damaged, or whose counts are odd."""
    import tempfile

    cells = _cells()
    how = draw(st.sampled_from(["damaged", "damaged", "negative", "nan", "fraction", "few", "none", "zeros", "names"]))
    if how == "negative":
        cells.X[3, 3] = -1
    elif how == "nan":
        cells.X[3, 3] = draw(st.sampled_from([np.nan, np.inf, 1e30]))
    elif how == "fraction":
        cells.X[:] += 0.5
    elif how == "few":
        cells = cells[: draw(st.integers(1, 3))].copy()
    elif how == "none":
        cells = cells[:0].copy() if draw(st.booleans()) else cells[:, :0].copy()
    elif how == "zeros":
        cells.X[:] = 0
    elif how == "names":
        cells.var_names = ["g0"] * 12
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        cells.write_h5ad(path)
        whole = path.read_bytes()
    return draw(broken(whole)) if how == "damaged" else whole


def faults_of(case: Input, forks: Forks, template: Path, root: Path, before: dict[str, str]):
    """How a command ends, and what is wrong with that."""
    sandbox(template, root)
    case.change_files(root / "work")
    if any(edit.kind == "file" for edit in case.edits):
        before = tree(root)
    outcome = forks.run(case.words, root)
    return outcome, faults(outcome, case.command, before, tree(root))
