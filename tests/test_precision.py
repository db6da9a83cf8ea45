"""Products are exact where likelihoods are computed, and as before elsewhere."""

import pytest
import torch

from conftest import binary, tiny_model
from mixvae._precision import exact_products
from mixvae.analysis import encode
from mixvae.evaluation import evaluate

CONV = torch.backends.cudnn.conv


def settings():
    """What torch says of itself."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(params=["highest", "high", "medium"])
def before(request):
    """Settings of a user's."""
    old = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield settings()
    torch.set_float32_matmul_precision(old)


def test_likelihoods_and_latents_use_full_precision_products(before):
    """The default rounds convolutions on a GPU to 10 bits; `medium` those of a CPU, too."""
    model, seen = tiny_model(dtype=torch.float32), []
    model.decoder.register_forward_hook(lambda *_: seen.append(settings()))
    model.posterior.encoders[0].register_forward_hook(lambda *_: seen.append(settings()))
    x = binary(3, dtype=torch.float32)
    evaluate(model, x, 6)
    encode(model, x)
    model.reconstruct(x)
    assert set(seen) == {("highest", False)}
    assert settings() == before


def test_precision_is_as_before_after_an_error(before):
    with pytest.raises(ZeroDivisionError), exact_products():
        raise ZeroDivisionError
    assert settings() == before


def test_precision_that_was_set_kind_by_kind_is_kept():
    """torch refuses to read its older switches then."""
    old = CONV.fp32_precision, torch.backends.cudnn.rnn.fp32_precision
    CONV.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = "tf32", "ieee"
    try:
        with pytest.raises(RuntimeError):
            settings()
        with exact_products():
            assert CONV.fp32_precision == "ieee"
        assert CONV.fp32_precision == "tf32"
    finally:
        CONV.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = old
