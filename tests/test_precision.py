"""Products are exact where likelihoods are computed, and as before elsewhere."""

import pytest
import torch

from conftest import binary, tiny_model
from mixvae._precision import exact_products
from mixvae.analysis import encode
from mixvae.evaluation import evaluate
from mixvae.training import launch
from mixvae.training._trial import check_clipping

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


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_in_16_bits_are_refused_with_what_to_use(precision, tmp_path):
    with pytest.raises(ValueError, match=f"precision {precision} keeps .* use {precision.split('-')[0]}-mixed"):
        launch("cpu", precision=precision)


def test_half_precision_that_a_device_lacks_is_refused():
    with pytest.raises(ValueError, match="precision 16-mixed is not available on the CPU: use bf16-mixed"):
        launch("cpu", precision="16-mixed")


def test_clipping_scaled_gradients_of_a_fused_adam_is_refused():
    fabric = launch("cpu")
    fabric._precision.scaler = torch.amp.GradScaler("cpu")
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(
        ValueError, match="clip 1.0 under precision 16-mixed needs .* {class_path: Adam, lr: …} without"
    ):
        check_clipping(torch.optim.Adam(parameters, fused=True), fabric, 1.0)
    check_clipping(torch.optim.Adam(parameters, fused=True), fabric, None)
    check_clipping(torch.optim.Adam(parameters), fabric, 1.0)
