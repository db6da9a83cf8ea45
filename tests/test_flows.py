"""Flows and two levels: exact mixture densities, and the published shortcuts shown to be wrong."""

import itertools
import math

import pytest
import torch
import zuko.flows
from torch import nn
from torch.distributions import Normal, Transform, constraints
from zuko.flows import neural

from mixvae import config
from mixvae.distributions import Chain, DiagonalGaussian, Flowed
from mixvae.flows import Composed, CouplingFlow, InverseAutoregressiveFlow, ZukoFlow
from mixvae.networks import GatedConvEncoder, GatedEncoder, GaussianNetwork, TwoLevelDense
from mixvae.posteriors import FlowPosterior, SeparateEncoders, TwoLevelPosterior
from mixvae.priors import StandardNormal, TwoLevelPrior

SHAPE, LATENT, COMPONENTS = (1, 2, 3), 4, 3


def shaken(module, scale=0.3):
    """Weights far from symmetric, so that flows differ and bend."""
    for p in module.parameters():
        p.data += scale * torch.randn_like(p)
    return module.double()


def flowed(build=lambda: CouplingFlow(LATENT, 2, (8,)), per_component=True):
    torch.manual_seed(0)
    base = SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT, (5,)), COMPONENTS, [3.0, 2.0, 1.0])
    return shaken(FlowPosterior(base, build, LATENT, per_component=per_component))


def images(n=2):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("build", [lambda: CouplingFlow(4, 3, (8,)), lambda: InverseAutoregressiveFlow(4, 2, (8,))])
def test_volume_of_a_flow_agrees_with_its_jacobian_by_autograd(build):
    flow = shaken(build())()
    x = torch.randn(5, 4, dtype=torch.float64)
    z, log_volume = flow.call_and_ladj(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v), x).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(log_volume, torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(flow.inv(z), x)


@pytest.mark.parametrize("per_component", [True, False])
def test_forward_and_inverse_give_the_same_density_of_own_draws(per_component):
    q = flowed(per_component=per_component)(images())
    noise = torch.randn(3, COMPONENTS, 2, LATENT, dtype=torch.float64)
    start = q.base.rsample((3,), noise)
    z, log_volume = q._forward(start)
    torch.testing.assert_close(q.log_prob(z), q.base.log_prob(start) - log_volume)


@pytest.mark.parametrize("per_component", [True, False])
def test_flowed_cross_densities_match_a_loop_over_components(per_component):
    posterior, x = flowed(per_component=per_component), images()
    q = posterior(x)
    z = q.rsample((2,))
    cross = q.cross_log_prob(z)
    for s, j in itertools.product(range(COMPONENTS), repeat=2):
        flow = posterior.flows[j if per_component else 0]()
        mean, log_var = posterior.base.encoders[j](x)
        start = flow.inv(z[:, s])
        expected = Normal(mean, (0.5 * log_var).exp()).log_prob(start).sum(-1) - flow.log_abs_det_jacobian(
            start, z[:, s]
        )
        torch.testing.assert_close(cross[:, s, j], expected)


def test_scoring_other_components_at_the_flow_start_is_wrong():
    """The published shortcut for separate flows scores q_j at z_0 instead of at f_j⁻¹(z_T): off by up to log S."""
    torch.manual_seed(0)
    zero = torch.zeros(COMPONENTS, 1, 1, dtype=torch.float64)
    shifts = [torch.distributions.transforms.AffineTransform(20.0 * s, 1.0, event_dim=1) for s in range(COMPONENTS)]
    q = Flowed(DiagonalGaussian(zero, zero), shifts)
    start = q.base.rsample((2000,))
    exact = (q.cross_log_prob(q._forward(start)[0]) + q.log_pi[:, None]).logsumexp(-2)
    shortcut = (q.base.cross_log_prob(start) + q.log_pi[:, None]).logsumexp(-2)  # volumes are one
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    error = 1 / (2 * exact.numel()) ** 0.5  # of the mean of −½ε²
    assert abs(-exact.mean() - (entropy + math.log(COMPONENTS))) < 5 * error, "components apart: log S more entropy"
    torch.testing.assert_close(shortcut - exact, torch.full_like(exact, math.log(COMPONENTS)), atol=1e-6, rtol=0)


def test_a_shared_flow_is_never_inverted_while_training(monkeypatch):
    q = flowed(lambda: InverseAutoregressiveFlow(LATENT, 2, (8,)), per_component=False)(images())

    def forbidden(self, value):
        raise AssertionError("inverted")

    monkeypatch.setattr(Flowed, "_inverse", forbidden)
    z, log_q = q.rsample_and_cross_log_prob((2,), torch.arange(COMPONENTS))
    monkeypatch.undo()
    torch.testing.assert_close(log_q, q.cross_log_prob(z))


def test_any_zuko_transform_is_used_from_yaml_by_import_path(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model:\n  latent: 4\n  components: 2\n  flow_per_component: true\n  flow:\n    class_path: ZukoFlow\n"
        "    transform: zuko.flows.MaskedAutoregressiveTransform\n    transforms: 3\n    hidden_features: [8]\n"
    )
    model = config.build(config.read(tmp_path / "c.yaml").model, SHAPE)
    assert len(model.posterior.flows) == 2
    assert len(model.posterior.flows[0].steps) == 3
    assert model((images() < 0.5).float()).log_q.shape == (1, 2, 2, 2)


class NoInverse(Transform):
    domain = codomain = constraints.real_vector
    bijective = True

    def _call(self, x):
        return x

    def log_abs_det_jacobian(self, x, y):
        return x.sum(-1) * 0


class NoInverseFlow(nn.Module):
    def forward(self):
        return NoInverse()


def test_flow_without_an_inverse_is_refused_unless_shared():
    assert flowed(NoInverseFlow, per_component=False)(images()).rsample().shape == (COMPONENTS, 2, LATENT)
    with pytest.raises(ValueError, match="NoInverseFlow has no inverse.*CouplingFlow"):
        flowed(NoInverseFlow)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: CouplingFlow(5), "must be even; got 5"),
        (lambda: ZukoFlow(4, nn.Identity, 0), "at least 1 transform; got 0"),
        (
            lambda: GatedConvEncoder((1, 27, 28), 2),
            "27×28 pixels are not divisible by it: crop or pad them to multiples of 4",
        ),
        (lambda: GatedConvEncoder((64,), 2), r"needs images of shape \(C, H, W\); got data of shape \(64,\)"),
        (lambda: config.build(config.ModelConfig(decoder="ConvDecoder"), (1, 10, 10)), "divisible by 4; got 10×10"),
        (lambda: config.build(config.ModelConfig(lower="GaussianNetwork"), (4,)), "posterior of two levels"),
    ],
)
def test_parts_that_cannot_work_are_refused_at_construction(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 12, 20)])
def test_convolutions_take_any_size_and_channels(shape):
    mean, log_var = GatedConvEncoder(shape, 5)(torch.rand(2, *shape))
    assert mean.shape == log_var.shape == (2, 5)


