"""Configurations are typed, complete, and name what was mistyped."""

import inspect

import pytest
import torch
from torch import nn

from conftest import USER_MODULE, refused
from mixvae import config
from mixvae.bounds import pooled
from mixvae.config import Config, ModelConfig, TrainingConfig
from mixvae.decoders import ContinuousBernoulli, ConvDecoder, Decoder, GaussianLikelihood, MLPDecoder
from mixvae.networks import GatedEncoder
from mixvae.priors import VampPrior


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_is_complete_and_builds_a_model(name):
    settings = config.read(name)
    model = config.build(settings.model, (1, 4, 4), torch.rand(600, 1, 4, 4))
    assert sum(p.numel() for p in model.parameters()) > 0
    assert config.options(settings.training).epochs == settings.training.epochs


def test_the_papers_sizes():
    for name in ("vanilla", "vamp"):
        settings = config.read(name, ["--model.components=4"])
        model = config.build(settings.model, (1, 28, 28), torch.rand(500, 1, 28, 28))
        encoder = model.posterior.encoders[0]
        assert [layer.linear.out_features // 2 for layer in encoder.trunk] == [300, 300]
        assert encoder.head.out_features == 2 * 40
        assert settings.training.batch == 100
        assert settings.training.optimizer["lr"] == 5e-4
        assert (settings.training.epochs, settings.training.warmup, settings.training.patience) == (4000, 100, 100)
    assert isinstance(model.prior, VampPrior)
    assert len(model.prior.inputs) == 500


def test_a_configuration_survives_a_round_trip(tmp_path):
    settings = config.read("vamp", ["--model.components=3", "--seed=4", "--model.weights=[1,2,3]", "--training.clip=2"])
    (tmp_path / "c.yaml").write_text(config.to_yaml(settings))
    assert config.read(tmp_path / "c.yaml") == settings


def test_flags_change_single_arguments_of_a_class():
    settings = config.read("vamp", ["--model.prior.pseudo_inputs=7", "--training.optimizer.lr=1e-3"])
    assert settings.model.prior == {"class_path": "VampPrior", "pseudo_inputs": 7}
    assert settings.training.optimizer["lr"] == 1e-3


def test_flags_add_arguments_to_a_class_named_without_any():
    """The class was lost where the file has it without arguments."""
    settings = config.read("conv", ["--model.encoder.layers=[[4, 3, 1]]", "--model.posterior.learn_weights=true"])
    assert settings.model.encoder == {"class_path": "GatedConvEncoder", "layers": [[4, 3, 1]]}
    assert settings.model.posterior == {"class_path": "SeparateEncoders", "learn_weights": True}
    settings = config.read("conv", ["--model.encoder.hidden=[4]", "--model.encoder=GatedEncoder"])
    assert settings.model.encoder == {"class_path": "GatedEncoder", "hidden": [4]}


def test_a_users_encoder_by_import_path_becomes_a_mixture(tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "model: {components: 3, latent: 2, encoder: {class_path: users_own.MyEncoder, width: 5}}"
    )
    model = config.build(config.read(tmp_path / "c.yaml", trust=["users_own"]).model, (1, 4, 4))
    assert len(model.posterior.encoders) == 3
    assert model(torch.zeros(2, 1, 4, 4)).log_q.shape == (1, 3, 3, 2)
    assert model.posterior.encoders[0].net[1].out_features == 5


class Inheriting(MLPDecoder):
    """A decoder of a user's that has the constructor of its base; all Pythons would read its `__new__` instead."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls, *args, **kwargs)


def test_inherited_constructors_are_read_by_old_pythons():
    """Python 3.11.2, which Debian 12 has, reports an inherited `__new__` too: the one that remembers the arguments."""
    assert inspect.signature(Inheriting) == inspect.signature(MLPDecoder)
    asked = {"class_path": f"{__name__}.Inheriting", "hidden": [5]}
    decoder = config.build(ModelConfig(latent=2, decoder=asked), (4,)).decoder
    assert isinstance(decoder, Inheriting)
    assert decoder(torch.zeros(3, 2)).event_shape == (4,)
    with pytest.raises(ValueError, match="Inheriting has no argument 'hiden': did you mean hidden"):
        config.build(ModelConfig(decoder={"class_path": f"{__name__}.Inheriting", "hiden": [5]}), (4,))


def test_an_argument_may_be_a_class_of_its_own():
    prior = {"class_path": "VampPrior", "pseudo_inputs": 3, "squash": {"class_path": "torch.nn.Identity"}}
    model = config.build(ModelConfig(prior=prior, latent=2), (4,))
    assert isinstance(model.prior.squash, nn.Identity)


def test_weights_and_likelihoods_reach_the_model():
    model = config.build(ModelConfig(components=2, weights=[3.0, 1.0], likelihood="ContinuousBernoulli"), (4,))
    assert model.posterior.log_pi().exp().tolist() == pytest.approx([0.75, 0.25])
    assert model.decoder.likelihood is ContinuousBernoulli
    wide = ModelConfig(likelihood={"class_path": "GaussianLikelihood", "minimum": 0.5})
    likelihood = config.build(wide, (4,)).decoder.likelihood
    assert isinstance(likelihood, GaussianLikelihood)
    assert likelihood.minimum == 0.5


def test_pseudo_inputs_start_from_examples_only_if_asked():
    examples = torch.full((20, 4), 0.75)
    for extra, near in (({}, True), ({"examples": None}, False)):
        prior = {"class_path": "VampPrior", "pseudo_inputs": 9} | extra
        inputs = config.build(ModelConfig(prior=prior, latent=2), (4,), examples).prior.inputs
        assert bool(((inputs - 0.75).abs() < 1e-6).all()) == near


def test_classes_of_the_training_are_imported():
    training = TrainingConfig(bound="pooled", schedule={"class_path": "StepLR", "step_size": 3})
    made = config.options(training)
    assert made.bound is pooled
    optimizer = made.optimizer(GatedEncoder((4,), 2, (3,)).parameters())
    assert isinstance(optimizer, torch.optim.Adam)
    assert made.schedule(optimizer).step_size == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training: {epoch: 3}", "unknown key training.epoch: did you mean training.epochs?"),
        ("modell: {latent: 3}", "unknown key modell: did you mean model?"),
        ("model: {latent: large}", "model.latent.*int"),
        ("data: {binarize: maybe}", "data.binarize"),
        ("[1, 2]", "must hold keys such as data, model and training; it holds list"),
        ("a: [", "is not a YAML file"),
    ],
)
def test_wrong_yaml_is_told_in_one_line(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        config.read(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


UNKNOWN = [
    ("training.lr", "did you mean {}training.optimizer.lr?"),
    ("training.learning_rate", "did you mean {}training.optimizer.lr?"),
    ("training.momentum", "did you mean {}training.optimizer.momentum, of RMSprop or SGD?"),
    ("training.max_lr", "did you mean {}training.schedule.max_lr, of CyclicLR or OneCycleLR?"),
    ("training.scheduler", "did you mean {}training.schedule?"),
    ("model.hidden", "did you mean {0}model.encoder.hidden or {0}model.decoder.hidden?"),
    ("model.pseudo_inputs", "did you mean {}model.prior.pseudo_inputs, of VampPrior?"),
    ("model.epochs", "did you mean {}training.epochs?"),
    ("training.seed", "did you mean {}seed?"),
    ("training.epoch", "did you mean {}training.epochs?"),
    (
        "training.callbacks",
        "callbacks are objects, given in Python by fit(…, callbacks=[…]); a configuration has loggers",
    ),
]


@pytest.mark.parametrize(("key", "told"), UNKNOWN)
def test_a_setting_that_exists_deeper_is_suggested(tmp_path, capsys, key, told):
    """In a file, as a flag, and in a grid's options; each in one line."""
    group, name = key.split(".")
    path = tmp_path / "c.yaml"
    path.write_text(f"{group}: {{{name}: 3}}")
    for error in (
        refused(capsys, "train", path, "--out", tmp_path / "run"),
        refused(capsys, "train", "digits", f"--{key}", "3", "--out", tmp_path / "run"),
        refused(capsys, "train", "digits", f"--{key.replace('_', '-')}=3", "--out", tmp_path / "run"),
    ):
        prefix = "" if str(path) in error else "--"
        assert error.endswith(f"{key}: {told.format(prefix)}\n")
    with pytest.raises(ValueError, match=f"grid.yaml: unknown option {key}: ") as caught:
        config.check_options({key: 3}, "grid.yaml")
    assert str(caught.value).endswith(told.format(""))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("lr", ": did you mean --training.optimizer.lr?"),
        ("epochs", ": did you mean --training.epochs?"),
        ("pseudo-inputs", ": did you mean --model.prior.pseudo_inputs, of VampPrior?"),
        ("oout", ": did you mean --out?"),
        ("zzzzzz", "\n"),
    ],
)
def test_a_flag_without_its_group_is_suggested_with_it(tmp_path, capsys, key, told):
    error = refused(capsys, "train", "digits", f"--{key}", "3", "--out", tmp_path / "run")
    assert f"unknown option --{key.replace('-', '_')}{told}" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "runs/S4", "--seed", "1", "--seed=2"], "--seed is given twice, as 1 and as 2: "),
        (["sc", "train", "a.h5ad", "--batch-key", "a", "--batch-key=b"], "--batch_key is given twice, as a and as b: "),
        (["sc", "train", "a.h5ad", "--epochs", "1.5"], "epochs: expected int; got 1.5\n"),
        (["sc", "embed", "runs/S4"], "files: missing; --help shows what this command takes\n"),
        (["evaluate"], "runs: missing; "),
        (["interpolate", "runs/S4"], "between: missing; "),
        (["train", "--training.devices=0"], "devices must be at least 1, or -1 for all; got 0\n"),
        (["train", "--resume", "--out", "x"], "--resume takes a run directory; got --out\n"),
        (["train", "--out", "--seed=3"], "--out takes a run directory; got --seed=3\n"),
        (["sample", "runs/S4", "often"], "unexpected argument 'often': --help shows what this command takes\n"),
        (["evaluate", "runs/S4", "--samples=3"], "--samples has an effect only with --representation: "),
        (
            ["train", "--model.posterior={class_path: SeparateEncoders, components: 3}"],
            "model.posterior has components 3, the model 1: give model.components alone\n",
        ),
        (["train", "--model.flow_per_component=true"], "model.flow_per_component needs a flow: "),
        (["train", "--training.scored=active"], "training.scored is active, but all components are: "),
        (["train", "--data.root=here"], "data.root is the folder of a data set by name, but digits needs none: "),
    ],
)
def test_words_that_make_no_command_are_told_in_one_line(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert f"mixvae: error: {told}" in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_options_of_a_training_override_earlier_ones():
    assert config.read("digits", ["--seed=1", "--seed=2"]).seed == 2
    config.check_once(["--seed=1", "--seed", "1"])


@pytest.mark.parametrize("name", ["Bernoulli", "ContinuousBernoulli"])
def test_torchs_own_bernoulli_as_a_likelihood_is_refused(tmp_path, capsys, name):
    """It would take logits for probabilities, and raise on its second line."""
    told = f"use mixvae.decoders.{name}"
    for make in (MLPDecoder, ConvDecoder):
        with pytest.raises(ValueError, match=told):
            make(2, shape=(1, 4, 4), likelihood=getattr(torch.distributions, name))
    flag = f"--model.likelihood=torch.distributions.{name}"
    assert told in refused(capsys, "train", "digits", flag, "--out", tmp_path / "run")
    decoder = Decoder(nn.Sequential(nn.Linear(2, 4), nn.Sigmoid()), torch.distributions.Bernoulli)
    assert decoder(torch.zeros(3, 2)).event_shape == (4,), "a network of one's own may end in probabilities"


def test_a_suggested_setting_exists():
    """What is proposed is taken, by the class that it names."""
    for key, told in UNKNOWN[:-1]:
        name, _, classes = told.format("").removeprefix("did you mean ").partition(", of ")
        for place in name.removesuffix("?").split(" or "):
            kind = [f"--{place.rpartition('.')[0]}={classes.split(' ')[0].removesuffix('?')}"] if classes else []
            value = "[3]" if "hidden" in place else "StepLR" if place == "training.schedule" else "3"
            assert config.read("digits", [*kind, f"--{place}={value}"]), key


def test_settings_that_no_class_takes_have_no_suggestion():
    assert config.takers("nonsense") == {}
    assert config.takers("shape") == {}, "it is filled in"
    assert config.meant("zzzzzzzz.qqqqqqqq", ["seed"]) == ""


def test_a_likelihood_of_torch_is_answered_by_our_own(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {likelihood: torch.distributions.Bernoulli}")
    with pytest.raises(ValueError, match="as model.likelihood, .*; write Bernoulli for mixvae's own; if you trust it"):
        config.read(tmp_path / "c.yaml")


def test_an_object_in_place_of_a_name_is_told_in_one_line():
    with pytest.raises(ValueError, match="is not the name of a class or function"):
        config.options(TrainingConfig(bound=pooled))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("accumulate", "1.5"), ("warmup", "2.5"), ("cycles", "2.5"), ("epochs", "2.5"), ("active", "x"),
        ("beta", "high"), ("schedule_every", "batch"), ("compile", "fast"), ("clip", "[1]"), ("patience", "true"),
        ("loggers", "3"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_one_line_everywhere(tmp_path, capsys, setting, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{name: digits, limit: 40}}\ntraining: {{{setting}: {value}}}")
    for words in ([path], ["digits", f"--training.{setting}={value}"]):
        assert f"training.{setting}" in refused(capsys, "train", *words, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"prior": "VampPriorr"}, "mixvae.priors has no 'VampPriorr': did you mean VampPrior"),
        ({"encoder": "nowhere.Encoder"}, "cannot import 'nowhere.Encoder': there is no module 'nowhere'"),
        ({"prior": {"class_path": "VampPrior", "pseudo_input": 3}}, "did you mean pseudo_inputs"),
        ({"encoder": {"class_path": "torch.nn.Linear"}}, "Linear needs the argument 'in_features'"),
        ({"encoder": {"hidden": [3]}}, "a class is given by its name or as"),
        ({"likelihood": {"class_path": "Bernoulli", "x": 1}}, "Bernoulli has no argument 'x': it takes logits"),
        ({"components": 0}, "at least 1 component; got 0"),
        ({"latent": 0}, "latent must be at least 1; got 0"),
        ({"weights": [1.0]}, "weights must be 2 positive numbers"),
    ],
)
def test_wrong_classes_are_told_in_one_line(model, told):
    with pytest.raises(ValueError, match=told) as caught:
        config.build(ModelConfig(**{"components": 2} | model), (4,))
    assert "\n" not in str(caught.value)


