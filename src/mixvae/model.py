"""The Mixture VAE: a posterior, a prior and a decoder, and the log-densities from which every bound is computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from mixvae._normalisation import in_evaluation_mode
from mixvae._precision import exact_products
from mixvae._trying import Observations, check_latents, check_shape, observations
from mixvae.bounds import Terms
from mixvae.distributions import Components, Fixed, same_everywhere, support_of
from mixvae.parts import Part
from mixvae.sampling import SampleKind, batches, seeded, shown


class MixtureVAE(Part):
    """A variational autoencoder whose posterior is a mixture, q(z|x) = Σ_s π_s q_s(z|x).

    Args:
        posterior: maps x (B, *shape), and optionally the indices of some components, to `Components`.
        prior: a module that returns a distribution over z with batch shape () and event shape (D,), or such a
            distribution itself, if it has nothing to train.
        decoder: maps z (..., D) to a distribution with batch shape (...) and event shape `shape`.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.bounds import elbo, log_weights
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> terms = model(torch.ones(5, 4), draws_per_component=2)
        >>> terms.log_q.shape  # draws, components drawn from, components scored, examples
        torch.Size([2, 3, 3, 5])
        >>> elbo(log_weights(terms), terms.weight).shape
        torch.Size([5])
    """

    _reads_values: bool = True

    def __init__(self, posterior: nn.Module, prior: nn.Module | Distribution, decoder: nn.Module):
        super().__init__()
        self.posterior = posterior
        self.prior = Fixed(prior) if isinstance(prior, Distribution) else prior
        self.decoder = decoder

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        draws_per_component: int = 1,
        *,
        active: Sequence[int] | Tensor | None = None,
        scored: Sequence[int] | Tensor | None = None,
        noise: Float[Tensor, "L S B D"] | None = None,
    ) -> Terms:
        """Draw from the active components and score every draw under the scored ones.

        Args:
            x: a batch of observations.
            draws_per_component: draws L per active component.
            active: components to draw from; by default all scored ones. With a random subset Φ here and
                none in `scored` this is S2A: unbiased for the ELBO and the MISELBO of the full mixture. `pooled`
                stays a lower bound on log p(x), but a looser one, with fewer draws. A *fixed* subset gives neither,
                as its weights A/S · π_s do not sum to one: for its own bound, score it alone and normalise them.
            scored: components to encode and score under; all by default. With the same subset as `active`
                this is S2S: cheaper, and a lower bound on it.
            noise: standard normal noise; drawn from torch's generator by default.

        Raises:
            ValueError: an active component is not scored, x is outside the likelihood's support, or the parts
                do not fit together. Within `unread` only shapes are checked.

        References:
            Hotti et al., Efficient Mixture Learning in Black-Box Variational Inference (2024),
            https://arxiv.org/abs/2406.07083
        """
        if self._reads_values:
            _check_dtype(x, self)
        index = None if scored is None else torch.as_tensor(scored)
        if index is not None and self._reads_values and len(index.unique()) < len(index):
            raise ValueError(f"scored components must differ, or one would count twice; got {index.tolist()}")
        q = self.posterior(x) if index is None else self.posterior(x, index)
        own = None
        if active is not None and active is not scored:
            every = torch.arange(q.batch_shape[0], device=torch.as_tensor(active).device) if index is None else index
            own = _positions(active, every, check=self._reads_values)
        return self.terms(x, q, self.prior(), draws_per_component, own=own, noise=noise)

    def terms(
        self,
        x: Float[Tensor, "B ..."],
        q: Components,
        prior: Distribution,
        draws_per_component: int = 1,
        *,
        own: Tensor | None = None,
        noise: Float[Tensor, "L S B D"] | None = None,
    ) -> Terms:
        """Score draws from an already computed posterior and prior: `forward` without encoding.

        Args:
            x: the observations that q was computed from.
            q: the scored components.
            prior: distribution over z.
            draws_per_component: draws L per drawn component.
            own: positions within q of the components to draw from; all by default.
            noise: standard normal noise; drawn from torch's generator by default.
        """
        check_latents(q, prior)
        z, log_q = q.rsample_and_cross_log_prob((draws_per_component,), own, noise)
        return Terms(
            log_px=self.log_likelihood(x, z),
            log_pz=prior.log_prob(z),
            log_q=log_q,
            log_pi=q.log_pi.to(z),
            weight=q.drawn(own).log_pi.to(z).exp(),
            own=torch.arange(q.batch_shape[0], device=x.device) if own is None else own.to(x.device),
        )

    def log_likelihood(self, x: Float[Tensor, "B ..."], z: Float[Tensor, "... B D"]) -> Float[Tensor, "... B"]:
        """Log-likelihood log p(x_b | z_b) in nats.

        Raises:
            ValueError: the shape of x is not that of the decoder's output, or x lies outside its support.
        """
        likelihood = self.decoder(z)
        check_shape(likelihood, x)
        if self._reads_values and (support := support_of(likelihood)) is not None and same_everywhere(support):
            _check_support(support, x)
        return likelihood.log_prob(x)

    @torch.no_grad()
    def check(self, x: Float[Tensor, "B ..."]) -> None:
        """Reject observations to which the decoder's likelihood assigns no density, without scoring them.

        Raises:
            ValueError: the shape of x is not that of the decoder's output, or x lies outside its support.
        """
        likelihood = self.at_origin()
        check_shape(likelihood, x)
        z = next(self.parameters(), torch.zeros(())).new_zeros(2, *self.prior().event_shape)
        z[1] = 1
        support = support_of(self.decoder(z))
        if support is not None and same_everywhere(support) and (one := support_of(likelihood)) is not None:
            _check_support(one, x)

    def at_origin(self) -> Distribution:
        """p(x|z) of one latent at the origin, for what does not depend on z, such as its shape."""
        like = next(self.parameters(), torch.zeros(()))
        return self.decoder(like.new_zeros(1, *self.prior().event_shape))

    def extended(self, components: int, *, noise: float = 0.01, fresh: bool = False) -> MixtureVAE:
        """A copy of this model with more components; a VampPrior of the copy pools all of them.

        Args:
            components: total number of components.
            noise: noise on the copied components, relative to each tensor's own standard deviation.
            fresh: start the new components from random weights instead of copies.

        Raises:
            ValueError: the model already has more components.
        """
        model = copy.deepcopy(self)
        model.posterior.extend(components, noise=noise, fresh=fresh)  # pyright: ignore[reportCallIssue]
        return model

    def with_posterior(self, posterior: nn.Module) -> MixtureVAE:
        """This model with another posterior: prior and decoder are the same modules, not copies."""
        model = MixtureVAE(posterior, self.prior, self.decoder)
        if not self._reads_values:
            model._reads_values = False  # noqa: SLF001
        return model

    def freeze(self, *parts: str) -> None:
        """Hold parts of the model fixed in training; a prior that follows the encoders is replaced by a fixed one.

        Args:
            parts: names among `posterior`, `prior` and `decoder`.

        Raises:
            ValueError: there is no such part, or it cannot be frozen.
        """
        for name in parts:
            if name not in ("posterior", "prior", "decoder"):
                raise ValueError(f"there is no part {name!r} to freeze: choose among posterior, prior and decoder")
            part = getattr(self, name)
            if isinstance(part, Part) and (held := part.frozen()) is not part:
                part = held
                setattr(self, name, part)
                self.amend_arguments(**{name: part})
            part.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        kind: SampleKind = "means",
        examples: Float[Tensor, "N ..."] | None = None,
        seed: int | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Draw n latents, and return the mean of p(x|z) for each, or a draw from it.

        Latents are drawn from the prior p(z), or from the aggregated posterior 1/N Σ_n q(z|x_n) of some examples: an
        example n, a component s by its weight π_s, and z from q_s(z|x_n). That shows what the decoder has learnt where
        the encoders put the data and, compared with samples from the prior, how far apart the two distributions are.

        Args:
            n: how many.
            kind: means of p(x|z), by `mixvae.sampling.mean_of`, or draws from it, which have its noise.
            examples: examples of the aggregated posterior, usually those of the training; samples are from the prior by
                default.
            seed: seed of all draws, on any device, whatever was drawn before; torch's generator is left
                as it was. By default the seed is drawn from that generator.

        Returns:
            Observations, (n, *shape), in the model's precision.

        Raises:
            ValueError: n is not positive, there is no such kind, or the likelihood has no mean.

        References:
            Tomczak and Welling, VAE with a VampPrior (2018), https://arxiv.org/abs/1705.07120

        Example:
            >>> import torch
            >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
            >>> from mixvae.networks import GatedEncoder
            >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
            >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
            >>> model.sample(5, seed=0).shape, model.sample(5, kind="draws", seed=0).unique()
            (torch.Size([5, 4]), tensor([0., 1.]))
            >>> torch.equal(model.sample(5, examples=torch.ones(9, 4), seed=0), model.sample(5, seed=0))
            False
        """
        return torch.cat(list(self.sample_in_batches(n, kind=kind, examples=examples, seed=seed)))

    def sample_in_batches(
        self,
        n: int,
        *,
        kind: SampleKind = "means",
        examples: Float[Tensor, "N ..."] | None = None,
        seed: int | None = None,
    ) -> Iterator[Float[Tensor, "b ..."]]:
        """The samples that `sample` returns, in batches of `AT_ONCE`, for decoders that take long.

        See `sample` for the arguments.
        """
        show, sizes = shown(kind), batches(n, seed)
        if examples is not None:
            with torch.no_grad(), evaluating(self):
                check_shape(self.at_origin(), examples)

        def batch(size: int, own: int) -> Tensor:
            with torch.no_grad(), evaluating(self), seeded(own, self):
                z = self._latents(size, examples)
                return show(self.decoder(z)).to(z.dtype)

        return (batch(*each) for each in sizes)

    def _latents(self, n: int, examples: Tensor | None) -> Float[Tensor, "n D"]:
        """Draws from the prior, or from the aggregated posterior of some examples."""
        if examples is None:
            return self.prior().sample((n,))
        chosen = torch.randint(len(examples), (n,)).to(examples.device)
        return self.posterior(observations(examples[chosen], self)).mixture().sample()

    @torch.no_grad()
    def reconstruct(self, x: Observations, *, seed: int | None = None) -> Float[Tensor, "S B ..."]:
        """Mean of p(x|z), by `mixvae.sampling.mean_of`, at the centre of every component of q(z|x).

        Args:
            x: observations, an array or tensor of numbers.
            seed: seed of the draws needed where p(x|z) has no mean in closed form; torch's generator is used by
                default.
        """
        return self.decode(self.centres(x), seed=seed)

    @torch.no_grad()
    def centres(self, x: Observations) -> Float[Tensor, "S B D"]:
        """Centre of every component of q(z|x), where its noise is zero: a Gaussian's mean.

        Raises:
            ValueError: x is not of the decoder's shape, or lies outside the likelihood's support.
        """
        x = observations(x, self)
        with evaluating(self):
            self.check(x)
            q = self.posterior(x)
            return q.rsample((), x.new_zeros(*q.batch_shape, *q.event_shape))

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "... D"], *, seed: int | None = None) -> Tensor:
        """Mean of p(x|z), by `mixvae.sampling.mean_of`, (..., *shape); `seed` as in `reconstruct`."""
        with evaluating(self), nullcontext() if seed is None else seeded(seed, self):
            return shown("means")(self.decoder(z)).to(z.dtype)


