"""Estimates of cells know which counts they are of."""

import numpy as np
import pytest
import torch
from scvi.model import SCVI

from mixvae.evaluation import fingerprint, paired_gain, split_gain
from mixvae.single_cell import bounds

from .conftest import make

FEW = [3, 50, 80, 7]


def test_gains_of_models_are_split_over_the_same_cells(cells):
    plain, mixture = make(cells, SCVI), make(cells)
    old = bounds(plain, indices=FEW, n_mc_samples=60)
    new = mixture.get_bounds(indices=FEW, n_mc_samples=60, batch_size=3)
    assert new.observations == old.observations == fingerprint(torch.as_tensor(cells.X.toarray()[FEW]))
    assert paired_gain(new, old, quiet=True).mean == pytest.approx((new.log_px - old.log_px).mean(), rel=1e-5)
    gain = split_gain(new, old, quiet=True)
    assert gain.elbo.mean == pytest.approx(gain.model.mean + gain.posterior.mean, abs=1e-4)


def test_other_cells_are_not_paired(cells):
    model = make(cells)
    one = model.get_bounds(indices=FEW, n_mc_samples=6)
    other = model.get_bounds(indices=[3, 50, 80, 8], n_mc_samples=6)
    batches = list(model._make_data_loader(adata=cells, indices=np.array(FEW)))
    unknown = model.get_bounds(n_mc_samples=6, dataloader=batches)
    assert unknown.observations is None
    assert np.allclose(unknown.elbo.shape, one.elbo.shape)
    for wrong in (other, unknown):
        with pytest.raises(ValueError, match="different observations|unknown examples"):
            paired_gain(one, wrong, quiet=True)
