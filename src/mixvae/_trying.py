"""Whether a model's parts fit each other and the data, tried on a few examples, with errors in the author's terms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm

from mixvae._failures import plain_errors
from mixvae._normalisation import in_evaluation_mode
from mixvae.distributions import support_of
from mixvae.parts import a_kind

Observations = Tensor | np.ndarray | Sequence[Any] | Any
"""Observations as users have them: an array or tensor of numbers, nested lists of them, or data of any kind that
`mixvae.datasets.as_dataset` takes, such as a `Split`, a torch `Dataset` or a `DataLoader`."""
FAR = 100.0
"""Scale of the latents at which logits leave [0, 1] unless a sigmoid has already been applied."""
COUPLED = 16
"""Change of a log-likelihood, in roundings of it and one of each value, above which it is another number."""
INSTEAD = "use GroupNorm or LayerNorm"


def observations(x: Observations, model: nn.Module) -> Tensor:
    """Observations as a model takes them: in memory, on its device and in its precision.

    Grey images (N, H, W) gain the channel axis that `fit` gives them, where the model's observations have one. Integers
    and truth values are converted exactly where the model's precision holds them; floating-point numbers are
    rounded to it. Bytes of images are not scaled here: only whoever made the data knows the factor.

    Raises:
        ValueError: they are not numbers, are NaN or infinite, are integers that the model's precision cannot hold, or
            are images of bytes.
    """
    given = _numbers(x)
    if given is None:
        from mixvae.datasets import collected

        given = collected(x)
    if given.dtype == torch.uint8 and given.ndim > 2 and given.numel() and int(given.max()) > 1:  # no table
        raise ValueError(
            f"observations are bytes up to {int(given.max())}: scale them as those of the training were, as in x / 255"
        )
    if bad := int((~given.isfinite()).sum()):
        raise ValueError(f"observations hold {bad} values that are NaN or infinite: remove or impute them")
    like = next(model.parameters(), given if given.is_floating_point() else given.float())
    made = _like_fitted(given.to(like.device, like.dtype), model)
    if not given.is_floating_point() and not torch.equal(made.to(given.dtype).view_as(given), given.to(made.device)):
        raise ValueError(
            f"{like.dtype} does not hold these observations of {given.dtype} exactly: scale them, or use float64"
        )
    return made


def _like_fitted(x: Tensor, model: Any) -> Tensor:
    """Grey images with a channel axis, unless the model's observations have none."""
    from mixvae.datasets._splits import with_channel

    made = with_channel(x)
    if made is x:
        return x
    with suppress(Exception):  # the check of the parts says what is wrong with them
        return made if _likelihood(model).event_shape == made.shape[1:] else x
    return x


@torch.no_grad()
def _likelihood(model: Any) -> Distribution:
    """p(x|z) of one latent, which shows the shape of observations, in evaluation mode."""
    with in_evaluation_mode(model):
        return model.at_origin()


def observed(x: Observations, model: nn.Module, batch: int) -> Iterator[Tensor]:
    """Observations in parts; those that are not in memory are read on demand.

    Raises:
        ValueError: they are not of the model's shape, or `observations` refuses them.
    """
    if _numbers(x) is not None:
        x = observations(x, model)
        check_shape(_likelihood(model), x)
        yield from x.split(batch)
        return
    from mixvae.datasets import examples_of

    split = examples_of(x)
    check_shape(_likelihood(model), split.x)
    for values in split.in_order(batch):
        yield observations(values, model)


def _numbers(x: Any) -> Tensor | None:
    """Numbers of a tensor, an array or nested lists; None for anything else, such as sparse or complex ones."""
    if isinstance(x, Tensor):
        return x if x.layout == torch.strided and not x.is_complex() else None
    if hasattr(x, "__array__") or isinstance(x, list | tuple):
        with suppress(ValueError):  # lists of different lengths, or of examples with labels
            array = np.asarray(x)
            if array.dtype.kind in "biuf":
                return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    return None


def check_latents(q: Any, prior: Distribution) -> None:
    """Refuse a posterior and a prior of different latent sizes.

    Raises:
        ValueError: their latent sizes differ.
    """
    if q.event_shape != prior.event_shape:
        raise ValueError(
            f"the posterior has latent shape {tuple(q.event_shape)}, the prior {tuple(prior.event_shape)}: give both "
            "the same latent size"
        )


def check_shape(likelihood: Distribution, x: Any) -> None:
    """Refuse observations whose shape differs from the likelihood's.

    Raises:
        ValueError: it does.
    """
    if likelihood.event_shape != x.shape[1:]:
        shape, count = tuple(likelihood.event_shape), len(x) if len(x.shape) else 0
        where = "in its only example" if count == 1 else f"in each of its {count} examples"
        remedy = ": it is one example without a batch, pass x[None]" if x.shape == shape else ""
        raise ValueError(
            f"the decoder describes observations of shape {shape}; x has shape {tuple(x.shape[1:])} {where}{remedy}"
        )


