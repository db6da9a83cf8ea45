"""What a model or a run is asked: samples, reconstructions, paths between examples, and data that it never saw."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Distribution, Independent, constraints
from torch.utils.data import DataLoader

import mixvae
from conftest import Recorded, binary, forge, refused, tiny_model
from mixvae import datasets, reports, runs
from mixvae.cli import main
from mixvae.datasets import Split, as_split
from mixvae.datasets._given import Given
from mixvae.decoders import Bernoulli, Decoder, GaussianLikelihood, MLPDecoder, PixelCNNDecoder
from mixvae.distributions import DiagonalGaussian
from mixvae.evaluation import paired_gain
from mixvae.model import MixtureVAE
from mixvae.networks import GatedEncoder
from mixvae.posteriors import MixturePosterior, SeparateEncoders
from mixvae.priors import StandardNormal
from mixvae.runs._examples import _other_unit
from mixvae.sampling import AT_ONCE


class Names(nn.Module):
    """Logits of three categories for each of four values, and no mean."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 12)

    def forward(self, z):
        return Independent(Categorical(logits=self.network(z).unflatten(-1, (4, 3))), 1)


def of_names():
    model = tiny_model(shape=(4,)).float()
    return MixtureVAE(model.posterior, model.prior, Names())


def test_categories_are_shown_by_their_mode_never_as_nan():
    model, x = of_names(), torch.tensor([[0.0, 1.0, 2.0, 1.0]])
    rebuilt, means = model.reconstruct(x), model.sample(50, seed=0)
    z = model.centres(x)
    likeliest = model.decoder.network(z).unflatten(-1, (4, 3)).argmax(-1).float()
    assert torch.equal(rebuilt, likeliest)
    assert means.dtype == torch.float32
    assert set(means.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert set(model.sample(50, kind="draws", seed=0).unique().tolist()) == {0.0, 1.0, 2.0}


class Meanless(Distribution):
    """A user's likelihood that defines no mean."""

    support = constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def sample(self, sample_shape=()):
        return self.loc + torch.randn(*sample_shape, *self.loc.shape)


def test_a_likelihood_without_a_mean_is_drawn_from():
    model = tiny_model(shape=(4,)).float()
    model = MixtureVAE(model.posterior, model.prior, Decoder(nn.Linear(2, 4), Meanless))
    with pytest.raises(ValueError, match="likelihood Meanless has no mean: draw samples of kind draws"):
        model.sample(2)
    assert model.sample(2, kind="draws").shape == (2, 4)


def test_samples_depend_on_their_seed_alone():
    model = tiny_model(3)
    for settings in ({}, {"kind": "draws"}, {"examples": binary(7)}, {"kind": "draws", "examples": binary(7)}):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = model.sample(2 * AT_ONCE + 1, seed=5, **settings)
        assert torch.equal(torch.get_rng_state(), before), "torch's generator was disturbed"
        torch.rand(17)
        assert torch.equal(model.sample(2 * AT_ONCE + 1, seed=5, **settings), first)
        assert not torch.equal(model.sample(2 * AT_ONCE + 1, seed=6, **settings), first)
        assert first.unique(dim=0).shape[0] > 8 or settings, "batches repeat each other"
    torch.manual_seed(3)
    unseeded = model.sample(4)
    assert not torch.equal(model.sample(4), unseeded)
    torch.manual_seed(3)
    assert torch.equal(model.sample(4), unseeded)


def test_means_and_draws_of_one_seed_are_of_the_same_latents():
    model, n = tiny_model(2), 4000
    means, drawn = (model.sample(n, kind=kind, seed=1) for kind in ("means", "draws"))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (means * (1 - means)).sum().sqrt() / means.numel()  # of the mean of independent Bernoulli variables
    assert abs(drawn.mean() - means.mean()) < 4 * error
    assert torch.corrcoef(torch.stack([means.flatten(), drawn.flatten()]))[0, 1] > 0.1


class Table(MixturePosterior):
    """Component s of example x is N((x, s), 0.01² I)."""

    def __init__(self, weights):
        super().__init__(len(weights), weights)

    def forward(self, x, index=None):
        s = torch.arange(self.components, dtype=x.dtype)[:, None].expand(-1, len(x))
        mean = torch.stack([x[:, 0].expand_as(s), s], -1)
        return DiagonalGaussian(mean, torch.full_like(mean, 2 * math.log(0.01)), self.log_pi().to(x))

    def _add(self, sources, noise, *, fresh):
        raise NotImplementedError


class Seen(nn.Module):
    """N(z, 0.01² I), cut to the first coordinate's shape: it shows the latents themselves."""

    def forward(self, z):
        return Independent(torch.distributions.Normal(z, 0.01), 1)


def test_the_aggregated_posterior_meets_its_enumeration():
    """Examples −1, 0, 5 uniformly, components 0, 1 by 0.75, 0.25: six cells of known probability."""
    weights, values, n = [0.75, 0.25], [-1.0, 0.0, 5.0], 6000
    model = MixtureVAE(Table(weights), StandardNormal(2), Seen())
    x = torch.tensor([[value, 0.0] for value in values])
    z = model.sample(n, examples=x, seed=0)
    for (i, value), (s, weight) in itertools.product(enumerate(values), enumerate(weights)):
        near = ((z - torch.tensor([value, float(s)])).abs() < 0.06).all(-1)  # six standard deviations
        p = weight / len(values)
        assert abs(near.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n), (i, s)


def test_examples_of_another_shape_are_refused_before_sampling():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2\); x has shape \(3,\)"):
        tiny_model().sample(2, examples=torch.ones(5, 3))


