"""One epoch of MixtureSCVI on CORTEX against one of SCVI, and against a loop over components, in one run.

    OMP_NUM_THREADS=2 python benchmarks/single_cell.py

2404 of 3005 cells, 1200 genes, batches of 128, everything at scvi-tools' defaults. Epochs of all models are trained
in turn, round after round; the ratio of each round is to SCVI's epoch of that round, and the median ratio is told.
The loop is what a plain implementation does: encode, decode and score each component by itself, with scvi-tools' own
likelihood; that it gives the same densities is a test (`tests/single_cell/test_module.py`).
"""

import logging
import statistics
import time
import warnings

import scvi
import torch
from lightning.pytorch import Callback
from scvi.model import SCVI
from torch.distributions import Normal

from mixvae.bounds import Terms
from mixvae.single_cell import MixtureModule, MixtureSCVI, cortex

ROUNDS, EPOCHS = 5, 3


class Looped(MixtureModule):
    """The same model by a loop over components."""

    def _terms(self, tensors, inferred, generated, noise=None):
        qz, x = inferred["qz"], tensors["X"]
        components, cells = qz.components.batch_shape
        z = inferred["z"].unflatten(0, (components, cells))
        library = inferred["library"][:cells]
        log_px, log_q = [], []
        for s in range(components):
            outputs = {"z": z[s], "library": library, "qz": qz}
            px = self.generative(**self._get_generative_input(tensors, outputs))["px"]
            log_px.append(px.log_prob(x).sum(-1))
            log_q.append(
                torch.stack([Normal(qz.means[:, j], qz.scales[:, j]).log_prob(z[s]).sum(-1) for j in range(components)])
            )
        log_pz = Normal(0.0, 1.0).log_prob(z).sum(-1)
        pi = qz.components.log_pi
        own = torch.arange(components)
        return Terms(torch.stack(log_px)[None], log_pz[None], torch.stack(log_q)[None], pi, pi.exp(), own)

    def forward(self, tensors, *, inference_kwargs=None, compute_loss=True, **kwargs):
        if not compute_loss or not self.training:
            return super().forward(tensors, inference_kwargs=inference_kwargs, compute_loss=compute_loss, **kwargs)
        outputs = self.inference(**self._get_inference_input(tensors), stratified=True)
        return outputs, {}, self.loss(tensors, outputs, {}, **kwargs.get("loss_kwargs", {}))


class LoopedSCVI(MixtureSCVI):
    """MixtureSCVI by a loop over components."""

    _module_cls = Looped


class Watch(Callback):
    """Seconds of the shortest epoch."""

    seconds = float("inf")

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = min(self.seconds, time.perf_counter() - self.start)


def epoch(cls, cells, **kwargs):
    """Seconds of an epoch."""
    cls.setup_anndata(cells)
    scvi.settings.seed = 0
    watch = Watch()
    model = cls(cells, **kwargs)
    model.train(EPOCHS, train_size=0.8, accelerator="cpu", callbacks=[watch], enable_progress_bar=False)
    return watch.seconds


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    cells = cortex()
    cases = {"SCVI": (SCVI, {})}
    cases |= {f"MixtureSCVI, S = {s}": (MixtureSCVI, {"n_components": s}) for s in (1, 2, 4)}
    cases |= {f"looped, S = {s}": (LoopedSCVI, {"n_components": s}) for s in (2, 4)}
    rounds = [{name: epoch(cls, cells, **kwargs) for name, (cls, kwargs) in cases.items()} for _ in range(ROUNDS)]
    print(f"{torch.get_num_threads()} threads, medians of {ROUNDS} rounds")
    print("| model | epoch, s | of SCVI's |\n|---|--:|--:|")
    for name in cases:
        seconds = statistics.median(r[name] for r in rounds)
        ratios = sorted(r[name] / r["SCVI"] for r in rounds)
        print(f"| {name} | {seconds:.2f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


if __name__ == "__main__":
    main()
