"""What users give to a posterior, and what they are told when it does not fit."""

import pytest
import torch
from torch import nn

from mixvae.decoders import PixelCNNDecoder
from mixvae.networks import LOG_VAR_RANGE, GatedConvTrunk, GatedEncoder, OneHotHead, gated_mlp
from mixvae.posteriors import OneHotPosterior, SeparateEncoders


def encoder(output):
    class Returns(nn.Module):
        def forward(self, x):
            return output(x)

    return Returns


def test_every_component_starts_from_its_own_weights():
    q = SeparateEncoders(lambda: GatedEncoder((4,), 2, (3,)), 2)
    assert not torch.equal(q.encoders[0].head.weight, q.encoders[1].head.weight)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("output", "told"),
    [
        (lambda x: x, r"must return a pair \(mean, log-variance\) of tensors; got Tensor of shape \(5, 4\)"),
        (lambda x: (x, x[:, :2]), r"shape \(B, D\) with B = 5; got \(5, 4\) and \(5, 2\)"),
        (lambda x: (x[:2], x[:2]), r"with B = 5; got \(2, 4\) and \(2, 4\)"),
        (lambda x: (x[..., None], x[..., None]), r"got \(5, 4, 1\)"),
    ],
)
def test_wrong_encoder_output_error_names_both_shapes(output, told):
    with pytest.raises(ValueError, match=told):
        SeparateEncoders(encoder(output), 2)(torch.zeros(5, 4))


def test_one_module_for_all_components_is_refused():
    same = GatedEncoder((4,), 2, (3,))
    with pytest.raises(ValueError, match="the same module twice"):
        SeparateEncoders(lambda: same, 2)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="2 positive numbers"):
        SeparateEncoders(lambda: GatedEncoder((4,), 2, (3,)), 2, weights)


def test_no_component_is_refused():
    with pytest.raises(ValueError, match="at least 1 component; got 0"):
        SeparateEncoders(lambda: GatedEncoder((4,), 2, (3,)), 0)


def test_weights_are_fixed_unless_learned():
    fixed, learned = (
        SeparateEncoders(lambda: GatedEncoder((4,), 2, (3,)), 2, [3.0, 1.0], learn_weights=learn)
        for learn in (False, True)
    )
    torch.testing.assert_close(fixed.log_pi().exp(), torch.tensor([0.75, 0.25]))
    assert "log_scores" not in dict(fixed.named_parameters())
    assert "log_scores" in dict(learned.named_parameters())
    assert "log_scores" in fixed.state_dict(), "fixed weights must survive saving and loading"


def test_log_variance_stays_where_float32_is_exact():
    net = GatedEncoder((4,), 2, (3,))
    net.head.bias.data.fill_(100.0)
    assert net(torch.zeros(1, 4))[1].max() == LOG_VAR_RANGE[1]


def test_a_gated_layer_is_a_product_of_its_halves():
    net = gated_mlp(4, [3]).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    value, gate = net[0].linear(x).chunk(2, -1)
    torch.testing.assert_close(net(x), value * gate.sigmoid())


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        gated_mlp(4, [])


def test_the_one_hot_head_is_layers_fed_with_one_hot_vectors():
    """Against the formula as written: every layer a matrix product with [h, one-hot(a), previous]."""
    head = OneHotHead(3, 2, 4).double()
    h = torch.randn(5, 3, dtype=torch.float64)
    mean, log_var = head(h)
    weight, bias = head.projection.weight.unflatten(0, (2, 3, 2)), head.projection.bias.unflatten(0, (2, 3, 2))
    for a in range(4):
        one_hot = torch.zeros(4, dtype=torch.float64)
        one_hot[a] = 1
        for k, found in enumerate((mean, log_var)):

            def layer(i, previous, k=k, one_hot=one_hot):
                matrices = [weight[k, i], head.component[:, k, i].T]
                inputs = [h, one_hot.expand(5, 4)]
                if previous is not None:
                    matrices, inputs = [*matrices, head.previous[k, i - 1].T], [*inputs, previous]
                return torch.cat(inputs, 1) @ torch.cat(matrices, 1).T + bias[k, i]

            r = layer(0, None).relu()
            r = r + layer(1, r).relu()
            r = r + layer(2, r)
            torch.testing.assert_close(found[a], r if k == 0 else r.clamp(*LOG_VAR_RANGE))
    torch.testing.assert_close(head(h, torch.tensor([3, 1]))[0], mean[[3, 1]])


@pytest.mark.parametrize("components", [1, 2, 400])
def test_a_component_of_the_paper_costs_240_weights(components):
    shape = (1, 28, 28)
    posterior = OneHotPosterior(lambda: GatedConvTrunk(shape), shape, 40, components)
    decoder = PixelCNNDecoder(40, shape)
    norms = sum(p.numel() for p in decoder.network.norms.parameters())
    counted = sum(p.numel() for part in (posterior, decoder) for p in part.parameters())
    assert norms == 8 * 2 * 64, "the affine causal norms are part of the count"
    assert counted == 607_021 + 240 * (components - 1)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("output", "told"), [(lambda x: x[..., None], r"gave \(2, 4, 1\)"), (lambda x: (x, x), "gave tuple")]
)
def test_a_trunk_without_features_is_refused(output, told):
    with pytest.raises(ValueError, match=told):
        OneHotPosterior(encoder(output), (4,), 2, 3)
