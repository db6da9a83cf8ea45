"""The single-cell study: every model a run, every evaluation with its identity, and legacy results as they were."""

import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixvae import cli
from mixvae.evaluation import Gain
from mixvae.files import read_json, write_json
from mixvae.progress import Silent
from mixvae.reports import between_trainings, student
from mixvae.reproduce import EXPERIMENTS
from mixvae.reproduce.cells import integration, study
from mixvae.reproduce.cells.plan import still
from mixvae.reproduce.cells.results import integration_table, table, unchanged
from mixvae.reproduce.findings import Changes
from mixvae.runs import evaluation_of, open_run
from mixvae.single_cell import runs

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = {"epochs": 2, "warmup": 1, "total_draws": 20}
JOBS = [
    study.Job(study.SCVI_NAME, 1, 0),
    study.Job(study.MIXTURE, 2, 0),
    study.Job(study.FROZEN, 2, 0),
    study.Job(study.SCVI_NAME, 1, 1),
    study.Job(study.MIXTURE, 2, 1),
    study.Job(study.UNNORMALISED, 2, 0),
]


@pytest.fixture(scope="module")
def typed(real):
    """Cells of two kinds, and of finer ones; not to be changed."""
    cells = real.copy()
    cells.obs["cell_type"], cells.obs["precise_type"] = cells.obs["kind"], cells.obs["donor"]
    return cells


@pytest.fixture(scope="module")
def studied(typed, tmp_path_factory):
    """Folder and results of a small study; not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    results = tuple(study.run(folder, JOBS, **SETTINGS, data=typed.copy()))
    for result in results:
        for values in result.bounds.values():
            values.setflags(write=False)
    return folder, results


@pytest.fixture
def copied(studied, tmp_path):
    """A copy of the study's folder."""
    return shutil.copytree(studied[0], tmp_path / "study")


@pytest.fixture
def untrainable(monkeypatch):
    """Any training is an error."""

    def fit(*args, **kwargs):
        raise AssertionError("it trains")

    monkeypatch.setattr(runs, "fit", fit)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_study_compares_models_between_trainings_and_resumes(studied, typed, untrainable):
    folder, results = studied
    rows = {(row["model"], row["size"]): row for row in table(results)}
    assert set(rows) == {
        ("scvi", 1),
        ("mixture", 2),
        ("frozen", 2),
        ("nobatchnorm", 2),
        *(("samples", s) for s in range(1, 6)),
    }
    names = [job.kind for job in JOBS]
    for bound in ("log_px", "elbo", "miselbo", "pooled"):
        values = {
            kind: [r.bounds[bound].mean() for r, k in zip(results, names, strict=True) if k == kind] for kind in names
        }
        between = between_trainings(values)
        gain, row = between.difference("mixture", "scvi"), rows["mixture", 2]
        assert (row[bound], row[f"{bound}_margin"]) == pytest.approx(
            (np.mean(values["mixture"]), between.margin("mixture"))
        )
        assert (row[f"{bound}_gain"], row[f"{bound}_gain_margin"]) == pytest.approx((gain.mean, gain.margin))
        assert f"{bound}_gain" not in rows["scvi", 1]
    own = [r["representation"] for r, kind in zip(results, names, strict=True) if kind == "scvi"]
    paired = [one["samples2"]["ari"] - one["scvi"]["ari"] for one in own]
    assert rows["samples", 2]["ari_gain"] == pytest.approx(np.mean(paired))
    assert rows["samples", 2]["ari_gain_margin"] == pytest.approx(student(1) * np.std(paired, ddof=1) / np.sqrt(2))
    before = files(folder)
    again = study.run(folder, JOBS, **SETTINGS, data=typed.copy())
    assert [made.results for made in again] == [made.results for made in results]
    assert files(folder) == before


def test_a_frozen_decoder_is_held_against_its_own_seeds_scvi(studied):
    by_job = dict(zip(JOBS, studied[1], strict=True))
    frozen, before = by_job[study.Job("frozen", 2, 0)], by_job[study.Job("scvi", 1, 0)]
    each = frozen.bounds["log_px"] - before.bounds["log_px"]
    ((size, change),) = unchanged(studied[1])
    assert size == 2
    assert change == pytest.approx((each.mean(), each.std(ddof=1) / np.sqrt(len(each))))
    assert [v.holds for v in still([(2, Gain(0.02, 0.01)), (3, Gain(-0.022, 0.01))])] == [True, True]
    assert [v.holds for v in still([(2, Gain(0.0, 0.01)), (3, Gain(-0.023, 0.01))])] == [True, False]
    assert [v.holds for v in still([(2, Gain(0.0, 0.25)), (3, Gain(0.0, 0.01))])] == [None, True], "errors hide"
    assert [v.holds for v in still([(2, Gain(0.7, 0.01)), (3, Gain(0.0, 0.01))])] == [False, False]
    assert still([]) == []