def test_the_nearest_preset_is_suggested():
    with pytest.raises(ValueError, match="did you mean vanilla"):
        config.read("vanila")


def test_a_model_needs_a_shape():
    with pytest.raises(ValueError, match="shape of the data is unknown"):
        config.build(Config().model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lower={class_path: GaussianNetwork, hidden: [4]}"], "has a single level of latents, and no use for"),
        (
            ["--model.posterior=TwoLevelPosterior", "--model.encoder={class_path: TwoLevelDense, hidden: [4]}"],
            "needs model.lower, which maps z2",
        ),
        (["--model.posterior=StandardNormal"], "StandardNormal"),
    ],
)
def test_levels_of_posterior_and_prior_that_differ_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config.build(config.read("digits", options).model, (1, 8, 8))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training: {epochs: 7}\nmodel: {latent: 3}\ntraining: {warmup: 5}\n", "'training' is on lines 1 and 3"),
        ("training:\n  epochs: 7\n  batch: 5\n  epochs: 8\n", "'epochs' is on lines 2 and 4"),
        ("model: {encoder: {class_path: GatedEncoder, hidden: [3], hidden: [4]}}", "'hidden' is on line 1 twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, told):
    """Of two blocks that were pasted together the first was dropped without a word."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"a.yaml is ambiguous: {told}"):
        config.read(path)


def test_a_merged_key_may_be_overridden(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("training:\n  <<: {epochs: 7, batch: 5}\n  epochs: 8\n")
    read = config.read(path).training
    assert (read.epochs, read.batch) == (8, 5)


def test_a_key_twice_in_a_flag_is_refused():
    with pytest.raises(ValueError, match="'hidden' is on line 1 twice"):
        config.read("digits", ["--model.encoder={class_path: GatedEncoder, hidden: [3], hidden: [4]}"])


@pytest.mark.parametrize("flags", [
    ["--training.optimizer.class_path=SGD", "--training.optimizer.lr=0.1"],
    ["--training.optimizer.lr", "0.1", "--training.optimizer.class_path", "SGD"],
    ["--training.optimizer", "SGD", "--training.optimizer.lr", "0.1"],
])  # fmt: skip
def test_a_flag_that_changes_a_class_drops_its_arguments(tmp_path, flags):
    path = tmp_path / "a.yaml"
    path.write_text("training: {optimizer: {class_path: Adam, lr: 1.0e-3, fused: true}}")
    for source in (path, "digits"):
        assert config.read(source, flags).training.optimizer == {"class_path": "SGD", "lr": 0.1}


def test_a_flag_that_names_the_same_class_keeps_its_arguments():
    read = config.read("digits", ["--model.encoder.class_path=GatedEncoder"])
    assert read.model.encoder == config.read("digits").model.encoder


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "stochastic"),
        (["--model.likelihood=Bernoulli"], "stochastic"),
        (["--model.likelihood={class_path: mixvae.decoders.Bernoulli}"], "stochastic"),
        (["--model.likelihood=GaussianLikelihood"], "none"),
        (["--model.likelihood={class_path: LogisticMixture, mixtures: 2}"], "none"),
        (["--model.likelihood=ContinuousBernoulli", "--data.binarize=fixed"], "fixed"),
        (["--data.binarize=none"], "none"),
    ],
)
def test_data_are_binarised_as_the_likelihood_needs(tmp_path, flags, expected):
    settings = config.read("digits", flags)
    assert settings.data.binarize == expected
    (tmp_path / "c.yaml").write_text(config.to_yaml(settings))
    assert f"binarize: {expected}" in (tmp_path / "c.yaml").read_text(), "what is recorded is what is done"
    assert config.read(tmp_path / "c.yaml") == settings


def test_files_replace_a_presets_data_set_and_nothing_else(tmp_path):
    files = ["--data.train=a.csv", "--data.test=b.csv"]
    for preset in ("digits", "vanilla", "tabular"):
        data = config.read(preset, files).data
        assert (data.name, data.train, data.validation, data.test) == ("files", "a.csv", None, "b.csv")
        assert data.arguments()["name"] is None
    (tmp_path / "own.npy").touch()
    with pytest.raises(ValueError, match="--data.name and --data.test are both given: leave one of them out"):
        config.read("digits", [f"--data.name={tmp_path / 'own.npy'}", *files])
    with pytest.raises(ValueError, match="data.test is empty: name a file or a folder"):
        config.read("digits", ["--data.train=a.csv", "--data.test="])
    (tmp_path / "c.yaml").write_text(config.to_yaml(config.read("digits", files)))
    assert config.read(tmp_path / "c.yaml") == config.read("digits", files)


@pytest.mark.parametrize(("text", "size"), [("28", 28), ("[28,20]", [28, 20]), ("null", None)])
def test_a_size_is_one_number_or_two(text, size):
    assert config.read("digits", [f"--data.resize={text}"]).data.resize == size