@torch.no_grad()
def check_parts(model: Any, x: Tensor) -> None:
    """Encode and decode a few examples, in the model's mode.

    Raises:
        ValueError: posterior, prior, decoder and examples do not fit each other; says which, and what to do.
    """
    with plain_errors(f"the posterior cannot encode examples of shape {tuple(x.shape[1:])}"):
        q = model.posterior(x)
    with plain_errors("the prior cannot be computed"):
        prior: Any = model.prior()
    latent = q.event_shape[0]
    if not isinstance(prior, Distribution):
        raise ValueError(
            f"a prior must return a torch Distribution over z; {a_kind(model.prior)} returned {a_kind(prior)}"
        )
    check_latents(q, prior)
    _check_support(model.prior, prior, x)
    z = q.rsample((), torch.zeros(*q.batch_shape, *q.event_shape).to(x))[0]
    with plain_errors(f"the decoder cannot decode latents of size {latent}, which is the posterior's"):
        p: Any = model.decoder(z)
    if not isinstance(p, Distribution):
        raise ValueError(
            f"a decoder must return a torch Distribution of x; {a_kind(model.decoder)} returned {a_kind(p)}: wrap a "
            "network that returns logits or means, as in Decoder(network, Bernoulli)"
        )
    shape = tuple(x.shape[1:])
    if tuple(p.event_shape) != shape and tuple(p.batch_shape + p.event_shape) == (len(x), *shape):
        raise ValueError(
            f"the decoder returns separate distributions of the values of x: join them with "
            f"torch.distributions.Independent(p, {len(shape) - len(p.event_shape)})"
        )
    check_shape(p, x)
    several = z.expand(2, 1, *z.shape)
    with plain_errors("the decoder cannot decode latents with leading axes, of draws and components"):
        kept = tuple(model.decoder(several).batch_shape)
    if kept != (2, 1, *p.batch_shape):
        raise ValueError(
            f"a decoder must keep the leading axes of z; for z of shape {tuple(several.shape)} it returned batch shape "
            f"{kept}, not {(2, 1, *p.batch_shape)}: reshape what it returns, or wrap the network in Decoder"
        )
    base = getattr(p, "base_dist", None)
    if isinstance(base, torch.distributions.Bernoulli | torch.distributions.ContinuousBernoulli):
        _check_logits(model.decoder, z)


def _check_support(kind: Any, prior: Distribution, x: Tensor) -> None:
    """Refuse a prior on less than R^D whose density outside its support is not 0.

    Raises:
        ValueError: it is not 0 there, or cannot be computed.
    """
    far = torch.tensor([[FAR], [-FAR]]).to(x).expand(2, *prior.event_shape)
    try:
        support = support_of(prior)
        outside = None if support is None else ~support.check(far)
    except Exception:  # noqa: BLE001  (a support that cannot tell is none)
        return
    if outside is None or outside.shape != (2,) or not bool(outside.any()):
        return
    try:
        found = prior.log_prob(far)
    except ValueError:
        found = torch.full((2,), math.nan)
    if not bool((found[outside] == -math.inf).all()):
        raise ValueError(
            f"{a_kind(kind)} does not give latents outside its support, which posteriors draw, a density of 0: choose "
            "a prior on all of R^D, or let its log_prob be −∞ there"
        )


def _check_logits(decoder: nn.Module, z: Tensor) -> None:
    """Refuse what looks like probabilities where a Bernoulli expects logits.

    Other likelihoods are not tested like this: so far from the origin their parameters may be invalid.

    Raises:
        ValueError: the decoder's logits stay within [0, 1] however far the latents are from the origin.
    """
    far = FAR * torch.randn(64, z.shape[-1], generator=torch.Generator().manual_seed(0)).to(z)
    with torch.random.fork_rng():
        base: Any = getattr(decoder(far), "base_dist", None)
    logits = getattr(base, "logits", None)
    if logits is not None:
        if bool((logits >= 0).all() & (logits <= 1).all()) and float(logits.min()) < float(logits.max()):
            raise ValueError(
                f"the decoder's logits lie within [0, 1] whatever z is, as if a sigmoid had been applied; "
                f"{type(base).__name__} takes logits: leave the sigmoid out"
            )


@torch.no_grad()
def coupling(model: Any, x: Tensor) -> str | None:
    """What makes the likelihood of an example depend on the rest of its batch, in the model's mode; None if nothing.

    BatchNorm in training mode does: log p(x|z) of a batch is then not a sum over its examples, and gives no bound.

    Args:
        model: the model.
        x: an example, or more.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z, same, values = model.prior().sample((3,)), x[[0, 0]], []
        for others in ([0, 1], [0, 2]):
            torch.manual_seed(0)  # the same dropout for both
            values.append(float(model.decoder(z[others]).log_prob(same)[0]))
    rounding = torch.finfo(z.dtype).eps * (COUPLED * abs(values[0]) + x[0].numel())
    if values[0] == values[1] or abs(values[0] - values[1]) <= rounding:  # both may be −∞
        return None
    named = [name for name, layer in model.decoder.named_modules() if isinstance(layer, _BatchNorm)]
    return f"the BatchNorm decoder.{named[0]}" if named else "a layer of the decoder"
