"""Readers of standard file formats: IDX, CIFAR-10's binary version, arrays, and folders of images."""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

ARRAY_SUFFIXES = (".npy", ".npz", ".pt")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
CIFAR_RECORD = 1 + 3 * 32 * 32


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (0x08), the number of dimensions, each size as a big-endian 32-bit
    integer, then the values.

    Raises:
        ValueError: the file is truncated, damaged, or not IDX.

    References:
        LeCun, Cortes and Burges, The MNIST database (1998), http://yann.lecun.com/exdb/mnist/
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it starts with {content[:4].hex() or 'nothing'}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} is truncated: its header ends early")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or damaged: {math.prod(shape)} bytes promised, {len(content) - start} found"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read CIFAR-10's binary version from its archive or from the folder that it unpacks to.

    Returns:
        Images (N, 3, 32, 32) and labels (N,) of each file, such as "data_batch_1" and "test_batch".

    Raises:
        ValueError: the archive or a file in it is truncated or damaged.

    References:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
        https://www.cs.toronto.edu/~kriz/cifar.html
    """
    contents: dict[str, bytes] = {}
    if path.is_dir():
        contents = {file.stem: file.read_bytes() for file in sorted(path.glob("*_batch*.bin"))}
    else:
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name.endswith(".bin") else None
                    if file is not None:
                        contents[Path(member.name).stem] = file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged archive: {error}") from None
    batches = {}
    for name, content in sorted(contents.items()):
        if not content or len(content) % CIFAR_RECORD:
            raise ValueError(
                f"{path}: {name}.bin has {len(content)} bytes, not a multiple of {CIFAR_RECORD}: it is truncated"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
        batches[name] = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
    return batches


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read examples, and labels if there are any, from `.npy`, `.npz` or `.pt`.

    An `.npz` archive holds `x` and optionally `y`; a `.pt` file holds a tensor, or a dictionary of them.
    No pickle is executed.

    Raises:
        ValueError: the file is damaged, or holds no `x`.
    """
    try:
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = np.load(path, allow_pickle=False)
            content = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is truncated, damaged, or holds pickled objects: {reason}") from None
    except Exception as error:  # torch reports a forbidden pickle by an exception of pickle's own
        raise ValueError(f"{path} holds more than tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        return _numpy(content, path), None
    if "x" not in content:
        raise ValueError(f"{path} must hold the examples under the name x; it holds {sorted(content)}")
    labels = content.get("y")
    return _numpy(content["x"], path), None if labels is None else _numpy(labels, path)


def _numpy(value: object, path: Path) -> np.ndarray:
    """Return an array, whatever library it comes from."""
    if isinstance(value, torch.Tensor):
        return value.float().numpy() if value.is_floating_point() else value.numpy()
    if isinstance(value, np.ndarray):
        return value
    raise ValueError(f"{path} must hold an array; it holds a {type(value).__name__}")


def read_images(folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a folder of images of one size; subfolders, if there are any, are the classes in alphabetical order.

    Returns:
        Images (N, C, H, W) as bytes, C = 1 if all are grey and 3 otherwise, and labels (N,) or None.

    Raises:
        ValueError: there are no images, one is damaged, or sizes differ.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no images; expected files such as .png or .jpg")
    images, grey = [], True
    for path in paths:
        try:
            with Image.open(path) as image:
                grey = grey and image.mode in ("1", "L")
                images.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is not a readable image: {str(error).splitlines()[0]}") from None
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"all images must have one size: {paths[0].name} is {images[0].shape[1]}×{images[0].shape[0]} pixels, "
                f"{path.name} is {images[-1].shape[1]}×{images[-1].shape[0]}"
            )
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    classes = sorted({p.parent for p in paths})
    labels = np.array([classes.index(p.parent) for p in paths]) if len(classes) > 1 else None
    return np.ascontiguousarray(stacked[:, :1] if grey else stacked), labels