def test_models_of_equal_draws_are_trained_apart_and_contrasted(tmp_path, monkeypatch, typed):
    monkeypatch.setattr(study, "trial", lambda cells: typed.copy())
    plan = replace(EXPERIMENTS["cortex"].scales["smoke"], frozen=(), sizes=(3,), unnormalised=())
    plan = replace(plan, drawn={"mixture": (3,)}, settings={**plan.settings, "epochs": 1})
    found = plan.carry_out(tmp_path, runner=None, progress=Silent())
    recipes = [open_run(tmp_path / f"mixture-S1-L3-seed{seed}").recipe.identity for seed in (0, 1)]
    assert [recipe["training"]["draws_per_component"] for recipe in recipes] == [3, 3]
    assert "draws_per_component" not in open_run(tmp_path / "mixture-S3-seed0").recipe.identity["training"]
    rows = {row["model"]: row for row in found.table if row["model"] != "samples"}
    assert {name: row["draws_per_step"] for name, row in rows.items()} == {
        "scvi": 1, "mixture": 3, "mixture, 3 draws": 3
    }  # fmt: skip
    assert rows["mixture"]["posterior_gain"] == pytest.approx(
        rows["mixture"]["elbo_gain"] - rows["mixture"]["log_px_gain"]
    )
    assert rows["scvi"]["marginal_ll"] == pytest.approx(rows["scvi"]["pooled"], abs=10), "by other draws"
    first = found.contrasts[0]
    assert (first["kind"], first["contrast"]) == ("primary", "mixture S = 3 over mixture, 3 draws S = 1")
    assert first["difference"] == pytest.approx(rows["mixture"]["log_px"] - rows["mixture, 3 draws"]["log_px"])
    assert found.draws["mixture S = 3 over scvi S = 1"] == (3, 1), "SCVI takes one"
    assert rows["scvi"]["unreliable"] is None, "too few draws to know"


def test_every_study_model_is_a_run_with_its_own_evaluation(studied):
    folder, results = studied
    for job, result in zip(JOBS, results, strict=True):
        run = open_run(folder / job.name)
        assert (run.state, run.epoch) == ("done", 2)
        identity = result.identity
        assert identity.weights == run.weights_sha256
        assert identity.recipe == run.recipe.sha256
        assert identity.data == run.recipe.identity["data"]["sha256"]
        assert (identity.split, identity.examples, identity.components) == ("test", 17, job.components)
        found = evaluation_of(run)
        assert found.identity == identity
        np.testing.assert_array_equal(found.bounds["pooled"], result.bounds["pooled"])
    frozen = open_run(folder / "frozen-S2-seed0").recipe.identity
    assert frozen["start"]["sha256"] == open_run(folder / "scvi-S1-seed0").weights_sha256
    assert frozen["model"]["freeze_decoder"]
    assert not list(folder.glob("*.json")), "results lie in the runs"
    assert not list(folder.rglob("model.pt")), "a pickle"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"epochs": 400}, "epochs is 2, not 400"),
        ({"patience": 3}, "patience is 45, not 3"),
        ({"warmup": 2}, "training.kl_warmup is 1, not 2"),
        ({"batch": 64}, "training.batch is 128, not 64"),
    ],
)
def test_study_of_other_settings_is_not_reused_or_trained_on(studied, typed, untrainable, changed, what):
    before = files(studied[0])
    with pytest.raises(ValueError, match=f"scvi-S1-seed0 was made from something else: {what}"):
        study.run(studied[0], JOBS, **{**SETTINGS, **changed}, data=typed.copy())
    assert files(studied[0]) == before


def test_study_of_other_cells_is_refused_even_at_equal_count(studied, typed, untrainable):
    for cells, what in ((typed[::-1].copy(), "data.sha256"), (typed[:100].copy(), "data.cells is 120, not 100")):
        with pytest.raises(ValueError, match=f"was made from something else: {what}"):
            study.run(studied[0], JOBS, **SETTINGS, data=cells)


