"""One training: its loop, its checkpoints, and how it goes on from them."""

from __future__ import annotations

import importlib.util
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mixvae.bounds import Bound, log_weights, miselbo
from mixvae.datasets import Dataset
from mixvae.distributions import keyed_normal
from mixvae.failures import at_least
from mixvae.files import load_tensors
from mixvae.gradients import Estimator
from mixvae.model import MixtureVAE, evaluating
from mixvae.training.estimates import check_step, check_training
from mixvae.training.objective import Objective
from mixvae.training.processes import first_alone
from mixvae.training.progress import Display
from mixvae.training.state import State, Store, is_over
from mixvae.training.trial import MakeOptimizer, MakeSchedule, try_bound, try_steps

VALIDATION_BATCH = 500
VALIDATION_SEED = 0
MOST_THREADS = 1024
"""CPU threads: torch ends the process where it cannot start as many as it is told."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals after which a training saves and ends."""


class Trainer:
    """One training: `run` goes on from wherever the run directory's last checkpoint stands.

    See `fit` for the arguments.
    """

    def __init__(
        self,
        model: MixtureVAE,
        data: Dataset,
        *,
        epochs: int,
        batch: int,
        draws: int,
        bound: Bound,
        gradient: Estimator,
        active: int | None,
        score_all: bool,
        validation_components: int | None,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule | None,
        warmup: int,
        patience: int | None,
        clip: float | None,
        ema: float | None,
        seed: int,
        store: Store | None,
        fabric: Fabric,
        save_every: float,
        threads: int | None = None,
    ):
        at_least(1, epochs=epochs, batch=batch, draws=draws, patience=patience, active=active, threads=threads)
        at_least(1, validation_components=validation_components)
        at_least(0, warmup=warmup, seed=seed, save_every=save_every)
        if threads is not None and threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}; got {threads}")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, such as 0.999; got {ema}")
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip must be a positive number; got {clip}")
        if min(batch, len(data.train)) < fabric.world_size:
            raise ValueError(f"batch must be at least the number of devices, {fabric.world_size}; got {batch}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.fabric, self.store, self.threads = model, fabric, store, threads
        self.epochs, self.batch, self.draws, self.seed = epochs, batch, draws, seed
        self.warmup, self.patience, self.clip, self.save_every = warmup, patience, clip, save_every
        self.train, self.validation = data.train.to(fabric.device), data.validation.to(fabric.device)
        self.state = State()
        self.rows: list[dict[str, Any]] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.unsaved_best = False
        self.saved = False
        self.noise = torch.Generator(fabric.device).manual_seed(seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        check_training(model, trained, optimizer, fabric.device, averaged=ema is not None)
        try_steps(trained, optimizer, schedule)
        made = optimizer(trained)
        objective = Objective(model, bound, gradient, score_all=score_all)
        self.objective, self.optimizer = fabric.setup(objective, made)
        self.base = [
            {"lr": float(group["lr"]), "weight_decay": float(group.get("weight_decay", 0))}
            for group in made.param_groups
        ]  # before a schedule changes it
        self.schedule = schedule(made) if schedule else None
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
        trial = self._cast(self.train.batch(slice(0, 1), torch.Generator(fabric.device)))
        with torch.no_grad(), evaluating(model):
            q = model.posterior(trial)
        self.components, self.latent = q.batch_shape[0], q.event_shape[0]
        for name, value in (("active", active), ("validation_components", validation_components)):
            if value is not None and value > self.components:
                raise ValueError(f"{name} must be at most the number of components, {self.components}; got {value}")
        self.active = active
        for size, drawn, scored, each in (
            (min(batch, len(data.train)) // fabric.world_size, active or self.components,
             self.components if score_all else active or self.components, draws),
            (min(VALIDATION_BATCH, len(data.validation)), validation_components or self.components, self.components, 1),
        ):  # fmt: skip
            check_step(
                fabric.device, data.shape, draws=each, drawn=drawn, scored=scored, batch=size, latent=self.latent,
                half="16" in str(fabric._precision.precision),  # noqa: SLF001  (Fabric shows it nowhere else)
            )  # fmt: skip
        with torch.no_grad(), torch.random.fork_rng():  # what bound and gradient refuse, they refuse now
            chosen = self._choose(torch.Generator(fabric.device))
            noise = torch.zeros(draws, active or self.components, 1, self.latent).to(trial)
            try_bound(lambda: objective(trial, noise, 1.0, chosen))
        validated = torch.randperm(self.components, generator=torch.Generator().manual_seed(VALIDATION_SEED))
        self.validated = validated[: validation_components or self.components].sort().values
        self.stop_signal = 0
        self.last_save = time.monotonic()

    @property
    def kept(self) -> MixtureVAE:
        """The model that is validated and kept: the running average if there is one."""
        return cast(MixtureVAE, self.ema.module) if self.ema else self.model

    @property
    def done(self) -> bool:
        """Whether all epochs are over, or validation has not improved for too long after the warm-up."""
        return is_over(self.state.epoch, self.state.best_epoch, self.epochs, self.warmup, self.patience)

    def run(self) -> list[dict[str, Any]]:
        """Train to the end and leave the best weights in the model; returns one row per epoch."""
        self._resume()
        show = Display(self.epochs) if self.fabric.is_global_zero else nullcontext()
        with show as display, self._signals():
            if not self.saved or (self.store is not None and self.store.is_stale):
                self._save()  # so that a kill at any later instant finds a run to go on with
            while not self.done:
                row = self._epoch()
                self.rows.append(row)
                if self.store is not None and self.fabric.is_global_zero:
                    self._log(row)
                if self.done or time.monotonic() - self.last_save >= self.save_every:
                    self._save()
                if display is not None:
                    display.show(row)
        if self.best_weights is not None:
            load_tensors(self.model, self.best_weights, "the best epoch")
        return self.rows

    def _epoch(self) -> dict[str, Any]:
        """Train one epoch, or what is left of it, and validate."""
        state, world, rank = self.state, self.fabric.world_size, self.fabric.global_rank
        started, before = time.monotonic(), state.seconds
        beta = min(1.0, (state.epoch + 1) / self.warmup) if self.warmup else 1.0
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + state.epoch)
        batches = torch.randperm(len(self.train), generator=shuffle).to(self.fabric.device).split(self.batch)
        self.model.train()
        for rows in batches[state.step :]:
            # every process draws the noise of the whole batch, so that results do not depend on their number
            x = self.train.batch(rows, self.noise)
            chosen = self._choose(self.noise)
            shape = self.draws, self.active or self.components, len(rows), self.latent
            noise = torch.randn(shape, generator=self.noise, device=self.fabric.device)
            value = self.objective(x[rank::world], noise[:, :, rank::world], beta, chosen).sum()
            report = torch.stack([value.detach(), value.new_tensor(float(self.stop_signal))])
            total, stop = self._over_all(report).tolist()
            if not math.isfinite(total):
                raise FloatingPointError(self._diverged("the bound", beta))
            self.optimizer.zero_grad()
            self.fabric.backward(-value * (world / len(rows)))
            if self.clip is not None:
                self.fabric.clip_gradients(self.objective, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
            self.optimizer.step()
            if self.ema:
                self.ema.update_parameters(self.model)
            state.step, state.total = state.step + 1, state.total + total
            state.seconds = before + time.monotonic() - started
            if stop:
                self._save()
                self._interrupt()
            if time.monotonic() - self.last_save >= self.save_every:
                self._save()
        return self._end_of_epoch(beta, before, started)

    def _choose(self, generator: torch.Generator) -> Tensor | None:
        """Components that a step draws from: so many at random, without replacement, or all."""
        if self.active is None:
            return None
        return torch.randperm(self.components, generator=generator, device=generator.device)[: self.active]

    def _end_of_epoch(self, beta: float, before: float, started: float) -> dict[str, Any]:
        state = self.state
        validation = self._validate()
        if not math.isfinite(validation):
            raise FloatingPointError(self._diverged("the validation bound", beta))
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
        row = {
            "epoch": state.epoch + 1,
            "bound": state.total / len(self.train),
            "validation": validation,
            "beta": beta,
            "learning_rate": float(rate),
            "best_epoch": state.best_epoch,
            "seconds": round(state.seconds, 3),
        }
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0
        return row

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean validation MISELBO with one draw per component, at β = 1, on the same noise at every epoch."""
        model, world, rank = self.kept, self.fabric.world_size, self.fabric.global_rank
        total = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        with evaluating(model):
            for rows in torch.arange(len(self.validation))[rank::world].split(VALIDATION_BATCH):
                x = self._cast(self.validation.batch(rows.to(self.fabric.device)))
                noise = keyed_normal(VALIDATION_SEED, rows.numpy(), 0, 1, (len(self.validated), self.latent))
                terms = model(x, noise=noise.to(x.device), active=self.validated)
                total += miselbo(log_weights(terms), terms.weight).double().sum()
        return float(self._over_all(total)) / len(self.validation)

    def _cast(self, x: Tensor) -> Tensor:
        """Give observations the dtype of the model, which precision may have changed."""
        return x.to(next(self.model.parameters()).dtype)

    def _over_all(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="sum"))

    def _log(self, row: dict[str, Any]) -> None:
        """Append to the metrics, and to TensorBoard where that is installed."""
        assert self.store is not None
        self.store.log(row)
        if importlib.util.find_spec("tensorboard"):
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            if not self.fabric.loggers:
                self.fabric.loggers.append(TensorBoardLogger(self.store.path, "tensorboard", version=""))
            scalars = {name: row[name] for name in ("bound", "validation", "beta", "learning_rate")}
            self.fabric.loggers[0].log_metrics(scalars, row["epoch"])

    def _diverged(self, what: str, beta: float) -> str:
        where = f"epoch {self.state.epoch + 1}, step {self.state.step + 1} (β = {beta:.2f})"
        kept = f"; the last good checkpoint is kept in {self.store.path}" if self.store else ""
        return f"{what} became NaN or infinite at {where}{kept}: lower the learning rate or clip gradients"

    def _save(self) -> None:
        """Commit the state, which is complete in itself, and the best weights for others to read."""
        self.last_save = time.monotonic()
        if self.store is None or not self.fabric.is_global_zero:
            return
        tensors = self.model.state_dict()
        if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
            raise FloatingPointError(self._diverged("a weight", min(1.0, (self.state.epoch + 1) / (self.warmup or 1))))
        state = {
            "state": asdict(self.state),
            "rows": self.rows,
            "model": tensors,
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
        self.store.save(state, self.best_weights if self.unsaved_best else None, self.rows, self.state)
        self.saved, self.unsaved_best = True, False

    def _resume(self) -> None:
        """Go back to the last checkpoint, which the first process reads for all of them."""
        saved = first_alone(self.fabric, self.store.load) if self.store is not None else None
        if saved is None:
            return
        if self.threads is None:
            torch.set_num_threads(saved["threads"])
        load_tensors(self.model, saved["model"], f"the checkpoint in {self.store.path if self.store else ''}")
        self.state, self.rows, self.saved = State(**saved["state"]), saved["rows"], True
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None and saved["schedule"] is not None:
            self.schedule.load_state_dict(saved["schedule"])
        self._amend(saved["base"])
        if self.ema is not None and saved["ema"] is not None:
            self.ema.load_state_dict(saved["ema"])
        self.noise.set_state(saved["noise"])
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        self.best_weights = saved["best"]

    def _amend(self, old: list[dict[str, float]]) -> None:
        """Use the learning rate and weight decay asked for now, where they differ from those of the checkpoint.

        A schedule's progress is kept: the present rate changes by the ratio of the new base rate to the old one.

        Raises:
            ValueError: the schedule has rates of its own, so that another one of the optimiser would change nothing.
        """
        schedules = list(_nested(self.schedule))
        own = [type(schedule).__name__ for schedule in schedules if isinstance(schedule, OneCycleLR | CyclicLR)]
        if own and [now["lr"] for now in self.base] != [before["lr"] for before in old]:
            raise ValueError(f"{own[0]} sets learning rates of its own: another rate of the optimiser changes nothing")
        for i, (group, before, now) in enumerate(zip(self.optimizer.param_groups, old, self.base, strict=True)):
            if now["lr"] != before["lr"]:
                group["lr"] = group["lr"] * (now["lr"] / before["lr"]) if before["lr"] else now["lr"]
                if not self.schedule:
                    group["lr"] = now["lr"]
                if "initial_lr" in group:
                    group["initial_lr"] = now["lr"]
                for schedule in schedules:
                    schedule.base_lrs[i] = now["lr"]
            if "weight_decay" in group:
                group["weight_decay"] = now["weight_decay"]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn Ctrl-C, SIGTERM and SIGHUP into a stop after the current step; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            del frame
            if self.stop_signal == number == signal.SIGINT:
                raise KeyboardInterrupt  # pressed twice: do not wait for the step to end
            self.stop_signal = number

        caught = [n for n in STOPS if signal.getsignal(n) is not signal.SIG_IGN]  # nohup ignores SIGHUP, and so do we
        old = {number: signal.signal(number, note) for number in caught}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _interrupt(self) -> None:
        self.fabric.barrier()  # no process ends while the first one saves
        if self.stop_signal == signal.SIGINT:
            where = f"stopped in epoch {self.state.epoch + 1}"
            raise KeyboardInterrupt(f"{where}, after a checkpoint: the same call goes on" if self.store else where)
        raise SystemExit(128 + (self.stop_signal or signal.SIGTERM))  # 0: another process of the training was told


def _nested(schedule: LRScheduler | ReduceLROnPlateau | None) -> Iterator[LRScheduler]:
    """A schedule and those that it is made of, which have base rates of their own."""
    if isinstance(schedule, LRScheduler) and hasattr(schedule, "base_lrs"):
        yield schedule
    for inner in getattr(schedule, "_schedulers", []):
        yield from _nested(inner)
