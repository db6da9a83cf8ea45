"""The semi-supervised mixture's loss against scvi-tools and explicit loops, its prior against quadrature."""

import math

import pytest
import torch
from scvi.module import SCANVAE
from scvi.module._constants import MODULE_KEYS
from torch.distributions import Normal

from mixvae.evaluation import weigh
from mixvae.proposals import refine
from mixvae.single_cell.joint import joint_and_posterior
from mixvae.single_cell.priors import Summed
from mixvae.single_cell.scanvae import MixtureSCANVAE

GENES, LABELS, CELLS = 7, 3, 5
SIZES = {"n_labels": LABELS, "n_hidden": 6, "n_latent": 2, "n_batch": 1}


def cells(seed=0):
    torch.manual_seed(seed)
    return {
        "X": torch.poisson(torch.full((CELLS, GENES), 3.0)) + 1,
        "batch": torch.zeros(CELLS, 1, dtype=torch.long),
        "labels": torch.randint(LABELS, (CELLS, 1)),
    }


def built(components, seed=1, **kwargs):
    torch.manual_seed(seed)
    module = MixtureSCANVAE(GENES, n_components=components, **(SIZES | kwargs))
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.4)
    return module.eval()


@pytest.mark.parametrize("kwargs", [{}, {"linear_classifier": True}, {"use_observed_lib_size": False}])
def test_one_component_has_the_loss_of_scvi_tools(kwargs):
    if "use_observed_lib_size" in kwargs:
        kwargs |= {"library_log_means": torch.full((1, 1), 2.0).numpy(), "library_log_vars": torch.ones(1, 1).numpy()}
    module, tensors = built(1, **kwargs), cells()
    theirs = SCANVAE(GENES, **(SIZES | kwargs)).eval()
    theirs.load_state_dict({name.replace("z_encoder.c0.", "z_encoder."): t for name, t in module.state_dict().items()})
    inferred, generated = module(tensors, compute_loss=False, inference_kwargs={"stratified": True})
    qz = inferred[MODULE_KEYS.QZ_KEY]
    same = inferred | {MODULE_KEYS.QZ_KEY: Normal(qz.means[:, 0], qz.scales[:, 0])}
    losses = []
    for one, given in ((module, inferred), (theirs, same)):
        torch.manual_seed(3)
        losses.append(
            one.loss(tensors, given, generated, kl_weight=0.3, labelled_tensors=tensors, classification_ratio=50)
        )
    ours, expected = losses
    assert torch.allclose(ours.loss, expected.loss, rtol=1e-5)
    for name in ("reconstruction_loss", "kl_local"):
        assert torch.allclose(getattr(ours, name)[name], getattr(expected, name)[name], rtol=1e-4), name
    assert torch.allclose(ours.classification_loss, expected.classification_loss, rtol=1e-5)


def test_the_loss_is_that_of_a_loop_over_components_and_labels(monkeypatch):
    module, tensors = built(3), cells()
    monkeypatch.setattr(module.encoder_z2_z1, "forward", lambda z, y: mean_only(plain(z, y)))
    plain = type(module.encoder_z2_z1).forward.__get__(module.encoder_z2_z1)
    inferred, generated = module(tensors, compute_loss=False, inference_kwargs={"stratified": True, "n_samples": 2})
    qz, z = inferred[MODULE_KEYS.QZ_KEY], inferred[MODULE_KEYS.Z_KEY].unflatten(0, (2, 3, CELLS))
    found = module.loss(tensors, inferred, generated, kl_weight=0.3)
    total = 0.0
    for draw in range(2):
        for s in range(3):
            for b in range(CELLS):
                at = z[draw, s, b][None]
                outputs = {"z": at, "library": tensors["X"][b].sum().log()[None, None], "qz": None}
                one = {name: t[b : b + 1] for name, t in tensors.items()}
                px = module.generative(**module._get_generative_input(one, outputs))["px"]
                log_q = torch.stack(
                    [Normal(qz.means[b, k], qz.scales[b, k]).log_prob(at).sum() for k in range(3)]
                ).logsumexp(0) - math.log(3)
                value = px.log_prob(one["X"]).sum() - log_q
                share = module.classifier(at).softmax(-1)[0]
                for y in range(LABELS):
                    label = torch.nn.functional.one_hot(torch.tensor([y]), LABELS)
                    q2, z2 = module.encoder_z2_z1(at, label)
                    mean, variance = module.decoder_z1_z2(z2, label)
                    kl = 0.5 * (q2.loc**2 + q2.scale**2 - 1 - 2 * q2.scale.log()).sum()
                    kl = kl + share[y].log() - math.log(1 / LABELS)
                    value = value + share[y] * (Normal(mean, variance.sqrt()).log_prob(at).sum() - 0.3 * kl)
                total = total - value / (2 * 3 * CELLS)
    assert torch.allclose(found.loss, total, rtol=1e-5)


def mean_only(drawn):
    q, _ = drawn
    return q, q.loc


