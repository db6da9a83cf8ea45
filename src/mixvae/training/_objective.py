"""What a training maximises."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae._failures import plain_errors
from mixvae.bounds import Bound
from mixvae.gradients import Estimator, doubly_reparameterised, sticking_the_landing
from mixvae.model import MixtureVAE
from mixvae.training._free_bits import Freed
from mixvae.training._kinds import check_kinds
from mixvae.training._options import Compile

ROUNDED, ROUNDED_HALF = 0.01, 0.2
"""Relative errors of a parameter's gradient that rounding can explain, in full and in half precision."""
NEGLIGIBLE = 1e-3
"""Share of the whole gradient's norm that is added to a parameter's own, as tiny gradients are mere rounding."""
REPLAYING = (sticking_the_landing, doubly_reparameterised)
"""Estimators that rewind the random generator, which a graph cannot do."""


def check_compile(compile: Compile, gradient: Estimator, changing: nn.Module | None) -> None:
    """Refuse an unknown compile mode, and anything that cannot become a graph.

    Args:
        compile: how to compile.
        gradient: the estimator.
        changing: the posterior, if it runs different encoders at every step.

    Raises:
        ValueError: one of these is refused.
    """
    check_kinds({"compile": Compile}, compile=compile)
    if compile != "none" and gradient in REPLAYING:
        raise ValueError(
            f"compile {compile} cannot be used with {gradient.__name__}, which replays random numbers: use "
            "reparameterised, or leave compile at none"
        )
    if compile != "none" and changing is not None:
        raise ValueError(
            f"compile {compile} makes one graph of a step, but with `active` {type(changing).__name__} runs different "
            "encoders at each: use OneHotPosterior, or leave one of the two out"
        )


class Inputs:
    """Inputs of a step as they are: Fabric rounds tensors, and collections of them, to half precision.

    Only matrix products are to be rounded; a rounded grey value would fall into another bin of its likelihood.

    Args:
        x: observations, (B, ...).
        noise: standard normal noise, (L, S, B, D).
        active: components to draw from; all by default.
    """

    def __init__(self, x: Tensor, noise: Tensor, active: Tensor | None = None):
        self.all = x, noise, active


class Objective(nn.Module):
    """The objective: the sum of the bounds of some examples, as one module that Fabric can wrap.

    Args:
        model: the model to train.
        bound: which bound.
        gradient: how it is differentiated.
        score_all: score every draw under all components, not only under the active ones.
        compile: whether whole batches go through one graph of `torch.compile`.
        whole: examples in a whole batch; any other number, as in an epoch's last batch, is never compiled.
        device: where the model is.
        nats: λ of free bits, in nats per example.

    Attributes:
        beta: weight β of the KL part, a tensor on the device: a number would need a new graph for every value. It is
            not a buffer, which Fabric would round to half precision.
    """

    def __init__(
        self,
        model: MixtureVAE,
        bound: Bound,
        gradient: Estimator,
        *,
        score_all: bool,
        compile: Compile = "none",
        whole: int = 0,
        device: torch.device | str = "cpu",
        nats: float = 0.0,
    ):
        super().__init__()
        self.seen = Freed(model, nats) if nats else model  # by the estimator
        self.model, self.bound, self.gradient, self.score_all = model, bound, gradient, score_all
        self.beta = torch.ones((), dtype=torch.float64, device=device)
        self.whole, self.graphs = whole, compile == "reduce-overhead"
        self.compiled: Callable[..., Tensor] | None = None if compile == "none" else _compiled(self._sum, compile)

    def forward(self, inputs: Inputs) -> Float[Tensor, ""]:
        """Return the sum of the examples' bounds, their KL part scaled by beta."""
        if self.compiled is None or len(inputs.all[0]) != self.whole:
            return self._sum(*inputs.all)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(*inputs.all)

    def _sum(self, x: Tensor, noise: Tensor, active: Tensor | None) -> Tensor:
        return self.each(x, noise, active).sum()

    def each(
        self, x: Float[Tensor, "B ..."], noise: Float[Tensor, "L S B D"], active: Int[Tensor, " S"] | None = None
    ) -> Tensor:
        """Return the bound of every example, never compiled."""
        scored = None if self.score_all else active
        return self.gradient(
            self.seen, x, self.bound, len(noise), beta=self.beta, active=active, scored=scored, noise=noise
        )

    def try_compiled(self, inputs: Inputs) -> None:
        """Compile forward and backward pass now, on a whole batch, and compare the gradient with the eager one.

        Compilers make mistakes: torch 2.13 gave a one-hot encoder gradients that were wrong by a quarter where the
        graph returned each example's bound. A model with randomness of its own, such as dropout, is not compared.

        Args:
            inputs: a whole batch.

        Raises:
            ValueError: the step does not compile to one graph, or the graph's gradient differs.
        """
        with plain_errors("the training step does not compile to one graph: set compile to none; it stops at"):
            compiled = self._gradient(self.forward(inputs))
        one, other = (self._gradient(self._sum(*inputs.all)) for _ in range(2))
        if not all(map(torch.equal, one.values(), other.values())):
            return
        overall = torch.stack([g.norm() for g in one.values()]).norm()
        half = any(g.dtype in (torch.float16, torch.bfloat16) for g in one.values()) or torch.is_autocast_enabled(
            inputs.all[0].device.type
        )
        for name, expected in one.items():
            error = float((compiled[name] - expected).norm() / (expected.norm() + NEGLIGIBLE * overall))
            if not error <= (ROUNDED_HALF if half else ROUNDED):
                raise ValueError(
                    f"the compiled gradient in {name} differs from the eager one by {error:.1%}, so the compiler is "
                    "wrong: set compile to none, or try another version of torch"
                )

    def _gradient(self, bound: Tensor) -> dict[str, Tensor]:
        """Gradient of a bound in every parameter on which it depends."""
        learned = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(bound, list(learned.values()), allow_unused=True)
        return {name: g.detach().clone() for name, g in zip(learned, gradients, strict=True) if g is not None}


def _compiled(function: Callable[..., Tensor], mode: Compile) -> Callable[..., Tensor]:
    """Compile a function to one graph, separate from those of other trainings in this process."""
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "mode": None if mode == "default" else mode}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options["isolate_recompiles"] = True
    return torch.compile(function, **options)