def test_an_example_without_a_batch_is_told_so():
    """The channel of a grey image was counted as an example."""
    model = of_images((3, 2, 2))
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 2\) in each of its 3 examples: it is one example .* x\[None\]"
    ):
        model.sample(2, examples=torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match=r"x has shape \(4,\) in its only example$"):
        model.sample(2, examples=torch.ones(1, 4))
    for x in (np.ones((7, 4)), [np.ones(4, np.float32)] * 7, DataLoader(torch.ones(7, 4), 2)):
        with pytest.raises(ValueError, match=r"observations of shape \(3, 2, 2\); x has shape \(4,\) in each of its 7"):
            mixvae.encode(model, x)


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"n": 2, "kind": "modes"}, {"n": 2, "seed": -1}, {"n": 2.5}, {"n": (2, 3)}]
)
def test_wrong_samples_are_refused_at_once(wrong, as_users_run):
    with pytest.raises(ValueError, match="at least|means or draws|a whole number; got"):
        tiny_model().sample(**wrong)


def test_reconstructions_by_a_seed_leave_the_generator_alone():
    """A PixelCNN's mean is a draw."""
    model = tiny_model(2).float()
    model = MixtureVAE(model.posterior, model.prior, PixelCNNDecoder(2, (1, 2, 2), 2, 4))
    x = binary(3).float()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = model.reconstruct(x, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(model.reconstruct(x, seed=1), first)
    model.check(x)
    with pytest.raises(ValueError, match="outside the likelihood's support"):
        model.reconstruct(x + 0.5)


def test_a_path_is_a_plain_loop_between_reconstructions():
    model, (a, b) = tiny_model(3), binary(2)
    paths = mixvae.interpolate(model, a, b, steps=5)
    assert paths.shape == (3, 5, 1, 2, 2)
    rebuilt = model.reconstruct(torch.stack([a, b]))
    torch.testing.assert_close(paths[:, 0], rebuilt[:, 0])
    torch.testing.assert_close(paths[:, -1], rebuilt[:, 1])
    q = model.posterior(torch.stack([a, b]))
    for s, step in itertools.product(range(3), range(5)):
        z = (1 - step / 4) * q.mean[s, 0] + step / 4 * q.mean[s, 1]
        torch.testing.assert_close(paths[s, step], model.decoder(z).mean)


def test_a_spherical_path_turns_at_constant_speed():
    from mixvae.analysis._interpolation import _arc

    first = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    last = torch.tensor([[0.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)[None, :, None]
    path = _arc(first, last, t)
    angle = t[0, :, 0] * math.pi / 2
    circle = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0 * angle], -1)
    torch.testing.assert_close(path[0], circle)  # a quarter of a circle of radius 2
    torch.testing.assert_close(path[1:], (1 - t) * first[1:, None] + t * last[1:, None])  # no angle: straight
    with pytest.raises(ValueError, match="opposite directions"):
        _arc(first[:1], -first[:1], t)


def test_a_path_between_wrong_examples_is_one_line(as_users_run):
    model, (a, b) = tiny_model(), binary(2)
    with pytest.raises(ValueError, match="steps must be at least 2; got 1"):
        mixvae.interpolate(model, a, b, steps=1)
    with pytest.raises(ValueError, match=r"same shape; got \(1, 2, 2\) and \(2,\)"):
        mixvae.interpolate(model, a, b[0, 0])
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2\); x has shape \(2,\) in each of its 2 examples"):
        mixvae.interpolate(model, a[0, 0], b[0, 0])


