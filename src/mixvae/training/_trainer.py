"""One training: its loop, its checkpoints, and how it resumes from them."""

from __future__ import annotations

import importlib.util
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mixvae._failures import plain_errors
from mixvae._trying import check_parts
from mixvae.datasets import Dataset
from mixvae.distributions import keyed_normal
from mixvae.files import load_tensors
from mixvae.files._forms import conform
from mixvae.model import MixtureVAE, evaluating, unread
from mixvae.posteriors import Posterior
from mixvae.progress import SILENT, Progress
from mixvae.training._average import RunningAverage
from mixvae.training._estimates import check_step, check_training
from mixvae.training._history import Epoch, History, in_words
from mixvae.training._objective import Inputs, Objective, check_compile
from mixvae.training._options import TrainingOptions
from mixvae.training._processes import first_alone
from mixvae.training._rates import amend, base_rates
from mixvae.training._signals import StopSignal
from mixvae.training._state import Checkpoint, State, Store, is_over
from mixvae.training._trial import (
    batches_of,
    check_clipping,
    check_request,
    check_values,
    fewest,
    rehearsing,
    tell_coupling,
    try_steps,
)  # fmt: skip
from mixvae.training._validation import validation_bound
from mixvae.training._watch import EVERY, Watch, all_finite

VALIDATION_BATCH = 500
VALIDATION_SEED = 0


