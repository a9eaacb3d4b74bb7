"""Reading images: one opener for files and bytes, one conversion of every kind of image to 8-bit RGB.

The conversion, the same wherever an image comes from:

- Pillow image with 8 bits a channel (1, L, LA, P, PA, RGB, RGBA, CMYK, YCbCr, HSV): Pillow's own `convert("RGB")`.
  Alpha is dropped, not composited.
- Pillow image with 16 bits (I;16, and I, as which Pillow opens some 16-bit files): grey, value / 257, rounded.
- Pillow image of floats (F), float array: values in [0, 1], times 255, rounded.
- Integer array: levels 0...255 as they are, whatever the type. Boolean array: 0 and 255.
- Array with 1 or 4 channels, or (height, width) alone: grey is repeated, alpha is dropped.

Pillow images are turned upright by their EXIF orientation. An animated file gives its first frame.
"""

import functools
import io
import os
import re
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


MAX_IMAGE_PIXELS = 64 * 1024 * 1024
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|data:")


def open_image(source: str | os.PathLike | bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Read one image file, upright, from a local path or from the file's bytes.

    Args:
        source: a local path, or the content of a file. Addresses are refused, never fetched.
        max_pixels: largest width times height, checked in the header before anything is decoded. Pillow's own limit
            (`PIL.Image.MAX_IMAGE_PIXELS`) stays in force.

    Returns:
        The image in the file's mode, its first frame where it has several.

    Raises:
        ValueError: if the source is an address, or no image of the formats in `IMAGE_FORMATS`, or too large, or
            truncated or damaged.
        OSError: if the path cannot be opened.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "image bytes", max_pixels)
    path = os.fspath(source)
    if isinstance(path, str) and _ADDRESS.match(path):
        raise ValueError(f"an image must be a local path or the bytes of a file, got the address {path!r}.")
    with open(path, "rb") as file:
        return _decode(file, f"image file {str(path)!r}", max_pixels)


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """Pillow stops at a format that it was built without, so name only those it has."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def _decode(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    if not file.read(1):
        raise ValueError(f"{name}: empty, expected an image of the formats {', '.join(IMAGE_FORMATS)}.")
    file.seek(0)
    # Decoders raise OSError, SyntaxError, EOFError, struct.error, zlib.error and more for a damaged file.
    try:
        image = Image.open(file, formats=_available_formats())
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image of the formats {', '.join(IMAGE_FORMATS)}.") from error
    except Exception as error:
        raise ValueError(f"{name}: header refused: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: {width} x {height} pixels are more than `max_pixels`={max_pixels}. "
            "Open it with `open_image(..., max_pixels=...)` if it can be trusted."
        )
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise ValueError(f"{name}: truncated or damaged: {error}") from error
    return image


def to_rgb(image: Any, input_data_format: str | None = None) -> Image.Image:
    """Convert one image to an upright Pillow image of mode RGB, by the table in this module's docstring.

    Args:
        image: a Pillow image, a local path, the bytes of an image file, or an array or tensor of shape
            (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels.
        input_data_format: "channels_last" or "channels_first", for an array of which both could be true.

    Raises:
        ValueError: if the image cannot be read or converted; says what was received.
    """
    if isinstance(image, Image.Image):
        return _pillow_to_rgb(image)
    if isinstance(image, (str, bytes, os.PathLike)):
        return _pillow_to_rgb(open_image(image))
    rgb = array_to_rgb(image, input_data_format)
    if rgb.ndim != 3:
        raise ValueError(f"an array inside a list must be one image, got {_describe(image)}.")
    return Image.fromarray(rgb)


def _pillow_to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"an image must have pixels, got mode {image.mode} of size {image.size}.")
    try:
        image.load()
        if image.info:  # where a plain image keeps its orientation
            image = ImageOps.exif_transpose(image)
    except Exception as error:
        raise ValueError(f"truncated or damaged image of size {image.size}: {error}") from error
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        return Image.fromarray(array_to_rgb(np.asarray(image)))
    if image.mode == "I" or image.mode.startswith("I;"):
        return Image.fromarray(_from_16_bits(np.asarray(image), image.mode))
    try:
        # Pillow converts premultiplied and palette alpha only by way of these modes.
        step = {"RGBa": "RGBA", "La": "LA", "P": "RGBA"}.get(image.mode)
        return (image.convert(step) if step else image).convert("RGB")
    except ValueError as error:
        raise ValueError(f"an image of mode {image.mode} cannot be converted to RGB: {error}") from error


def _from_16_bits(levels: np.ndarray, mode: str) -> np.ndarray:
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"an image of mode {mode} must have values in 0...65535, got {_describe(levels)}.")
    grey = np.rint(levels / 257.0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def array_to_rgb(array: Any, input_data_format: str | None = None) -> np.ndarray:
    """Convert an array or tensor to uint8 RGB with the channels last, by the table in this module's docstring.

    Args:
        array: shape (height, width), or three axes for one image, or four for a batch, with 1, 3 or 4 channels.
        input_data_format: "channels_last" or "channels_first"; None finds the axis with 1, 3 or 4 entries. Where both
            the first and the last could be it, 3 goes before 1 and 4; equal ones are an error.

    Returns:
        uint8 array of shape (height, width, 3) or (batch, height, width, 3).

    Raises:
        ValueError: if shape, type or values are unsuitable; gives all three.
    """
    array = _as_numeric(array)
    if array.size == 0:
        raise ValueError(f"an image must have pixels, got {_describe(array)}.")
    levels = _channels_last(_to_levels(array), array, input_data_format)
    if levels.shape[-1] == 1:
        return np.repeat(levels, 3, axis=-1)
    return levels[..., :3]


def _as_numeric(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() and array.element_size() < 4 else array).numpy()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"an image must be a Pillow image, a local path, or a numeric array or tensor, got {_describe(array)}."
        )
    return array


def _channels_last(levels: np.ndarray, received: np.ndarray, input_data_format: str | None) -> np.ndarray:
    if input_data_format not in (None, "channels_last", "channels_first"):
        raise ValueError(
            f'`input_data_format` must be "channels_last" or "channels_first", got {input_data_format!r}.'
        )
    if levels.ndim == 2:
        return levels[..., None]
    if levels.ndim not in (3, 4):
        raise ValueError(f"an image array must have 2, 3 or (as a batch) 4 axes, got {_describe(received)}.")
    first, last = levels.shape[-3], levels.shape[-1]
    if input_data_format is None:
        preference = {3: 2, 1: 1, 4: 1}
        first_rank, last_rank = preference.get(first, 0), preference.get(last, 0)
        if first_rank == last_rank > 0:
            raise ValueError(
                f"the channels could be the first or the last axis of an image, got {_describe(received)}. "
                'Pass `input_data_format="channels_last"` or "channels_first".'
            )
        input_data_format = "channels_first" if first_rank > last_rank else "channels_last"
    channels = first if input_data_format == "channels_first" else last
    if channels not in (1, 3, 4):
        raise ValueError(f"an image array must have 1, 3 or 4 channels, got {channels}: {_describe(received)}.")
    return np.moveaxis(levels, -3, -1) if input_data_format == "channels_first" else levels


def _to_levels(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    limit = 1 if array.dtype.kind == "f" else 255
    if not ((array >= 0) & (array <= limit)).all():  # NaN fails as well
        raise ValueError(
            f"image values must be in {'[0, 1] for floats' if limit == 1 else '0...255 for integers'}, "
            f"got {_describe(array)}."
        )
    return np.rint(array * 255.0).astype(np.uint8) if limit == 1 else array.astype(np.uint8)


def _describe(value: Any) -> str:
    """Shape, type and range of what was received, for an error message."""
    if not isinstance(value, np.ndarray):
        return f"{type(value).__name__} {getattr(value, 'shape', '')}".rstrip()
    text = f"an array of shape {value.shape}, type {value.dtype}"
    if value.size == 0 or value.dtype.kind not in "biuf":
        return text
    if np.isnan(value).any():
        return f"{text}, with NaN"
    return f"{text}, range {value.min()}...{value.max()}"


__all__ = ["IMAGE_FORMATS", "MAX_IMAGE_PIXELS", "array_to_rgb", "open_image", "to_rgb"]