SMALL = ["--data.limit=200", "--training.epochs=2", "--model.latent=3", "--model.encoder.hidden=[12]"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs, S = 1 and S = 2, the first evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    for s in (1, 2):
        main(["train", "digits", "--out", str(folder / f"S{s}"), f"--model.components={s}", *SMALL])
    runs.evaluate(folder / "S1", 10)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The grey test images of the digits before they are binarised, in a file."""
    path = tmp_path_factory.mktemp("new") / "images.npy"
    np.save(path, datasets.load_dataset("digits", binarize="none").test.batch(slice(None)).numpy())
    return path


def test_new_data_are_treated_as_test_examples_were(two, images):
    """The test images from a file are the test examples: the same binarisation, bound by bound."""
    own = runs.evaluate(two / "S1", 10)
    heard = Recorded()
    new = runs.evaluate(two / "S1", 10, data=images, progress=heard)
    assert new.identity.observations == own.identity.observations
    for name, values in own.bounds.items():
        np.testing.assert_array_equal(new.bounds[name], values, err_msg=name)
    assert (new.identity.split, new["data"], new.identity.data != own.identity.data) == ("new", "images.npy", True)
    assert heard.lines == [
        f"images.npy: 400 examples, binarised once by a fixed seed, as the test examples of {two / 'S1'} were"
    ]
    for data in (np.load(images), torch.from_numpy(np.load(images)), Split(torch.from_numpy(np.load(images)))):
        assert runs.evaluate(two / "S1", 10, data=data).identity.observations == own.identity.observations


def test_new_data_never_become_the_runs_result(two, images):
    run = two / "S1"
    before, own = (run / "results.json").read_bytes(), runs.evaluation_of(run)
    new = runs.evaluate(run, 20, data=np.load(images)[:7])
    assert (run / "results.json").read_bytes() == before
    assert runs.evaluation_of(run).identity == own.identity
    assert runs.find_evaluation(run, 20) is None
    assert reports.compare([run]).table[0]["split"] == "test"
    more = runs.evaluate(run, 20, data=np.load(images)[7:14])
    assert {path.name for path in (run / "evaluations" / "new").glob("*-7-draws20-*.json")} == {
        f"{each.identity.data[:12]}-{each.identity.key}.json" for each in (new, more)
    }
    with pytest.raises(ValueError, match="different data sets"):
        paired_gain(new, more)
    with pytest.raises(ValueError, match="different data sets"):
        paired_gain(new, own)


def test_stored_results_of_new_data_are_read_again(two, images, monkeypatch):
    from mixvae import evaluation

    first = runs.evaluate(two / "S2", 10, data=images, examples=5)
    monkeypatch.setattr(evaluation, "evaluate", None)
    again = runs.evaluate(two / "S2", 10, data=images, examples=5)
    assert again.identity == first.identity
    np.testing.assert_array_equal(again.bounds["log_px"], first.bounds["log_px"])


def test_new_data_need_no_data_of_the_run(two, images, tmp_path, monkeypatch):
    run = runs.open_run(two / "S2")
    monkeypatch.setattr(type(run), "data", property(lambda self: (_ for _ in ()).throw(ValueError("gone"))))
    assert runs.evaluate(run, 4, data=images, examples=3).identity.examples == 3
    assert runs.encode_split(run, data=images)["mean"].shape == (400, 2, 3)
    assert runs.reconstruct(run, 4, data=images)[1].shape == (2, 4, 1, 8, 8)


def test_new_data_that_do_not_fit_are_one_line(two, tmp_path, capsys):
    run = two / "S1"
    wrong = {
        "shape.npy": np.zeros((5, 28, 28)),
        "range.npy": np.full((5, 8, 8), 3.0),
        "levels.npy": np.full((5, 8, 8), 16, np.uint8),
        "nan.npy": np.full((5, 8, 8), np.nan),
        "empty.npy": np.zeros((0, 8, 8)),
    }
    told = {
        "shape.npy": "does not fit",
        "range.npy": "intensities in [0, 1]: rescale them",
        "levels.npy": "grey values from 0 to 16: divide them by 16",
        "nan.npy": "NaN or infinite",
        "empty.npy": "holds no examples",
    }
    for name, values in wrong.items():
        np.save(tmp_path / name, values)
        for command in ("evaluate", "encode", "reconstruct"):
            out = ["--out", tmp_path / ("z.npz" if command == "encode" else "r.npy")] if command != "evaluate" else []
            assert told[name] in refused(capsys, command, run, "--data", tmp_path / name, *out), (command, name)
    assert "there is no file or folder" in refused(capsys, "evaluate", run, "--data", tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("no array")
    refused(capsys, "encode", run, "--data", tmp_path / "text.npy")
    np.save(tmp_path / "good.npy", np.zeros((5, 8, 8)))
    good = tmp_path / "good.npy"
    assert "leave it out" in refused(capsys, "evaluate", run, "--data", good, "--split", "train")
    assert "leave out --data" in refused(capsys, "evaluate", run, "--data", good, "--representation")
    assert "numbered from 0" in refused(capsys, "interpolate", run, "--data", good, "--between", "0", "5")


def test_real_values_are_not_scored_in_another_unit(tmp_path):
    np.save(tmp_path / "mine.npy", 200 * np.random.default_rng(0).random((40, 4, 4)).astype("f4"))
    flags = ["--data.name", str(tmp_path / "mine.npy"), "--data.binarize=none", "--training.epochs=1"]
    flags += ["--model.likelihood=GaussianLikelihood", "--model.latent=2", "--training.warmup=0"]
    main(["train", "vanilla", "--out", str(tmp_path / "run"), *flags])
    (tmp_path / "mine.npy").unlink()
    with pytest.raises(ValueError, match="trained on values from .*floating-point numbers of the same unit"):
        runs.evaluate(tmp_path / "run", 4, data=np.full((5, 4, 4), 200, np.uint8))
    assert runs.evaluate(tmp_path / "run", 4, data=np.full((5, 4, 4), 200.0)).identity.examples == 5


def test_values_of_every_example_are_written_as_a_table(two, images, tmp_path):
    for name in ("each.csv", "each.npz"):
        words = ["--data", str(images), "--total-draws", "30", "--per-example", str(tmp_path / name)]
        main(["evaluate", str(two / "S2"), "--examples", "5", *words])
    found = runs.evaluate(two / "S2", 30, data=images, examples=5)
    with np.load(tmp_path / "each.npz") as arrays:
        table = np.genfromtxt(tmp_path / "each.csv", delimiter=",", names=True)
        assert table.dtype.names[:3] == ("example", "nll", "nll_mc_se")
        for name in table.dtype.names:
            np.testing.assert_array_equal(table[name], arrays[name])
        np.testing.assert_array_equal(arrays["example"], np.arange(5))
        np.testing.assert_array_equal(arrays["nll"], -found.bounds["log_px"])
        np.testing.assert_array_equal(arrays["nll_mc_se"], found.bounds["log_px_mc_se"])
        assert "pareto_k" in arrays


def test_several_runs_are_evaluated_into_one_table(two, tmp_path, capsys):
    main(["evaluate", str(two / "S1"), str(two / "S2"), "--total-draws", "10", "--examples", "20"])
    shown = capsys.readouterr().out
    rows = reports.compare([two / "S1", two / "S2"], [runs.evaluate(two / f"S{s}", 10, examples=20) for s in (1, 2)])
    assert f"{rows.table[1]['gain']:+.3f}".replace("-", "−") in shown
    assert all(note in shown for note in rows.warnings)
    assert rows.warnings
    assert "got 2 runs: evaluate each alone" in refused(
        capsys, "evaluate", two / "S1", two / "S2", "--per-example", tmp_path / "each.npz"
    )


def test_a_home_is_found_where_no_shell_expands_it(two, tmp_path, monkeypatch):
    """A folder called ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(two / "S1")
    main(["sample", "~/run", "--n=2", "--out=~/samples.npy"])
    main(["list", "~/"])
    assert (tmp_path / "samples.npy").is_file()
    assert not (tmp_path / "~").exists()


def test_moved_data_and_new_data_are_two_options(two, images, tmp_path, capsys):
    """`--data.name` says where a run's own data are; it also is spelled `--data-name`."""
    for option in ("--data.name", "--data-name"):
        main(["evaluate", str(two / "S1"), "--total-draws", "10", option, "digits", "--data", str(images)])
        main(["evaluate", str(two / "S1"), "--total-draws", "10", f"{option}=digits"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--data DATA evaluate this file or folder of new examples instead of the run's own" in shown
    assert "--data-name DATA_NAME new location of the run's own data, if they were moved" in shown


def test_the_sample_command_knows_kinds_and_latents(two, tmp_path, capsys):
    run = two / "S2"
    for kind, latents in itertools.product(("means", "draws"), ("prior", "aggregated")):
        out = tmp_path / f"{kind}-{latents}.npy"
        main(["sample", str(run), "--n", "5", "--kind", kind, "--latents", latents, "--seed", "3", "--out", str(out)])
        array = np.load(out)
        np.testing.assert_array_equal(array, runs.sample(run, 5, kind=kind, latents=latents, seed=3))
        assert set(np.unique(array)) <= {0.0, 1.0} if kind == "draws" else array.max() < 1
    model = runs.open_run(run).model
    np.testing.assert_array_equal(np.load(tmp_path / "means-prior.npy"), model.sample(5, seed=3).cpu().numpy())
    assert "kind: expected one of means, draws" in refused(capsys, "sample", run, "--kind", "modes")
    heard = Recorded()
    runs.sample(run, AT_ONCE + 1, progress=heard)
    assert heard.seen == [(AT_ONCE, AT_ONCE + 1, "sampling"), (AT_ONCE + 1, AT_ONCE + 1, "sampling")]


def test_the_interpolate_command_draws_paths(two, tmp_path, capsys):
    run = two / "S2"
    main(["interpolate", str(run), "--between", "3", "7", "--steps", "5", "--out", str(tmp_path / "p.npy")])
    paths = np.load(tmp_path / "p.npy")
    assert paths.shape == (2, 5, 1, 8, 8)
    x, rebuilt = runs.reconstruct(run, 8)
    np.testing.assert_allclose(paths[:, 0], rebuilt[:, 3], atol=1e-6)
    np.testing.assert_allclose(paths[:, -1], rebuilt[:, 7], atol=1e-6)
    main(["interpolate", str(run), "--between", "3", "7", "--spherical"])
    assert (run / "figures" / "interpolation.png").stat().st_size > 1000
    for words, told in (
        (["--between", "3", "400"], "no example 400: the 400 examples are numbered from 0"),
        (["--between", "-1", "3"], "no example -1"),
        (["--between", "3"], "--between"),
        ([], "between: missing; --help shows"),
        (["--between", "3", "7", "--steps", "1"], "steps must be at least 2; got 1"),
        (["--between", "3", "7", "--steps", "51"], "at most 50 steps"),
    ):
        assert told in refused(capsys, "interpolate", run, *words), words


def test_nothing_asked_of_a_run_disturbs_the_generator(two, images):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run = runs.open_run(two / "S2")
    runs.sample(run, 3, kind="draws", latents="aggregated")
    runs.reconstruct(run, 3)
    runs.interpolate(run, (0, 1))
    runs.encode_split(run, examples=3)
    runs.components(run, examples=5, draws_per_component=2)
    runs.evaluate(run, 4, data=images, examples=3)
    assert torch.equal(torch.get_rng_state(), before)


class Normed(nn.Module):
    """A decoder with a BatchNorm, whose statistics no query may change."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.norm, self.head = shape, nn.BatchNorm1d(2), nn.Linear(2, math.prod(shape))

    def forward(self, z):
        h = self.norm(z.reshape(-1, 2)).view_as(z)
        logits = self.head(h).unflatten(-1, self.shape)
        return Independent(torch.distributions.Bernoulli(logits=logits), len(self.shape))


def of_images(shape):
    return MixtureVAE(SeparateEncoders(lambda: GatedEncoder(shape, 2, (5,)), 2), StandardNormal(2), Normed(shape))


@pytest.mark.parametrize("given", ["array", "tensor", "list", "bool"])
def test_queries_add_the_channel_that_fit_adds(given):
    model, whole = of_images((1, 2, 2)), binary(5).float()
    makes = {"array": torch.Tensor.numpy, "tensor": torch.clone, "list": torch.Tensor.tolist, "bool": torch.Tensor.bool}
    x = makes[given](whole[:, 0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.training
    np.testing.assert_array_equal(mixvae.evaluate(model, x, 10).log_px, mixvae.evaluate(model, whole, 10).log_px)
    assert torch.equal(mixvae.encode(model, x)[0], mixvae.encode(model, whole)[0])
    assert torch.equal(model.reconstruct(x), model.reconstruct(whole))
    assert torch.equal(mixvae.interpolate(model, x[0], x[1]), mixvae.interpolate(model, whole[0], whole[1]))
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_observations_without_a_channel_stay_as_they_are():
    model = of_images((2, 2))
    assert model.reconstruct(binary(5)[:, 0].float()).shape == (2, 5, 2, 2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2\) in each of its 5 examples"):
        model.reconstruct(binary(5).float())


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.full((5, 1, 2, 2), math.nan), "observations hold 20 values that are NaN or infinite: remove or impute"),
        (torch.ones(5, 2, 2).to_sparse(), "a Tensor is sparse: pass a dense one"),
        (torch.ones(5, 1, 2, 2, dtype=torch.complex64), "data must hold numbers or booleans; got complex64"),
    ],
)
def test_observations_that_are_no_numbers_are_one_line(x, told):
    model = of_images((1, 2, 2))
    for ask in (partial(mixvae.evaluate, total_draws=4), mixvae.encode, type(model).reconstruct):
        with pytest.raises(ValueError, match=told):
            ask(model, x)


UNITS = {
    "grey in 255 to [0, 1]": (np.linspace(0, 1, 40), np.linspace(0, 255, 40), "from 0 to 255, and R was trained on"),
    "digits to [0, 1]": (np.linspace(0, 1, 40), 16.0 * (np.arange(40) % 2), "from 0 to 16, and R was trained on"),
    "[0, 1] to 255": (np.linspace(0, 255, 40), np.linspace(0, 1, 40), "from 0 to 1, and R was trained on"),
    "bytes to 200": (np.linspace(0, 200, 40), np.arange(40, dtype=np.uint8), "floating-point numbers of the same unit"),
    "bytes to [-1, 1]": (np.linspace(-1, 1, 40), np.arange(40, dtype=np.uint8), "bytes, which count as intensities"),
    "[0, 1] to [-1, 1]": (np.linspace(-1, 1, 40), np.linspace(0, 1, 40), "trained on values from -1 to 1"),
    "real to bytes": (np.arange(40, dtype=np.uint8), np.linspace(0, 39, 40), "on intensities in [0, 1]: rescale them"),
    "signed to bytes": (np.arange(40, dtype=np.uint8), np.linspace(-1, 1, 40), "trained on intensities in [0, 1]"),
    "the same": (np.linspace(0, 1, 40), np.linspace(0, 0.7, 40), ""),
    "beyond a little": (np.linspace(0, 1, 40), np.linspace(-0.5, 1.5, 40), ""),
    "dark": (np.linspace(0, 200, 40), np.linspace(0, 9, 40), ""),
    "black": (np.linspace(0, 200, 40), np.zeros(40), ""),
    "standardised": (np.linspace(-2, 3, 40), np.linspace(-1, 4, 40), ""),
    "bytes to [0, 1]": (np.linspace(0, 1, 40), np.arange(40, dtype=np.uint8), ""),
    "bytes to bytes": (np.arange(200, 240, dtype=np.uint8), np.arange(40, dtype=np.uint8), ""),
    "[0, 1] to bytes": (np.arange(40, dtype=np.uint8), np.linspace(0, 1, 40), ""),
    "binary to bytes": (np.arange(40, dtype=np.uint8), np.arange(40) % 2 > 0, ""),
}


@pytest.mark.parametrize("case", UNITS)
def test_new_data_in_another_unit_are_told_apart(case):
    trained, new, told = UNITS[case]
    own, split = (as_split(x.reshape(10, 2, 2)) for x in (trained, new))
    found = _other_unit(Given.of(own), split, "R")
    assert told in found
    assert bool(told) == bool(found)


def test_one_outlier_of_a_table_is_no_other_unit():
    trained, new = np.linspace(-3, 3, 40).reshape(10, 4), np.linspace(-3, 3, 40).reshape(10, 4)
    new[3, 2] = 500
    assert not _other_unit(Given.of(as_split(trained)), as_split(new), "R")
    assert _other_unit(Given.of(as_split(trained)), as_split(100 * new), "R")
    counts = np.arange(40).reshape(10, 4).astype(float)
    assert not _other_unit(Given.of(as_split(counts)), as_split(counts % 2), "R"), "rare cells"


GREY = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(3))


def python_run(path, x=GREY, likelihood=Bernoulli, **options):
    """A run of data that were made in Python, and are gone."""
    posterior = SeparateEncoders(partial(GatedEncoder, (1, 2, 2), 2, (5,)), 2)
    model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (1, 2, 2), (5,), likelihood=likelihood))
    data = datasets.as_dataset(x, seed=4, **options)
    mixvae.fit(model, data, epochs=1, run=path)
    return data


@pytest.mark.parametrize("binarize", ["stochastic", "fixed", "threshold"])
def test_new_grey_data_are_binarised_as_those_of_python_were(tmp_path, binarize):
    data = python_run(tmp_path / "run", binarize=binarize)
    order = np.random.default_rng(4).permutation(40)
    heard = Recorded()
    found, _ = runs.reconstruct(tmp_path / "run", 4, data=GREY[order[-4:]], progress=heard)
    np.testing.assert_array_equal(found, data.test.batch(slice(None)))
    assert "an array: 4 examples, binarised" in heard.lines[0]
    again, _ = runs.reconstruct(tmp_path / "run", 4, data=data.test)
    np.testing.assert_array_equal(again, found)
    with pytest.raises(ValueError, match="holds values from .* and .*run was trained on values from"):
        runs.encode_split(tmp_path / "run", data=255 * GREY)


def test_a_run_of_python_data_refuses_another_unit(tmp_path):
    python_run(tmp_path / "run", likelihood=GaussianLikelihood((1, 2, 2)))
    with pytest.raises(ValueError, match="an array holds values from .* was trained on values from .* same unit"):
        runs.evaluate(tmp_path / "run", 4, data=255 * GREY)
    assert runs.evaluate(tmp_path / "run", 4, data=GREY).identity.examples == 40
    forge(tmp_path / "run" / "run.json", lambda content: content["runtime"]["data"].pop("given"))
    assert runs.evaluate(tmp_path / "run", 4, data=200 * GREY).identity.examples == 40, "a run of before"


def test_a_column_of_labels_without_its_name_is_pointed_out(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{a},{b},{c},{i % 2}" for i, (a, b, c) in enumerate(rng.normal(size=(40, 3)))]
    for name, heading in (("own.csv", "a,b,c,label"), ("new.csv", "a,b,c,kind"), ("good.csv", "a,b,c,label")):
        (tmp_path / name).write_text("\n".join([heading, *lines]))
    flags = ["--data.name", str(tmp_path / "own.csv"), "--training.epochs=1", "--training.warmup=0"]
    main(["train", "tabular", "--out", str(tmp_path / "run"), *flags])
    with pytest.raises(ValueError, match="does not fit .* had labels: leave their column out, or call it label in a"):
        runs.encode_split(tmp_path / "run", data=tmp_path / "new.csv")
    assert runs.encode_split(tmp_path / "run", data=tmp_path / "good.csv")["labels"].tolist() == [0, 1] * 20


class Numbered(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


class Coming(torch.utils.data.IterableDataset):
    def __init__(self, of):
        self.of = of

    def __iter__(self):
        return (self.of[i] for i in range(len(self.of)))


def test_new_data_may_be_whatever_trains(two, images):
    x, y = torch.from_numpy(np.load(images))[:30], torch.arange(30) % 4
    rows = Numbered(x, y)
    streamed = datasets.as_dataset((rows, x)).train
    assert not isinstance(streamed.x, torch.Tensor)
    forms = {
        "a split": (streamed, Split(x, y)), "a Numbered": (rows,), "a Coming": (Coming(rows),),
        "a DataLoader": (DataLoader(rows, 7), DataLoader(Coming(rows), 7)),
        "a list": ([(a, b) for a, b in rows], x.tolist()), "an array": (x, x.numpy()),
    }  # fmt: skip
    expected = runs.encode_split(two / "S1", data=x)
    own, with_labels = runs.evaluate(two / "S1", 4, data=x), 0
    for name, several in forms.items():
        for form in several:
            heard = Recorded()
            assert runs.evaluate(two / "S1", 4, data=form, progress=heard).identity == own.identity
            assert heard.lines[0].startswith(f"{name}: 30 examples, binarised once")
            encoded = runs.encode_split(two / "S1", data=form)
            np.testing.assert_array_equal(encoded["mean"], expected["mean"])
            assert "labels" not in encoded or encoded["labels"].tolist() == y.tolist()
            with_labels += "labels" in encoded
    assert with_labels == 7
    shifted = runs.encode_split(two / "S1", data=Split(x, y + 5))
    assert shifted["labels"].tolist() == (y + 5).tolist(), "a split's classes keep their numbers"
    for wrong, told in (
        (datasets.as_dataset((x, x)), "name one, such as data.test"),
        ((x, y), "expected the examples of one part; got a tuple"),
        ({"test": x}, "expected the examples of one part; got a dict"),
        (7, "got an int"),
        (iter(x), "can be read only once"),
    ):
        with pytest.raises(ValueError, match=told):
            runs.evaluate(two / "S1", 4, data=wrong)


def test_a_run_without_data_names_the_option_of_new_ones(tmp_path, capsys):
    python_run(tmp_path / "run", binarize="stochastic")
    shown = refused(capsys, "evaluate", tmp_path / "run")
    assert "were made in Python" in shown
    assert "new examples are given with --data FILE (data=… in Python)" in shown
    assert "--data FILE" not in refused(capsys, "sample", tmp_path / "run", "--latents", "aggregated")


def test_a_run_records_how_its_data_were_given(two, tmp_path):
    data = python_run(tmp_path / "run", binarize="fixed")
    assert runs.open_run(tmp_path / "run").manifest["runtime"]["data"]["given"] == data.record()
    recorded = runs.open_run(two / "S1").manifest["runtime"]["data"]["given"]
    assert recorded == {
        "dtype": "uint8", "levels": 16, "low": 0, "high": 1, "binarize": "stochastic", "seed": 0, "labels": True,
    }  # fmt: skip
    forge(tmp_path / "run" / "run.json", lambda content: content["runtime"]["data"]["given"].update(low="none"))
    with pytest.raises(ValueError, match="given.low"):
        runs.open_run(tmp_path / "run")


@pytest.mark.parametrize("between", [(0, 1.5), (0, "1"), (0, None)])
def test_examples_are_numbered_by_whole_numbers(two, between):
    with pytest.raises(ValueError, match=rf"there is no example {between[1]}: the 400 examples are numbered from 0"):
        runs.interpolate(two / "S1", between)


def test_grey_data_of_a_bernoulli_name_the_remedies():
    model = tiny_model()
    for x in (binary(5) / 2, 255 * binary(5)):
        with pytest.raises(ValueError, match=r'as_dataset\(x, binarize="stochastic"\) \(data.binarize') as told:
            mixvae.fit(model, (x.numpy(), x.numpy()))
        assert "rescale them" in str(told.value)
