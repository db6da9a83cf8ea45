"""One training: its loop, its checkpoints, and how it resumes from them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from mixvae._failures import plain_errors
from mixvae._trying import check_parts
from mixvae.datasets import Dataset
from mixvae.files import load_tensors
from mixvae.files._forms import conform
from mixvae.model import MixtureVAE, evaluating, unread
from mixvae.progress import SILENT, Progress
from mixvae.training._callbacks import Callback, Callbacks, Step
from mixvae.training._estimates import check_steps
from mixvae.training._history import Epoch, History
from mixvae.training._learner import Learner, broken_part
from mixvae.training._loggers import Logger, Loggers
from mixvae.training._objective import Inputs
from mixvae.training._options import TrainingOptions
from mixvae.training._processes import first_alone
from mixvae.training._schedules import check_schedules
from mixvae.training._shown import NOBODY, Shown
from mixvae.training._signals import REQUEUE, StopSignal, end
from mixvae.training._state import Checkpoint, State, Store, is_over
from mixvae.training._trial import check_request, check_values, fewest, joined, rehearsing, tell_coupling
from mixvae.training._validation import BATCH, Measured, Validation
from mixvae.training._watch import EVERY, Watch


class _Stopped(Exception):  # noqa: N818  (not an error: a callback ended the training, which is saved)
    pass


class Trainer:
    """One training: `run` resumes from the last checkpoint in the run directory, if there is one.

    See `fit` for the arguments. `settings` is what loggers record about the training, nested by name.
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
        callbacks: Sequence[Callback | Callable[[Epoch], object]] = (),
        loggers: Sequence[Logger] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        check_request(data, options, fabric, seed, threads, progress)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.fabric, self.store, self.threads = model, fabric, store, threads
        self.options, self.seed, self.settings = options, seed, settings or {}
        self.progress = progress if fabric.is_global_zero else NOBODY
        self.callbacks = Callbacks(callbacks if fabric.is_global_zero else (), fabric.device)
        folder = None if store is None else store.path
        self.loggers = Loggers(loggers, folder, self.progress, fabric.loggers)  # pyright: ignore[reportArgumentType]
        self.train, self.validation = data.train.to(fabric.device), data.validation.to(fabric.device)
        self.state = State()
        self.watch = Watch(fabric.device)
        self.rows = History()
        self.best_weights: dict[str, Tensor] | None = None
        self.unsaved_best = self.saved = self.stopping = self.signalled = False
        self.noise = torch.Generator(fabric.device).manual_seed(seed)
        self.learner = Learner(model, options, fabric, min(options.batch, len(data.train)))
        trial = self._cast(self.train.batch(slice(0, 2), torch.Generator(fabric.device)))
        with torch.no_grad(), evaluating(model), torch.random.fork_rng():
            check_parts(model, trial)
            q = model.posterior(trial)
        self.components, self.latent = q.batch_shape[0], q.event_shape[0]
        active, each = options.active, options.validation_components
        for name, value in (("active", active), ("validation_components", each)):
            if value is not None and value > self.components:
                raise ValueError(f"{name} must be at most the number of components, {self.components}; got {value}")
        check_values(model, self.train, self.validation)
        check_steps(fabric, data, options, self.components, self.latent, BATCH)
        self._try()
        self.steps = len(self._batches(torch.Generator(), self._key))
        check_schedules(self.learner.schedule, options, self.steps, self.progress)
        on_device = self.learner.on_device
        self.validate = Validation.of(self.validation, options, q, fabric.device, subset_on_device=on_device)
        self.shown = Shown(self.progress, options.epochs, self.steps)
        self.signal = StopSignal()
        self.last_save = time.monotonic()

    def _try(self) -> None:
        """Try bound, gradient and compiler, so that their errors appear before anything is written.

        Raises:
            ValueError: one of them fails.
        """
        generator, objective = torch.Generator(self.fabric.device), self.learner.bare
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
                self.learner.least = fewest(lambda few: objective.each(*inputs(few).all), self.learner.whole)
                tell_coupling(self.model, inputs(1).all[0], self.progress)
            if objective.compiled is not None:
                self.progress.announce("compiling the training step, which takes a minute or more")
                with self.fabric.autocast():
                    objective.try_compiled(inputs(self.learner.whole))

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or validation has not improved for too long after the warm-up."""
        return is_over(
            self.state.epoch, self.state.best_epoch, self.options.epochs, self.options.warmup, self.options.patience
        )

    def run(self) -> History:
        """Train to the end and leave the weights that are kept in the model; returns one row per epoch."""
        self._resume()
        self.watch = Watch(self.fabric.device, self.state.total, self.state.norms, self.state.normed)
        with self.signal.listening(), unread(self.model, self.learner.kept), self._left_finite(), self._logging():
            if not self.saved or (self.store is not None and self.store.is_stale):
                self._save()  # so that a kill at any later instant leaves a run to resume
            with self.train.lasting():
                while not self.done:
                    self._end(self._epoch())
        if self.best_weights is not None:
            load_tensors(self.model, self.best_weights, "the best epoch")
        return self.rows

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Begin the loggers' records, and end them; a training that a callback stopped has succeeded."""
        loggers = self.loggers if self.fabric.is_global_zero and not self.done else None
        if loggers is not None:
            loggers.begin(self.settings)
        status = "failed"
        try:
            yield
            status = "success"
        except _Stopped:
            status = "success"
        finally:
            if loggers is not None:
                loggers.finish(status)

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
        self.learner.bare.beta.fill_(self._beta)
        shuffle = torch.Generator().manual_seed(self._key)
        batches = self._batches(shuffle, self._key)
        left, choices = batches[state.step :], [self._choose(shuffle) for _ in batches][state.step :]
        self.model.train()
        for rows, chosen, x in zip(left, choices, self._reading(left), strict=True):
            # every process draws the noise of the whole batch, so that results do not depend on their number
            shape = self.options.draws_per_component, self.options.active or self.components, len(rows), self.latent
            noise = torch.randn(shape, generator=self.noise, device=self.fabric.device).to(x)
            rate = self.learner.rate
            value, norm = self.learner.step(x[rank::world], noise[:, :, rank::world], chosen, len(rows))
            stops = (torch.full_like(value, flag) for flag in (self.signal.number, self.callbacks.stopping))
            summed = self._over_all(torch.stack([value, *stops]))
            self.watch.note(state.step, summed, norm)
            state.step += 1
            state.seconds = before + time.monotonic() - started
            self._tell_step(summed[0] / len(rows), norm, rate)
            if self._is_stopped():
                self._save()
                self._interrupt()
            if time.monotonic() - self.last_save >= self.options.save_every:
                self._save()
            self.shown.step(state.epoch, state.step, self.rows)
        return self._row(before, started, sum(map(len, batches)))

    def _reading(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """Batches of examples as the model takes them; where one cannot be read, a checkpoint is written first."""
        with self._saved_if_raised():
            yield from map(self._cast, self.train.batches(batches, self.noise, key=self._key))

    @property
    def _key(self) -> int:
        """Seed of this epoch's order, and of whatever is random in reading its examples."""
        return self.seed * 1_000_003 + self.state.epoch

    def _batches(self, shuffle: torch.Generator, key: int) -> list[Tensor]:
        """The examples of every batch of an epoch."""
        batches = self.train.epoch(self.options.batch, shuffle, key=key)
        return joined(batches, self.learner.least * self.fabric.world_size)

    @property
    def _beta(self) -> float:
        """Weight β of the KL part in this epoch."""
        return self.options.beta_at(self.state.epoch + 1)

    def _choose(self, generator: torch.Generator) -> Tensor | None:
        """Components that a step draws from: `active` of them at random, without replacement, or all (None)."""
        if self.options.active is None:
            return None
        chosen = torch.randperm(self.components, generator=generator)[: self.options.active]
        return chosen.to(self.fabric.device) if self.learner.on_device else chosen

    def _tell_step(self, bound: Tensor, norm: Tensor, rate: float | Tensor) -> None:
        """Call the callbacks with an `on_step` of their own."""
        if not self.callbacks.at_steps:
            return
        beta, learning_rate = (torch.full_like(bound, 0.0).add_(value) for value in (self._beta, rate))
        step = Step(self.state.epoch + 1, self.state.step, self.steps, bound, beta, learning_rate, norm)
        with self._saved_if_raised():
            self.callbacks.step(step)

    @contextmanager
    def _saved_if_raised(self) -> Iterator[None]:
        """Write a checkpoint before an error of a callback, or of the data, ends the training."""
        try:
            yield
        except Exception:
            self._save()
            raise

    def _is_stopped(self) -> bool:
        """Whether to stop after this step. Several processes decide at the same step, from what all of them know."""
        alone = self.fabric.world_size == 1 and (self.signal.number > 0 or self.callbacks.stopping)
        return (self.state.step % EVERY == 0 and self._look()) or alone

    def _look(self) -> bool:
        """Read what the device has accumulated since the last time; returns whether to stop.

        Raises:
            FloatingPointError: the bound was NaN or infinite at a step since then.
        """
        seen = self.watch.read()
        self.state.total, self.state.norms, self.state.normed = seen.total, seen.norms, seen.normed
        if seen.broken is not None:
            raise FloatingPointError(self._diverged("the bound", seen.broken + 1))
        self.signalled = self.signalled or seen.signalled
        return seen.signalled or seen.stopping

    def _row(self, before: float, started: float, examples: int) -> Epoch:
        """Validate, and describe the epoch that ends, given its number of examples."""
        state = self.state
        self.stopping = self._look()
        measured = self._validate()
        validation = measured["validation"]
        if not math.isfinite(validation):
            raise FloatingPointError(self._diverged("the validation bound", state.step))
        if validation > state.best:
            state.best, state.best_epoch = validation, state.epoch + 1
        if state.best_epoch == state.epoch + 1 or self.options.keep == "last":
            self.unsaved_best = True
            self.best_weights = {name: t.detach().clone() for name, t in self.learner.kept.state_dict().items()}
        rate = self.learner.end_epoch(validation)
        state.seconds = before + time.monotonic() - started
        row: Epoch = {
            "epoch": state.epoch + 1,
            "bound": state.total / examples,
            **measured,
            "gradient_norm": state.norms / state.normed if state.normed else None,
            "beta": self._beta,
            "learning_rate": rate,
            "best_epoch": state.best_epoch,
            "seconds": round(state.seconds, 3),
        }
        state.epoch, state.step, state.total, state.norms, state.normed = state.epoch + 1, 0, 0.0, 0.0, 0
        self.watch = Watch(self.fabric.device)
        return row

    def _end(self, row: Epoch) -> None:
        """Record and report an epoch, save if it is time, and stop if asked to."""
        self.rows.append(row)
        if self.fabric.is_global_zero:
            if self.store is not None:
                self.store.log(row)
            self.loggers.log(row)
            with self._saved_if_raised():
                self.callbacks.epoch(row)
        self.stopping = self._anywhere(self.callbacks.stopping) or self.stopping
        if self.done or self.stopping or time.monotonic() - self.last_save >= self.options.save_every:
            self._save()
        self.shown.epoch(row, over=self.done or self.stopping)
        if self.stopping:
            self._interrupt()

    @torch.no_grad()
    def _validate(self) -> Measured:
        """Measure the model that would be kept, at β = 1, with the same noise at every epoch."""
        world, rank = self.fabric.world_size, self.fabric.global_rank

        def report(done: int) -> None:
            self.shown.validating(self.state.epoch, done * world, len(self.validation), self.rows)

        with evaluating(self.learner.kept):
            return self.validate(self.learner.kept, self._over_all, rank=rank, world=world, report=report)

    def _cast(self, x: Tensor) -> Tensor:
        """Convert observations to the dtype of the model, which precision may have changed."""
        return x.to(next(self.model.parameters()).dtype)

    def _over_all(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="sum"))

    def _anywhere(self, count: int) -> bool:
        """Whether a number is positive in some process."""
        alone = self.fabric.world_size == 1
        return count > 0 if alone else bool(self._over_all(torch.tensor(float(count), device=self.fabric.device)))

    def _diverged(self, what: str, step: int) -> str:
        where = f"epoch {self.state.epoch + 1}, step {step} (β = {self._beta:.2f})"
        kept = f"; the last good checkpoint is kept in {self.store.path}" if self.store else ""
        return f"{what} became NaN or infinite at {where}{kept}: lower the learning rate or clip gradients"

    def _save(self) -> None:
        """Commit the state, which is complete in itself, and the best weights for others to read.

        Raises:
            FloatingPointError: something in it is NaN or infinite; the previous checkpoint is kept.
        """
        self.last_save = time.monotonic()
        self._look()
        if self.store is None or not self.fabric.is_global_zero:
            return
        state = {
            "state": asdict(self.state),
            "rows": list(self.rows),
            **self.learner.state(),
            "best": self.best_weights,
            "noise": self.noise.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "threads": torch.get_num_threads(),
        }
        if broken := broken_part(state):
            raise FloatingPointError(self._diverged(broken, self.state.step))
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
        self.learner.restore(saved, f"the checkpoint in {self.store.path if self.store else ''}")
        self.state, self.rows, self.saved = State(**saved["state"]), History(saved["rows"]), True
        self.noise.set_state(saved["noise"])
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        self.best_weights = saved["best"]

    def _interrupt(self) -> None:
        """End after a checkpoint, for whatever reason this or another process, or a callback, gave."""
        again = self._anywhere(self.signal.number == REQUEUE)  # no process ends while the first one saves
        if not (self.signalled or self.signal.number):
            raise _Stopped
        number, where = REQUEUE if again else self.signal.number, f"stopped in epoch {self.state.epoch + 1}"
        end(number, where, saved=self.store is not None, first=self.fabric.is_global_zero)
