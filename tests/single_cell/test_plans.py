"""The fused optimisers make the steps that scvi-tools' make; several draws per step are drawn and averaged."""

import pytest
import scvi
import torch
from scvi.train import SemiSupervisedTrainingPlan, TrainingPlan

from mixvae.single_cell import MixtureSCANVI, MixtureSCVI

from .conftest import QUIET, make

CASES = {"mixture": (MixtureSCVI, TrainingPlan), "labelled": (MixtureSCANVI, SemiSupervisedTrainingPlan)}
SETUP = {"labels_key": "donor"}


def weights_after(cells, cls, optimizer):
    """Weights after a few steps of large learning rate and decay, and the class of the optimiser."""
    scvi.settings.seed = 0
    setup = SETUP if cls is MixtureSCVI else SETUP | {"unlabeled_category": "z"}
    model = make(cells, cls, setup=setup, epochs=0)
    plan = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.1, "eps": 0.001}
    model.train(4, train_size=1.0, batch_size=30, plan_kwargs=plan, **QUIET)
    used = model.trainer.optimizers[0]
    return {name: tensor.double() for name, tensor in model.module.state_dict().items()}, used


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
@pytest.mark.parametrize("case", CASES)
def test_a_fused_optimiser_makes_scvis_steps(cells, case, optimizer, monkeypatch):
    cls, plan = CASES[case]
    ours, fused = weights_after(cells.copy(), cls, optimizer)
    monkeypatch.setattr(cls, "_training_plan_cls", plan)
    theirs, plain = weights_after(cells, cls, optimizer)
    assert type(fused) is type(plain) is getattr(torch.optim, optimizer)
    assert (fused.defaults["fused"], plain.defaults["fused"]) == (True, None)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_several_draws_per_step_are_decoded_and_averaged(cells, monkeypatch):
    model = make(cells, n_components=2, epochs=0)
    decoded, inner = [], model.module.generative

    def generative(z, *args, **kwargs):
        decoded.append(len(z))
        return inner(z, *args, **kwargs)

    monkeypatch.setattr(model.module, "generative", generative)
    plan = {"draws_per_component": 3}
    model.train(1, train_size=0.5, batch_size=30, plan_kwargs=plan, **QUIET)
    assert set(decoded) == {30 * 2 * 3}, "cells, components, draws"
    with pytest.raises(ValueError, match="draws_per_component must be at least 1; got 0"):
        make(cells, epochs=0).train(1, plan_kwargs={"draws_per_component": 0}, **QUIET)
