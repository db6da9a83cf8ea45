"""Folders of images: read without loss, or refused."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import DecompressionBombError, DecompressionBombWarning

from mixvae._arrays import FEWER
from mixvae._resources import TooLarge, check, short
from mixvae.datasets._formats import COPIES, is_hidden
from mixvae.datasets._resizing import resized

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
IMAGES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
"""Formats as which images may be read, whatever their content says: EPS, for example, would start another program."""
SIXTEEN = 2**16 - 1
"""Largest value of a 16-bit image."""
UNREAD = (
    *(".jp2", ".j2k", ".jpx", ".heic", ".heif", ".avif", ".jxl", ".tga", ".psd", ".svg", ".ico", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".exr", ".hdr", ".dcm", ".dng", ".nef", ".cr2", ".arw", ".jfif", ".apng", ".eps"),
)
"""Suffixes of pictures that cannot be read: a folder that holds one is refused, so that none is overlooked."""
SIXTEEN_EACH = re.compile(r"(RGBX?|RGBA|RGBa|LA|CMYK|P[LRGB]|[RGB]);16[A-Z]?")
"""What Pillow calls pixels of 16 bits in several channels, of which it keeps 8."""
LARGEST_FOLDER = 1_000_000
"""Maximum number of files searched for images."""


def _images_in(folder: Path) -> Iterator[Path]:
    """Files below a folder whose names are image names.

    Raises:
        ValueError: there are too many files, or pictures of a kind that is not read.
    """
    count, seen = 0, set[str]()
    for place, below, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link back
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not is_hidden(name)]
        names = [name for name in names if not is_hidden(name)]
        count += 1 + len(names)
        if count > LARGEST_FOLDER:
            raise ValueError(
                f"{folder} holds more than {LARGEST_FOLDER:,} files: name the folder of the images, or pack them into "
                "an array (.npy)"
            )
        for path in (Path(place, name) for name in names):
            if path.suffix.lower() in UNREAD:
                raise ValueError(
                    f"{folder} holds {path.name}; pictures are read as {', '.join(IMAGE_SUFFIXES)}: convert it, or "
                    "move it elsewhere"
                )
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                yield path


def exact_pixels(image: Image.Image, path: Path | str) -> np.ndarray:
    """Pixels (H, W, C) without loss: bytes, or numbers from 0 to 1 where 16 bits or floating point hold more.

    Raises:
        ValueError: the image is partly transparent, or holds numbers without a scale.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I") and key is not None:  # a shade of 16 bits that is transparent
        if (np.asarray(image) == key).any():
            raise TooLarge(f"{path} is partly transparent: paste it onto a background first")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:  # noqa: PLR2004  (opaque)
            raise TooLarge(f"{path} is partly transparent: paste it onto a background first")
        image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F":
            return values[..., None].astype(np.float32)
        if values.min() < 0 or values.max() > SIXTEEN:
            raise TooLarge(
                f"{path} holds whole numbers from {values.min()} to {values.max()}; 16-bit images have 0 to {SIXTEEN}"
            )
        return (values[..., None] / SIXTEEN).astype(np.float32)
    return np.asarray(
        image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    ).reshape(image.height, image.width, -1)


def check_one(image: Image.Image, path: Path | str) -> None:
    """Refuse an image of which Pillow would keep only a part. Only its header is looked at.

    Raises:
        ValueError: it has colours of 16 bits, or colours other than grey and RGB.
    """
    if any(SIXTEEN_EACH.fullmatch(str(part)) for tile in getattr(image, "tile", ()) for part in _raw_modes(tile)):
        raise TooLarge(
            f"{path} has 16 bits per colour, which would be cut to 8: save it with 8, in grey, or all images as .npy"
        )
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise TooLarge(f"{path} has colours in {image.mode}, which RGB can only approximate: save it in RGB or grey")