def test_every_component_votes_and_not_their_mean():
    module = built(3)
    tensors = cells()
    scores = module.classify(tensors["X"], tensors["batch"])
    qz = module.inference(**module._get_inference_input(tensors))[MODULE_KEYS.QZ_KEY]
    votes = torch.stack([module.classifier(qz.means[:, s]).softmax(-1) for s in range(3)]).mean(0)
    assert torch.allclose(scores.exp(), votes, atol=1e-6)
    assert not torch.allclose(votes, module.classifier(qz.loc).softmax(-1), atol=1e-3)


def density(module, z1, steps=1201, widest=9.0):
    """log p(z₁) by quadrature over the noise of z₂."""
    noise = torch.linspace(-widest, widest, steps)
    grid = torch.stack([z1[:, None].expand(-1, steps), noise.expand(len(z1), -1)], -1)
    return torch.trapezoid(module.prior().log_prob(grid).exp(), noise, dim=-1).log()


@torch.no_grad()
def test_the_noise_of_z2_is_integrated_out_of_the_prior():
    """Over ε as over z₂, by quadrature of both."""
    module = built(2, n_latent=1)
    at, grid = torch.tensor([-0.7, 0.4, 1.5]), torch.linspace(-9, 9, 4001)[:, None]
    exact = torch.zeros(3)
    for y in range(LABELS):
        label = torch.nn.functional.one_hot(torch.full((len(grid),), y), LABELS)
        mean, variance = module.decoder_z1_z2(grid, label)
        inside = Normal(mean, variance.sqrt()).log_prob(at).exp() * Normal(0.0, 1.0).log_prob(grid).exp()
        exact += torch.trapezoid(inside, grid, dim=0) / LABELS
    assert torch.allclose(density(module, at), exact.log(), atol=1e-4)


@torch.no_grad()
def test_draws_of_the_prior_have_its_density():
    module = built(2, n_latent=1)
    torch.manual_seed(0)
    drawn = module.prior().sample((20_000,))
    z1, noise = torch.linspace(-12, 12, 481), torch.linspace(-9, 9, 361)
    grid = torch.stack(torch.meshgrid(z1, noise, indexing="ij"), -1)
    p = module.prior().log_prob(grid).exp()
    for moment in (lambda z: z[..., 0], lambda z: z[..., 0] ** 2, lambda z: z[..., 1] ** 2, lambda z: z.prod(-1)):
        exact, seen = torch.trapezoid(torch.trapezoid(p * moment(grid), noise), z1), moment(drawn)
        assert abs(seen.mean() - exact) < 4 * seen.std() / math.sqrt(len(seen))


@torch.no_grad()
def exact_log_px(module, tensors):
    """log p(x) of every cell by quadrature, for one latent; under a standard normal prior it would be another."""
    grid = torch.linspace(-8, 8, 1601)[:, None]
    prior, exact = density(module, grid[:, 0]), []
    for b in range(CELLS):
        one = {name: t[b : b + 1].expand(len(grid), -1) for name, t in tensors.items()}
        outputs = {"z": grid, "library": one["X"].sum(-1, keepdim=True).log(), "qz": None}
        px = module.generative(**module._get_generative_input(one, outputs))["px"]
        joint = px.log_prob(one["X"]).sum(-1) + prior
        exact.append(torch.trapezoid(joint.exp().double(), grid[:, 0].double()).log())
    return torch.stack(exact)


def test_its_marginal_likelihood_has_that_prior():
    module, tensors = built(2, n_latent=1), cells()
    torch.manual_seed(0)
    found = module.marginal_ll(tensors, 6000, n_mc_samples_per_pass=1000)
    assert torch.allclose(found.double(), exact_log_px(module, tensors), atol=0.05)


@pytest.mark.parametrize("components", [0, 1, 3])  # 0: scvi-tools' own module
def test_refined_bounds_of_scanvi_are_exact_by_quadrature(components):
    module, tensors = built(max(1, components), n_latent=1), cells()
    exact = exact_log_px(module, tensors)
    if not components:
        plain = SCANVAE(GENES, **(SIZES | {"n_latent": 1})).eval()
        names = {name: name.replace("z_encoder.c0.", "z_encoder.") for name in module.state_dict()}
        plain.load_state_dict({names[name]: t for name, t in module.state_dict().items()})
        module = plain
    joint, q = joint_and_posterior(module, tensors)
    with torch.no_grad():
        proposal = refine(joint, q, 10_000).proposal
        found = {name: torch.from_numpy(value) for name, value in weigh(proposal, joint, q, 500).items()}
    assert ((found["log_px"] - exact).abs() < 4 * found["log_px_mc_se"]).all()
    assert found["log_px_mc_se"].max() < 0.02


def test_a_density_of_z1_is_estimated_without_bias():
    """As importance weights of expression ask for it."""
    module, at = built(2, n_latent=1), torch.tensor([[-0.7], [0.4], [1.5]])
    torch.manual_seed(0)
    with torch.no_grad():
        estimates = Summed(module.prior, 1).log_prob(at.expand(4000, 3, 1)).squeeze(-1).exp()
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - density(module, at[:, 0]).exp()).abs() < 4 * error).all()