def test_other_draws_or_labels_are_reevaluated_without_training(copied, studied, typed, untrainable):
    old = studied[1][1]
    more = study.run(copied, JOBS[:2], **{**SETTINGS, "total_draws": 30}, data=typed.copy())[1]
    assert more.identity.total_draws == 30
    assert more.identity.weights == old.identity.weights
    evaluations = copied / JOBS[1].name / "evaluations"
    assert {path.name for path in evaluations.glob("*.json")} == {
        f"{identity.key}.json" for identity in (old.identity, more.identity)
    }
    cells = typed.copy()
    cells.obs["cell_type"] = np.where(np.arange(cells.n_obs) % 2 == 0, "even", "odd")
    other = study.run(copied, JOBS[:2], **SETTINGS, data=cells)[1]
    assert other["nll_pooled"] == old["nll_pooled"]
    assert other["representation"]["mixture"]["svm"] != old["representation"]["mixture"]["svm"]


def test_damaged_evaluation_is_redone_damaged_run_is_refused(copied, studied, typed, untrainable):
    name = JOBS[0].name
    arrays = next((copied / name / "evaluations").glob("*.npz"))
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:-10])
    again = study.run(copied, JOBS[:1], **SETTINGS, data=typed.copy())
    assert again[0].results == studied[1][0].results, "samples depend on how the model came there"
    weights = copied / name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is truncated, damaged or replaced"):
        study.run(copied, JOBS[:1], **SETTINGS, data=typed.copy())


def test_results_are_read_without_weights_that_no_start_lacks(copied, studied, typed, untrainable):
    for path in copied.glob("*/model.safetensors"):
        path.unlink()
    again = study.run(copied, JOBS, **SETTINGS, data=typed.copy())
    assert [one.results for one in again] == [one.results for one in studied[1]]
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        study.run(copied, JOBS, **{**SETTINGS, "total_draws": 30}, data=typed.copy())
    frozen = next(job for job in JOBS if job.kind == "frozen")
    shutil.rmtree(copied / frozen.name)
    with pytest.raises(FileNotFoundError, match="scvi-S1-seed0/model.safetensors is missing"):
        study.run(copied, [frozen], **SETTINGS, data=typed.copy())