def test_convolutional_encoder_has_the_papers_weight_count():
    """205,004 in the trunk; 294 features of a 28×28 image."""
    trunk = GatedConvEncoder((1, 28, 28), 40).trunk
    assert sum(p.numel() for p in trunk.parameters()) == 205_004
    assert trunk.features == 294


def test_two_level_densities_match_a_loop_over_components():
    torch.manual_seed(0)
    posterior = shaken(TwoLevelPosterior(lambda: TwoLevelDense(SHAPE, 2, (5,)), COMPONENTS))
    x = images()
    q = posterior(x)
    noise = torch.randn(3, COMPONENTS, 2, 4, dtype=torch.float64)
    z = q.rsample((3,), noise)
    cross = q.cross_log_prob(z)
    for s in range(COMPONENTS):
        mean2, log_var2, below = posterior.encoders[s](x)
        z2 = mean2 + (0.5 * log_var2).exp() * noise[:, s, :, :2]
        mean1, log_var1 = below(z2)
        torch.testing.assert_close(z[:, s], torch.cat([z2, mean1 + (0.5 * log_var1).exp() * noise[:, s, :, 2:]], -1))
        for j in range(COMPONENTS):
            mean2, log_var2, below = posterior.encoders[j](x)
            mean1, log_var1 = below(z[:, s, :, :2])  # component j's own networks, at the pair drawn from s
            expected = Normal(mean2, (0.5 * log_var2).exp()).log_prob(z[:, s, :, :2]).sum(-1)
            expected = expected + Normal(mean1, (0.5 * log_var1).exp()).log_prob(z[:, s, :, 2:]).sum(-1)
            torch.testing.assert_close(cross[:, s, j], expected)


def test_chain_prior_is_the_product_of_its_levels():
    prior = shaken(TwoLevelPrior(StandardNormal(2), GaussianNetwork(2, 3, (5,)), 3))
    p = prior()
    assert isinstance(p, Chain)
    z = torch.randn(6, 5, dtype=torch.float64)
    mean, log_var = prior.lower(z[:, :2])
    expected = Normal(0, 1).log_prob(z[:, :2]).sum(-1) + Normal(mean, (0.5 * log_var).exp()).log_prob(z[:, 2:]).sum(-1)
    torch.testing.assert_close(p.log_prob(z), expected)


def test_a_flow_on_two_levels_leaves_the_upper_one_alone():
    base = TwoLevelPosterior(lambda: TwoLevelDense(SHAPE, 2, (5,)), COMPONENTS)
    posterior = shaken(FlowPosterior(base, lambda: InverseAutoregressiveFlow(2, 2, (8,)), 2))
    noise = torch.randn(3, COMPONENTS, 2, 4, dtype=torch.float64)
    plain, changed = base(images()).rsample((3,), noise), posterior(images()).rsample((3,), noise)
    assert torch.equal(plain[..., :2], changed[..., :2])
    assert (plain[..., 2:] != changed[..., 2:]).all()