def _raw_modes(tile: Any) -> tuple[Any, ...]:
    """Arguments of the decoder of a tile, among them how its pixels are stored."""
    return tile[3] if isinstance(tile[3], tuple) else (tile[3],)


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image of a known format; only its header is read.

    Raises:
        ValueError: it is damaged, too large, or Pillow would keep only a part of it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            warnings.simplefilter("error", DecompressionBombWarning)
            with Image.open(path, formats=IMAGES) as image:
                check_one(image, path)
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":  # photographs, whose other frames are previews and the like
                    raise TooLarge(
                        f"{path} holds {frames} pictures, of which one is an example: save each as a file of its own"
                    )
                yield image
    except (DecompressionBombError, DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large to be an example: {short(error, 200)}: scale it down") from None
    except TooLarge:
        raise
    except Exception as error:  # noqa: BLE001  (damage shows as any kind)
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is not a readable image: {short(lines[0], 200)}") from None


def images_in(folder: Path) -> list[Path]:
    """Images below a folder, in order.

    Raises:
        ValueError: there are none, or too many files.
    """
    paths = sorted(_images_in(folder))
    if not paths:
        raise ValueError(f"{folder} holds no images; expected files such as .png or .jpg")
    return paths


def check_size(image: Image.Image, path: Path, first: Path, size: tuple[int, int]) -> None:
    """Refuse an image of another size.

    Raises:
        TooLarge: its width and height are not those of the first.
    """
    if image.size != size:
        raise TooLarge(
            f"all images must have one size: {first.name} is {size[0]}×{size[1]} pixels, "
            f"{path.name} is {image.size[0]}×{image.size[1]}: scale them with --data.resize={size[1]}"
        )


def one_depth(kinds: Mapping[np.dtype[Any], Path], folder: Path) -> None:
    """Refuse images of several depths.

    Raises:
        ValueError: some have 8 bits, others more.
    """
    if len(kinds) > 1:
        bytes_of, other = kinds[np.dtype(np.uint8)], kinds[np.dtype(np.float32)]
        raise ValueError(f"{bytes_of.name} has 8 bits, {other.name} more: save all images of {folder} in one depth")


def stacked(images: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """Images (H, W, 1 or C) as one array (N, C, H, W)."""
    alike = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
    return np.ascontiguousarray(alike.transpose(0, 3, 1, 2))


def pasted(paths: Sequence[Path], mode: str, size: tuple[int, int]) -> np.ndarray | None:
    """Pixels (N, C, H, W) of images of one kind, None if one differs: one copy of all costs less than one of each."""
    width, height = size
    canvas = Image.new(mode, (width, height * len(paths)))
    for number, path in enumerate(paths):
        with opened_image(path) as image:
            if (image.mode, image.size) != (mode, size) or "transparency" in image.info:
                return None
            canvas.paste(image, (0, height * number))
    return np.array(np.asarray(canvas).reshape(len(paths), height, width, -1).transpose(0, 3, 1, 2), order="C")


def classes_of(paths: Sequence[Path], folder: Path, *, named: bool) -> np.ndarray | None:
    """Classes of images by their folders, as names or numbers in alphabetical order; None if there is one folder."""
    classes = sorted({path.parent for path in paths})
    if len(classes) > 1 or (named and classes != [folder]):
        return np.array([path.parent.name if named else classes.index(path.parent) for path in paths])
    return None


def read_images(
    folder: Path, *, named: bool = False, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a folder of images of one size; subfolders, if there are any, are the classes in alphabetical order.

    Sizes are read from the headers, and compared with memory, before an image is decoded. Hidden files are left out.

    Args:
        folder: the folder.
        named: whether labels are the names of the classes, rather than their numbers.
        size: height and width that images are scaled to; they may then differ in size.

    Returns:
        Images (N, C, H, W), C = 1 if all are grey and 3 otherwise, and labels (N,) or None. Images of 16 bits or
        floating point are numbers, 16 bits from 0 to 1; all others are bytes.

    Raises:
        ValueError: there are no images, one is damaged or transparent, sizes differ, or they do not fit into memory.
    """
    paths = images_in(folder)
    images, first = list[np.ndarray](), (0, 0)
    for path in paths:
        with opened_image(path) as image:
            if not images:
                first = image.size
                width, height = first if size is None else size[::-1]
                what = f"{len(paths)} images of {width}×{height} pixels in {folder}"
                check(COPIES * len(paths) * 3 * width * height, what, FEWER)
            if size is None:
                check_size(image, path, paths[0], first)
            pixels = exact_pixels(image, path)
            images.append(pixels if size is None else resized(pixels, size))
    one_depth({image.dtype: path for image, path in zip(images, paths, strict=True)}, folder)
    channels = max(image.shape[-1] for image in images)
    return stacked(images, channels), classes_of(paths, folder, named=named)
