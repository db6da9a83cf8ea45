"""A model's encoder and decoder as programs that run without mixvae: torch.export and ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mixvae._failures import said
from mixvae.distributions import Autoregressive
from mixvae.files import write_bytes
from mixvae.model import MixtureVAE, evaluating
from mixvae.sampling import mean_of

Part = Literal["encoder", "decoder"]
TRACED = 3
"""Examples that a program is traced with; its batch may have any size."""


class Encoder(nn.Module):
    """x (B, *shape) to mean and standard deviation of every component of q(z|x), (B, S, D) each."""

    inputs, outputs = ("x",), ("mean", "std")

    def __init__(self, model: MixtureVAE):
        super().__init__()
        self.posterior = model.posterior

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode x."""
        q = self.posterior(x)
        return q.mean.transpose(0, 1), q.variance.sqrt().transpose(0, 1)


class Decoder(nn.Module):
    """z (B, D) to the mean of p(x|z), (B, *shape)."""

    inputs, outputs = ("z",), ("mean",)

    def __init__(self, model: MixtureVAE):
        super().__init__()
        self.decoder = model.decoder

    def forward(self, z: Tensor) -> Tensor:
        """Decode z."""
        return mean_of(self.decoder(z)).to(z.dtype)


@dataclass(frozen=True)
class Exported:
    """An exported program.

    Args:
        path: the file.
        inputs: shape of each input by name; B is the batch.
        outputs: shape of each output by name.
        program: the traced program, as `torch.export.load` returns it for a .pt2 file.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    program: ExportedProgram = field(repr=False)

    def __str__(self) -> str:
        """Inputs and outputs with their shapes."""
        return f"{_listed(self.inputs)} → {_listed(self.outputs)}"


def _listed(shapes: dict[str, tuple[int | str, ...]]) -> str:
    return ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items())


@torch.no_grad()
def export(model: MixtureVAE, path: str | Path, *, part: Part = "encoder") -> Exported:
    """Write a model's encoder or decoder as a program that needs neither mixvae nor the classes of the model.

    The encoder maps x (B, *shape) to the mean and the standard deviation of every component of q(z|x), (B, S, D) each,
    in that order. The decoder maps z (B, D) to the mean of p(x|z), (B, *shape). B may be any number. Inputs and outputs
    have the model's precision; the program is traced in evaluation mode.

    `torch.export.load(path).module()` is the program of a .pt2 file. An .onnx file, which ONNX Runtime and others run,
    needs the extra `onnx`: `pip install mixvae[onnx]`.

    Args:
        model: the model, which stays as it is.
        path: the file, which ends in .pt2 or .onnx.
        part: encoder or decoder.

    Returns:
        The file, and the program's inputs and outputs.

    Raises:
        ValueError: the path has another ending, there is no such part, the extra is missing, or the part cannot be
            exported: moments of flows, chains and autoregressive decoders have no closed form, and the mean of a
            mixture of logistics is computed in pieces, whose number depends on the batch.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, export
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> print(export(model, "encoder.pt2"))
        x (B, 4) → mean (B, 3, 2), std (B, 3, 2)
        >>> mean, std = torch.export.load("encoder.pt2").module()(torch.ones(7, 4))
        >>> mean.shape
        torch.Size([7, 3, 2])
    """
    path = Path(path).expanduser()
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"a program is written to a .pt2 or .onnx file; got {path}")
    if part not in PARTS:
        raise ValueError(f"a part is {' or '.join(PARTS)}; got {part!r}")
    if path.suffix == ".onnx":
        _check_onnx()
    module = PARTS[part](model)
    like = next(model.parameters(), torch.zeros(()))
    with evaluating(model), _quietly():
        z = like.new_zeros(TRACED, *model.prior().event_shape)
        p = model.at_origin()
        given = z if part == "decoder" else like.new_zeros(TRACED, *p.event_shape)
        if part == "decoder" and isinstance(p, Autoregressive):
            raise ValueError("an autoregressive p(x|z) has no mean in closed form, so its decoder cannot be exported")
        try:
            made = module(given)
        except NotImplementedError:
            kind = type(model.posterior(given)).__name__
            raise ValueError(
                f"the components, {kind}, have no mean in closed form, so the encoder cannot be exported: "
                "mixvae.encode estimates it from draws"
            ) from None
        program = _traced(module, given, part)
        content = _onnx(program, module) if path.suffix == ".onnx" else _pt2(program)
    write_bytes(path, content)
    made = made if isinstance(made, tuple) else (made,)
    return Exported(
        path,
        {name: ("B", *given.shape[1:]) for name in module.inputs},
        {name: ("B", *value.shape[1:]) for name, value in zip(module.outputs, made, strict=True)},
        program,
    )


PARTS: dict[str, type[Encoder | Decoder]] = {"encoder": Encoder, "decoder": Decoder}
"""The parts that have programs."""


def _traced(module: nn.Module, given: Tensor, part: str) -> ExportedProgram:
    """The program of a part for batches of any size.

    Raises:
        ValueError: it cannot be traced.
    """
    try:
        return torch.export.export(module, (given,), dynamic_shapes=({0: Dim("B")},), strict=False)
    except Exception as error:  # noqa: BLE001  (whatever tracing a user's network raises)
        fixed = "Constraints violated" in str(error)
        why = "its code depends on the number of examples; len(x) does, x.shape[0] does not" if fixed else said(error)
        raise ValueError(f"the {part} cannot be traced as one program for batches of any size: {why}") from error


def _pt2(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _check_onnx() -> None:
    """Refuse ONNX without the packages that write it."""
    try:
        import onnx  # noqa: F401  # pyright: ignore
        import onnxscript  # noqa: F401  # pyright: ignore
    except ImportError:
        raise ValueError("an .onnx file needs onnx and onnxscript: pip install 'mixvae[onnx]', or write .pt2") from None


def _onnx(program: ExportedProgram, module: Any) -> bytes:
    try:
        made = torch.onnx.export(
            program, input_names=list(module.inputs), output_names=list(module.outputs), dynamo=True, verbose=False
        )
        assert made is not None
        return made.model_proto.SerializeToString()
    except Exception as error:  # noqa: BLE001  (whatever the translation of an operator raises)
        raise ValueError(f"the program cannot be written as ONNX: {said(error)}; write .pt2") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence torch's warnings, logs and prints about its own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    unread = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(unread), redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