@pytest.mark.parametrize("per_component", [True, False])
def test_components_say_where_their_density_is_exact(per_component):
    coupling = flowed(per_component=per_component)(images())
    assert coupling.scores_anywhere
    assert coupling.select(torch.tensor([2, 0])).scores_anywhere
    assert coupling.base.scores_anywhere
    slow = flowed(lambda: InverseAutoregressiveFlow(LATENT, 1, (8,)), per_component=per_component)(images())
    assert slow.scores_anywhere
    assert not slow.fast_inverse
    assert slow.select(torch.tensor([2, 0])).scores_anywhere

    def unknown():
        return ZukoFlow(LATENT, zuko.flows.MaskedAutoregressiveTransform, 1, hidden_features=(8,))

    assert not flowed(unknown, per_component=per_component)(images()).scores_anywhere
    assert not Flowed(coupling, [Composed([])], fast_inverse=False).scores_anywhere
    slow_base = Flowed(coupling.base, [Composed([])])
    assert not Flowed(slow_base, [Composed([])], fast_inverse=True).scores_anywhere


def monotone(kind, features=LATENT):
    """A neural flow that zuko inverts by bisection between −10 and 10."""
    network, shapes = (neural.MNN, [(4,)]) if kind == "neural" else (neural.UMNN, [(4,), ()])
    return ZukoFlow(
        features, zuko.flows.MaskedAutoregressiveTransform, 1, univariate=network(4, hidden_features=(8,)),
        shapes=shapes, hidden_features=(8,),
    )  # fmt: skip


def wide(kind, spread, shift=0.0):
    """Components N(shift · s, spread²) before monotone flows of their own, in evaluation mode."""
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self, s):
            super().__init__()
            self.mean = nn.Parameter(torch.tensor(shift * s))

        def forward(self, x):
            return self.mean.expand(len(x), LATENT), torch.full((len(x), LATENT), 2 * math.log(spread)).to(x)

    numbers = itertools.count()
    base = SeparateEncoders(lambda: Encoder(next(numbers)), 2)
    return FlowPosterior(base, lambda: monotone(kind), LATENT, per_component=True).double()


@pytest.mark.parametrize("kind", ["neural", "unconstrained"])
def test_own_draws_of_a_monotone_flow_need_no_inverse(kind):
    """Bisection ends at ±10: densities of draws from beyond were wrong by nats."""
    posterior = wide(kind, spread=8.0)
    x, noise = images(1), torch.randn(20, 2, 1, LATENT, dtype=torch.float64)
    z, log_q = posterior.train()(x).rsample_and_cross_log_prob((20,), None, noise)
    assert (8 * noise.abs() > 10).any()
    for s in range(2):
        start = 8 * noise[:, s, 0]
        flow = posterior.flows[s]()
        jacobian = torch.autograd.functional.jacobian(flow, start).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        expected = Normal(0, 8.0).log_prob(start).sum(-1) - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(z[:, s, 0], flow(start))
        torch.testing.assert_close(log_q[:, s, s, 0], expected)
    _, chosen = posterior(x).rsample_and_cross_log_prob((20,), torch.tensor([1, 0]), noise.flip(1))
    torch.testing.assert_close(chosen.flip(1)[:, :, [0, 1]].diagonal(dim1=1, dim2=2), log_q.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("kind", ["neural", "unconstrained"])
def test_an_untrustworthy_inverse_is_refused_in_evaluation(kind):
    posterior, x = wide(kind, spread=8.0), images(1)
    posterior.train()(x).rsample_and_cross_log_prob((20,))  # reads no values
    q = posterior.eval()(x)
    for score in (
        lambda: q.rsample_and_cross_log_prob((20,)),
        lambda: q.log_prob(q.rsample((20,))),
        lambda: q.select(torch.tensor([1])).cross_log_prob(q.rsample((20,))[:, :1]),
        lambda: q.noise_of(q.rsample((20,))),
    ):
        with pytest.raises(ValueError, match="inverse of a flow fails at .* share the flow, or use CouplingFlow"):
            score()


@pytest.mark.parametrize("kind", ["neural", "unconstrained"])
def test_a_trustworthy_monotone_flow_is_evaluated_exactly(kind):
    """Also where other components are out of reach: what is then wrong weighs nothing."""
    for shift in (0.0, 6.0):
        posterior = wide(kind, spread=0.3, shift=shift)
        q, noise = posterior.eval()(images(1)), torch.randn(20, 2, 1, LATENT, dtype=torch.float64)
        z, log_q = q.rsample_and_cross_log_prob((20,), None, noise)
        by_inverse = q.log_prob(z)  # every draw under its own
        torch.testing.assert_close(log_q.diagonal(dim1=1, dim2=2).transpose(1, 2), by_inverse, atol=1e-4, rtol=1e-4)


class ShortInverse(NoInverse):
    def _inverse(self, y):
        return y.clamp(-3, 3)


class ShortInverseFlow(nn.Module):
    def forward(self):
        return ShortInverse()


def test_a_flow_whose_inverse_fails_away_from_zero_is_refused():
    assert flowed(ShortInverseFlow, per_component=False)(images()).rsample().shape == (COMPONENTS, 2, LATENT)
    with pytest.raises(ValueError, match="inverse of ShortInverseFlow misses .* within 6 standard deviations"):
        flowed(ShortInverseFlow)