def _check_dtype(x: object, model: nn.Module) -> None:
    """Reject observations that are not a tensor of the model's precision, rather than convert them at every step."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor; got {type(x).__name__}: pass torch.as_tensor(x)")
    dtype = next(model.parameters(), x).dtype
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x is {x.dtype}, but the model is {dtype}: pass x.to({dtype})")


def _check_support(support: constraints.Constraint, x: Float[Tensor, "B ..."]) -> None:
    """Reject observations outside the support of a likelihood, which must be the same for all latents.

    If it depends on z, an observation outside it has density 0 there, which is a valid value.
    """
    if not bool(support.check(x).all()):
        raise ValueError(
            f"x holds values from {x.min():.4g} to {x.max():.4g}, some outside the likelihood's support, "
            f"{getattr(support, 'base_constraint', support)}: rescale them if they are in another unit, binarise grey "
            'ones with as_dataset(x, binarize="stochastic") (data.binarize in a configuration), or choose a likelihood '
            "for them"
        )


def _positions(active: Sequence[int] | Tensor, scored: Tensor, *, check: bool) -> Tensor:
    """Position of each active component among the scored ones."""
    active = torch.as_tensor(active, device=scored.device)
    match = active[:, None] == scored
    if len(active) == 0 or (check and not bool(match.any(1).all())):
        raise ValueError(
            f"active components must be among the scored ones; got active {active.tolist()}, scored {scored.tolist()}"
        )
    return match.int().argmax(1)


@contextmanager
def unread(*models: MixtureVAE) -> Iterator[None]:
    """Skip checks that read the values of x or of component indices: for loops over data already checked.

    Reading a value makes the host wait for the device at every step. Check the data once with `model.check(x)`.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, unread
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> images = torch.ones(10, 4)
        >>> model.check(images)
        >>> with unread(model):
        ...     [model(x).log_px.shape for x in images.split(5)]
        [torch.Size([1, 3, 5]), torch.Size([1, 3, 5])]
    """
    read = [model for model in {id(model): model for model in models}.values() if model._reads_values]  # noqa: SLF001
    for model in read:
        model._reads_values = False  # noqa: SLF001
    try:
        yield
    finally:
        for model in read:
            del model._reads_values  # noqa: SLF001  (the class's True applies again; the model has no new attribute)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of a module in evaluation mode, with exact products, and restore its mode afterwards."""
    with in_evaluation_mode(module), exact_products():
        yield