def test_a_killed_model_of_a_study_goes_on_bit_for_bit(studied, typed, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    class Killing(Silent):
        def update(self, done, total, text=""):
            raise Killed

    fit = runs.fit
    monkeypatch.setattr(runs, "fit", lambda *args, **kwargs: fit(*args, **kwargs, progress=Killing()))
    with pytest.raises(Killed):
        study.run(tmp_path, JOBS[:1], **SETTINGS, data=typed.copy())
    run = open_run(tmp_path / JOBS[0].name)
    assert (run.state, run.epoch) == ("stopped", 1)
    monkeypatch.undo()
    resumed = study.run(tmp_path, JOBS[:1], **SETTINGS, data=typed.copy())[0]
    assert resumed.identity == studied[1][0].identity, "other weights"
    assert resumed["nll_pooled"] == studied[1][0]["nll_pooled"]


def test_results_of_different_cells_are_not_put_into_one_table(studied, typed, tmp_path):
    others = study.run(tmp_path, JOBS[:1], **SETTINGS, data=typed[::-1].copy())
    with pytest.raises(ValueError, match="different data sets"):
        list(table([*others, studied[1][1]]))
    with pytest.raises(ValueError, match="add scvi-S1-seed0"):
        list(table(studied[1][1:2]))


def published_with(monkeypatch, folder, words):
    """A folder as the script publishes it after a command."""
    write_json(folder / "results.json", {"command": f"mixvae reproduce {words} --out {folder}"})
    monkeypatch.syspath_prepend(DOCS.parent / ".ci")
    target = folder.parent / f"{folder.name} published"
    runpy.run_path(str(DOCS.parent / ".ci" / "publish.py"))["publish"](folder, target)
    (folder / "results.json").unlink()
    return target


def test_integration_makes_runs_and_refuses_other_settings(typed, tmp_path, monkeypatch):
    import pandas as pd

    def scores(adata, keys, **_):
        return pd.DataFrame({"Total": [float(adata.obsm[keys[0]].sum())]}, index=keys)

    monkeypatch.setattr(integration, "integration_scores", scores)
    made = integration.integrate(tmp_path, (2,), (0,), epochs=1, warmup=1, data=typed)
    assert [(m["kind"], m["components"], m["epochs"]) for m in made] == [("scvi", 1, 1), ("mixture", 2, 1)]
    assert open_run(tmp_path / "mixture-S2-seed0").state == "done"
    assert len(integration_table(made)) == 2
    plan = replace(EXPERIMENTS["integration"].scales["smoke"], epochs=1, warmup=1)
    monkeypatch.setattr(study, "trial", lambda cells: typed)
    found = plan.changed(Changes(seeds=[0])).carry_out(tmp_path, runner=None, progress=Silent())
    assert list(found.draws.values()) == [(2.0, 1.0)]
    published = published_with(monkeypatch, tmp_path, "integration --scale smoke --seeds 0 --epochs 1 --warmup 1")
    assert (published / "scvi-S1-seed0" / "evaluations" / "integration.npz").exists(), "it has no bounds"
    assert integration.integrate(published, (2,), (0,), epochs=1, warmup=1, data=typed) == made
    (published / "scvi-S1-seed0" / "evaluations" / "integration.npz").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        integration.integrate(published, (2,), (0,), epochs=1, warmup=1, data=typed)
    before = files(tmp_path)
    assert integration.integrate(tmp_path, (2,), (0,), epochs=1, warmup=1, data=typed) == made
    assert files(tmp_path) == before
    with pytest.raises(ValueError, match="training.kl_warmup is 1, not 2"):
        integration.integrate(tmp_path, (2,), (0,), epochs=1, warmup=2, data=typed)


# Results from before results had an identity.


@pytest.fixture
def legacy(tmp_path):
    """A copy of the recorded CORTEX results."""
    return shutil.copytree(DOCS / "data" / "cortex", tmp_path / "cortex")


LEGACY_SCORES = """
Total 0.805 ± 0.009 | 0.818 ± 0.009 | 0.820 ± 0.009
Bio conservation 0.718 ± 0.014 | 0.734 ± 0.014 | 0.737 ± 0.014
Batch correction 0.937 ± 0.006 | 0.944 ± 0.006 | 0.944 ± 0.006
Isolated labels 0.600 ± 0.005 | 0.603 ± 0.005 | 0.603 ± 0.005
KMeans NMI 0.713 ± 0.082 | 0.746 ± 0.008 | 0.757 ± 0.041
KMeans ARI 0.670 ± 0.029 | 0.708 ± 0.029 | 0.717 ± 0.029
Silhouette label 0.607 ± 0.006 | 0.612 ± 0.006 | 0.610 ± 0.006
cLISI 0.998 ± 0.000 | 0.999 ± 0.000 | 0.998 ± 0.000
BRAS 0.951 ± 0.005 | 0.959 ± 0.005 | 0.957 ± 0.005
iLISI 0.887 ± 0.007 | 0.897 ± 0.007 | 0.895 ± 0.007
KBET 0.939 ± 0.012 | 0.942 ± 0.012 | 0.933 ± 0.012
Graph connectivity 0.958 ± 0.006 | 0.958 ± 0.006 | 0.960 ± 0.006
PCR comparison 0.949 ± 0.015 | 0.963 ± 0.015 | 0.975 ± 0.015
"""


def test_legacy_integration_results_keep_their_table(legacy):
    rows = integration_table(integration.integrate(legacy / "integration"))
    printed = re.findall(r"^(.+?) (0\.[^|]+) \| ([^|]+) \| ([^|\n]+)$", LEGACY_SCORES, re.MULTILINE)
    assert len(printed) == 13
    for name, *cells in printed:
        assert cells == [f"{row[name]:.3f} ± {row[f'{name}_margin']:.3f}" for row in rows], name


def test_legacy_cortex_results_print_without_training_or_data(legacy, capsys, untrainable, monkeypatch, as_users_run):
    def missing(*args, **kwargs):
        raise AssertionError("it loads cells")

    monkeypatch.setattr(study, "cortex", missing)
    monkeypatch.setattr(integration, "cortex", missing)
    before = files(legacy)
    cli.main(["reproduce", "single_cell", "--out", str(legacy)])
    text = capsys.readouterr().out
    for value in ("-2,344.7 ±", "-2,330.1 ±", "-2,326.6 ±", "+2.9 ±", "2.54", "0.674 ±", "+0.039 ±"):
        assert value.replace("-", "−") in text
    assert "legacy" in text
    cli.main(["reproduce", "integration", "--out", str(legacy / "integration")])
    text = capsys.readouterr().out
    for value in ("0.805 ±", "0.818 ±", "0.820 ±", "0.737 ±", "0.944 ±"):
        assert value in text
    after = files(legacy)
    assert {path: after[path] for path in before} == before


def test_legacy_smoke_results_do_not_pass_for_the_cortex_plan(legacy, untrainable):
    path = legacy / "mixture-S2-seed0.json"
    whole = read_json(path)
    write_json(path, whole | {"settings": {"epochs": 2, "warmup": 1, "patience": 2, "draws": 10, "batch": 128}})
    with pytest.raises(ValueError, match=r"mixture-S2-seed0.json was made with something else: epochs is 2, not 400"):
        study.run(legacy)
    write_json(path, whole | {"pooled": whole["pooled"][:27]})
    with pytest.raises(ValueError, match="number of held-out cells is 27, not 405"):
        study.run(legacy)
    write_json(path, whole)
    with pytest.raises(ValueError, match="batch is 128, not 512"):
        study.run(legacy, batch=512)
    write_json(path, {"kind": "mixture"})
    with pytest.raises(ValueError, match="is not a result of this experiment"):
        study.run(legacy)


def test_legacy_and_new_results_are_never_mixed(legacy, studied, typed, untrainable):
    (legacy / "frozen-S5-seed2.json").unlink()
    with pytest.raises(ValueError, match="holds legacy results, .* but not of frozen-S5-seed2"):
        study.run(legacy)
    results = study.run(legacy, JOBS[:2])
    with pytest.raises(ValueError, match="one is legacy"):
        list(table([*results, studied[1][1]]))
    shutil.copytree(studied[0] / JOBS[0].name, legacy / JOBS[0].name)
    with pytest.raises(ValueError, match="legacy results pair with each other only"):
        study.run(legacy, JOBS[:2])
    with pytest.raises(ValueError, match="epochs is 100, not 7"):
        integration.integrate(legacy / "integration", epochs=7)
    with pytest.raises(ValueError, match="warmup is 50, not 7"):
        integration.integrate(legacy / "integration", warmup=7)


# Everything around it.


def test_bad_study_options_are_one_line_before_any_training(tmp_path, capsys, untrainable, as_users_run):
    for options, message in (
        (["--models", "mixtur"], "unknown model 'mixtur': did you mean mixture?"),
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--warmup", "-1"], "warmup must be at least 0; got -1"),
        (["--seeds", "1,1"], "seeds must be different numbers"),
    ):
        for name in ("single_cell", "integration"):
            message = "leave out models" if (name, options[0]) == ("integration", "--models") else message
            with pytest.raises(SystemExit) as end:
                cli.main(["reproduce", name, "--out", str(tmp_path / "out"), *options])
            err = capsys.readouterr().err
            assert end.value.code == 2
            assert message in err
            assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.json"))


def test_all_models_of_the_paper_are_in_the_study():
    names = [job.name for job in study.jobs()]
    assert len(names) == len(set(names)) == 45
    for s in range(1, 6):
        assert sum(name.startswith(f"mixture-S{s}-") for name in names) == (6 if s in (1, 3) else 3)
    assert sum(name.startswith("scvi") for name in names) == 6
    everything = EXPERIMENTS["single_cell"].scales["small"]
    assert study.jobs(everything.seeds, everything.more_seeds, unnormalised=everything.unnormalised) == study.jobs()
    few = everything.changed(Changes(seeds=[7], models=["mixture"]))
    listed = study.jobs(few.seeds, few.more_seeds, sizes=few.sizes, frozen=few.frozen, unnormalised=few.unnormalised)
    assert [job.name for job in listed] == ["scvi-S1-seed7", *(f"mixture-S{s}-seed7" for s in range(1, 6))]


def test_cells_are_split_without_overlap():
    assert [len(part) for part in study.split(3005)] == list(study.SIZES)
    assert sorted(np.concatenate(study.split(120))) == list(range(120))


def test_cells_are_thinned_in_one_batch_only(cells):
    batched = integration.with_batches(cells)
    theirs = cells[batched.obs_names]
    whole = (batched.obs["batch"] == "whole").to_numpy()
    assert (batched.X[whole] != theirs.X[whole]).nnz == 0
    assert (batched.X[~whole] > theirs.X[~whole]).nnz == 0
    assert 0.3 < batched.X[~whole].sum() / theirs.X[~whole].sum() < 0.8