class Trainer:
    """One training: `run` resumes from the last checkpoint in the run directory, if there is one.

    See `fit` for the arguments.
    """

    def __init__(
        self,
        model: MixtureVAE,
        data: Dataset,
        options: TrainingOptions,
        *,
        seed: int,
        store: Store | None,
        fabric: Fabric,
        threads: int | None = None,
        progress: Progress = SILENT,
    ):
        check_request(data, options, fabric, seed, threads)
        batch, active, each = options.batch, options.active, options.validation_components
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.fabric, self.store, self.threads = model, fabric, store, threads
        self.options, self.seed, self.progress = options, seed, progress
        self.train, self.validation = data.train.to(fabric.device), data.validation.to(fabric.device)
        self.state = State()
        self.watch = Watch(fabric.device)
        self.rows = History()
        self.best_weights: dict[str, Tensor] | None = None
        self.unsaved_best = False
        self.saved = self.stopping = False
        self.noise = torch.Generator(fabric.device).manual_seed(seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        check_training(model, trained, options.optimizer, fabric.device, averaged=options.ema is not None)
        try_steps(trained, options.optimizer, options.schedule)
        made = options.optimizer(trained)
        check_clipping(made, fabric, options.clip)
        whole = len(range(fabric.global_rank, min(batch, len(data.train)), fabric.world_size))
        self.on_device = isinstance(model.posterior, Posterior) and bool(model.posterior.gathers)
        check_compile(options.compile, options.gradient, None if active is None or self.on_device else model.posterior)
        self.bare = Objective(
            model, options.bound, options.gradient, score_all=options.score_all, compile=options.compile, whole=whole,
            device=fabric.device,
        )  # fmt: skip
        self.objective, self.optimizer = fabric.setup(self.bare, made)
        self.base = base_rates(made)  # before a schedule changes them
        self.schedule = options.schedule(made) if options.schedule else None
        self.ema = RunningAverage(model, options.ema) if options.ema else None
        trial = self._cast(self.train.batch(slice(0, 2), torch.Generator(fabric.device)))
        with torch.no_grad(), evaluating(model), torch.random.fork_rng():
            check_parts(model, trial)
            q = model.posterior(trial)
        self.components, self.latent = q.batch_shape[0], q.event_shape[0]
        for name, value in (("active", active), ("validation_components", each)):
            if value is not None and value > self.components:
                raise ValueError(f"{name} must be at most the number of components, {self.components}; got {value}")
        check_values(model, self.train, self.validation)
        for size, drawn, scored, draws in (
            (min(batch, len(data.train)) // fabric.world_size, active or self.components,
             self.components if options.score_all else active or self.components, options.draws_per_component),
            (min(VALIDATION_BATCH, len(data.validation)), each or self.components, each or self.components, 1),
        ):  # fmt: skip
            check_step(
                fabric.device, data.shape, draws_per_component=draws, drawn=drawn, scored=scored, batch=size,
                latent=self.latent,
                half="16" in str(fabric._precision.precision),  # noqa: SLF001  (Fabric shows it nowhere else)
            )  # fmt: skip
        self._try(whole)
        self.validated = each or self.components
        order = torch.randperm(self.components, generator=torch.Generator().manual_seed(VALIDATION_SEED))
        fixed = order[: self.validated].sort().values.to(fabric.device if self.on_device else "cpu")
        self.subset = fixed if self.validated < self.components else None
        self.signal = StopSignal()
        self.last_save = time.monotonic()

    def _try(self, whole: int) -> None:
        """Let bound, gradient and compiler refuse whatever they refuse now, before anything is written.

        Raises:
            ValueError: one of them does.
        """
        generator = torch.Generator(self.fabric.device)
        chosen = self._choose(torch.Generator())

        def inputs(examples: int) -> Inputs:
            x = self._cast(self.train.batch(slice(0, examples), generator))
            noise = torch.randn(
                self.options.draws_per_component, self.options.active or self.components, examples, self.latent
            ).to(x)
            return Inputs(x, noise, chosen)

        self.model.train()  # as in the training: each mode needs its own graph
        with rehearsing(self.model), unread(self.model):
            with torch.no_grad():
                self.least = fewest(lambda few: self.bare.each(*inputs(few).all), whole)
                tell_coupling(self.model, inputs(1).all[0], self.progress if self.fabric.is_global_zero else SILENT)
            if self.bare.compiled is not None:
                if self.fabric.is_global_zero:
                    self.progress.announce("compiling the training step, which takes a minute or more")
                with self.fabric.autocast():
                    self.bare.try_compiled(inputs(whole))

    @property
    def kept(self) -> MixtureVAE:
        """The model that is validated and kept: the running average if there is one."""
        return cast(MixtureVAE, self.ema.module) if self.ema else self.model

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or validation has not improved for too long after the warm-up."""
        return is_over(
            self.state.epoch, self.state.best_epoch, self.options.epochs, self.options.warmup, self.options.patience
        )

    def run(self) -> History:
        """Train to the end and leave the best weights in the model; returns one row per epoch."""
        self._resume()
        self.watch = Watch(self.fabric.device, self.state.total)
        with self.signal.listening(), unread(self.model, self.kept), self._left_finite():
            if not self.saved or (self.store is not None and self.store.is_stale):
                self._save()  # so that a kill at any later instant leaves a run to resume
            while not self.done:
                row = self._epoch()
                self.rows.append(row)
                if self.store is not None and self.fabric.is_global_zero:
                    self._log(row)
                if self.done or self.stopping or time.monotonic() - self.last_save >= self.options.save_every:
                    self._save()
                if self.stopping:
                    self._interrupt()
                if self.fabric.is_global_zero:
                    self.progress.update(row["epoch"], self.options.epochs, in_words(row, self.options.epochs))
        if self.best_weights is not None:
            load_tensors(self.model, self.best_weights, "the best epoch")
        return self.rows

    @contextmanager
    def _left_finite(self) -> Iterator[None]:
        """Leave a model that diverged with the weights of the best epoch, if there was one."""
        try:
            yield
        except FloatingPointError:
            if self.best_weights is not None:
                load_tensors(self.model, self.best_weights, "the best epoch")
            raise

    def _epoch(self) -> Epoch:
        """Train one epoch, or the rest of it, and validate."""
        state, world, rank = self.state, self.fabric.world_size, self.fabric.global_rank
        started, before = time.monotonic(), state.seconds
        self.bare.beta.fill_(self._beta)
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + state.epoch)
        order = torch.randperm(len(self.train), generator=shuffle).to(self.fabric.device)
        batches = batches_of(order, self.options.batch, self.least * world)
        choices = [self._choose(shuffle) for _ in batches]
        self.model.train()
        for rows, chosen in zip(batches[state.step :], choices[state.step :], strict=True):
            # every process draws the noise of the whole batch, so that results do not depend on their number
            x = self._cast(self.train.batch(rows, self.noise))
            shape = self.options.draws_per_component, self.options.active or self.components, len(rows), self.latent
            noise = torch.randn(shape, generator=self.noise, device=self.fabric.device).to(x)
            value = self.objective(Inputs(x[rank::world], noise[:, :, rank::world], chosen))
            signalled = torch.full_like(value, self.signal.number, requires_grad=False)
            self.watch.note(state.step, *self._over_all(torch.stack([value.detach(), signalled])))
            self.optimizer.zero_grad()
            self.fabric.backward(-value * (world / len(rows)))
            if self.options.clip is not None:
                self.fabric.clip_gradients(
                    self.objective, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            if self.ema:
                self.ema.update_parameters(self.model)
            state.step += 1
            state.seconds = before + time.monotonic() - started
            stop = self.signal.number > 0 and world == 1  # with several processes, all of them stop at the same step
            if state.step % EVERY == 0:
                stop = self._look() or stop
            if stop:
                self._save()
                self._interrupt()
            if time.monotonic() - self.last_save >= self.options.save_every:
                self._save()
        return self._end_of_epoch(before, started)

    @property
    def _beta(self) -> float:
        """Weight β of the KL part in this epoch."""
        return min(1.0, (self.state.epoch + 1) / self.options.warmup) if self.options.warmup else 1.0

    def _choose(self, generator: torch.Generator) -> Tensor | None:
        """Components that a step draws from: `active` of them at random, without replacement, or all (None)."""
        if self.options.active is None:
            return None
        chosen = torch.randperm(self.components, generator=generator)[: self.options.active]
        return chosen.to(self.fabric.device) if self.on_device else chosen

    def _look(self) -> bool:
        """Read what the device has accumulated since the last time; returns whether to stop.

        Raises:
            FloatingPointError: the bound was NaN or infinite at a step since then.
        """
        self.state.total, broken, stop = self.watch.read()
        if broken is not None:
            raise FloatingPointError(self._diverged("the bound", broken + 1))
        return stop

    def _end_of_epoch(self, before: float, started: float) -> Epoch:
        state = self.state
        self.stopping = self._look()
        validation = self._validate()
        if not math.isfinite(validation):
            raise FloatingPointError(self._diverged("the validation bound", state.step))
        improved = validation > state.best
        if improved:
            state.best, state.best_epoch, self.unsaved_best = validation, state.epoch + 1, True
            self.best_weights = {name: t.detach().clone() for name, t in self.kept.state_dict().items()}
        rate = self.optimizer.param_groups[0]["lr"]
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(-validation)
        elif self.schedule is not None:
            self.schedule.step()
        state.seconds = before + time.monotonic() - started
        row: Epoch = {
            "epoch": state.epoch + 1,
            "bound": state.total / len(self.train),
            "validation": validation,
            "beta": self._beta,
            "learning_rate": float(rate),
            "best_epoch": state.best_epoch,
            "seconds": round(state.seconds, 3),
        }
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0
        self.watch = Watch(self.fabric.device)
        return row

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean of `validation_bound` with one draw per component, at β = 1, with the same noise at every epoch."""
        model, world, rank = self.kept, self.fabric.world_size, self.fabric.global_rank
        total = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        with evaluating(model):
            for rows in torch.arange(len(self.validation))[rank::world].split(VALIDATION_BATCH):
                x = self._cast(self.validation.batch(rows.to(self.fabric.device)))
                noise = keyed_normal(VALIDATION_SEED, rows.numpy(), 0, 1, (self.validated, self.latent))
                total += validation_bound(model, x, self.subset, noise.to(x.device)).double().sum()
        return float(self._over_all(total)) / len(self.validation)

    def _cast(self, x: Tensor) -> Tensor:
        """Convert observations to the dtype of the model, which precision may have changed."""
        return x.to(next(self.model.parameters()).dtype)

    def _over_all(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="sum"))

    def _log(self, row: Epoch) -> None:
        """Append to the metrics, and to TensorBoard if that is installed."""
        assert self.store is not None
        self.store.log(row)
        if importlib.util.find_spec("tensorboard"):
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            if not self.fabric.loggers:
                self.fabric.loggers.append(TensorBoardLogger(self.store.path, "tensorboard", version=""))
            scalars = {
                "bound": row["bound"], "validation": row["validation"], "beta": row["beta"],
                "learning_rate": row["learning_rate"],
            }  # fmt: skip
            self.fabric.loggers[0].log_metrics(scalars, row["epoch"])

    def _diverged(self, what: str, step: int) -> str:
        where = f"epoch {self.state.epoch + 1}, step {step} (β = {self._beta:.2f})"
        kept = f"; the last good checkpoint is kept in {self.store.path}" if self.store else ""
        return f"{what} became NaN or infinite at {where}{kept}: lower the learning rate or clip gradients"

    def _save(self) -> None:
        """Commit the state, which is complete in itself, and the best weights for others to read.

        Raises:
            FloatingPointError: something in it is NaN or infinite; the previous checkpoint stays.
        """
        self.last_save = time.monotonic()
        self._look()
        if self.store is None or not self.fabric.is_global_zero:
            return
        state = {
            "state": asdict(self.state),
            "rows": list(self.rows),
            "model": self.model.state_dict(),
            "best": self.best_weights,
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "base": self.base,
            "noise": self.noise.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "threads": torch.get_num_threads(),
        }
        for what in ("model", "ema", "optimizer"):
            if not all_finite(state[what]):
                name = {"model": "a weight", "ema": "a weight's average", "optimizer": "the optimiser's state"}[what]
                raise FloatingPointError(self._diverged(name, self.state.step))
        self.store.save(state, self.best_weights if self.unsaved_best else None, self.rows, self.state)
        self.saved, self.unsaved_best = True, False

    def _resume(self) -> None:
        """Go back to the last checkpoint, which the first process reads for all of them."""
        saved = first_alone(self.fabric, self.store.load) if self.store is not None else None
        if saved is not None:
            where = self.store.path if self.store else ""
            with plain_errors(f"the checkpoint in {where} has another form, train a new run"):
                conform(saved["state"], State, "its state")
                self._restore(saved)

    def _restore(self, saved: Checkpoint) -> None:
        """Restore the state of a checkpoint."""
        if self.threads is None:
            torch.set_num_threads(saved["threads"])
        load_tensors(self.model, saved["model"], f"the checkpoint in {self.store.path if self.store else ''}")
        self.state, self.rows, self.saved = State(**saved["state"]), History(saved["rows"]), True
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None and saved["schedule"] is not None:
            self.schedule.load_state_dict(saved["schedule"])
        amend(self.optimizer, self.schedule, saved["base"], self.base)
        if self.ema is not None and saved["ema"] is not None:
            self.ema.load_state_dict(saved["ema"])
        self.noise.set_state(saved["noise"])
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        self.best_weights = saved["best"]

    def _interrupt(self) -> None:
        self.fabric.barrier()  # no process ends while the first one saves
        if self.signal.number == signal.SIGINT:
            where = f"stopped in epoch {self.state.epoch + 1}"
            raise KeyboardInterrupt(f"{where}, after a checkpoint: repeat the call to resume" if self.store else where)
        raise SystemExit(128 + (self.signal.number or signal.SIGTERM))  # 0: another process received the signal
