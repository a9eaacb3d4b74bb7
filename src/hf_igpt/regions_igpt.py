"""Regions of images that a model is to draw: as masks over tokens or over the grid, from words and from files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .configuration_igpt import ImageGPTConfig
from .image_reading_igpt import open_image, to_rgb


def token_mask(bool_masked_pos: Any, config: ImageGPTConfig, num_images: int) -> np.ndarray:
    """
    A region in the shape that models take.

    Args:
        bool_masked_pos: bool, True where pixels are to be drawn, of shape (images, tokens); or for all images alike
            (tokens,), (height, width, channels) or (height, width).

    Returns:
        bool array of shape (num_images, tokens).

    Raises:
        ValueError: another type or shape.
    """
    mask = np.asarray(bool_masked_pos)
    (height, width), channels, tokens = config.grid, config.num_channels, config.n_positions
    shapes = ((num_images, tokens), (tokens,), (height, width, channels), (height, width))
    if mask.dtype != bool or mask.shape not in shapes:
        raise ValueError(
            f"`bool_masked_pos` must be a bool array of shape {' or '.join(map(str, shapes))}, True where pixels are "
            f"to be drawn, got {mask.dtype} of shape {mask.shape}."
        )
    if mask.shape == (height, width):
        mask = np.repeat(mask.ravel(), channels)
    elif mask.ndim == 3:
        mask = mask.ravel()
    return np.broadcast_to(mask, (num_images, tokens))


def prefix_lengths(mask: np.ndarray) -> np.ndarray:
    """
    The number of tokens before a region that a next-pixel model can draw: everything from some token on.

    Args:
        mask: of shape (images, tokens).

    Returns:
        integers of shape (images,).

    Raises:
        ValueError: any other region.
    """
    lengths = mask.shape[1] - mask.sum(axis=1)
    if not (mask == (np.arange(mask.shape[1]) >= lengths[:, None])).all():
        raise ValueError(
            "A next-pixel model can only draw what comes after the given pixels, so the mask must be everything from "
            "one row or pixel on. Give `rows_kept` in its place (in Python, `complete` takes it), or use a masked "
            "model."
        )
    return lengths


def rows_below(rows_kept: int, grid: tuple[int, int]) -> np.ndarray:
    """
    The region below the upper rows, of shape (height, width).

    Raises:
        ValueError: `rows_kept` is out of range.
    """
    height, width = grid
    is_whole = isinstance(rows_kept, int | np.integer) and not isinstance(rows_kept, bool)
    if not is_whole or not 0 <= rows_kept < height:
        raise ValueError(f"`rows_kept` must be from 0 to {height - 1} for a grid {height} high, got {rows_kept!r}.")
    return np.repeat(np.arange(height)[:, None] >= rows_kept, width, axis=1)


def center_square(grid: tuple[int, int]) -> np.ndarray:
    """A square in the middle, half as wide as the shorter side, of shape (height, width)."""
    side = max(1, min(grid) // 2)
    region = np.zeros(grid, dtype=bool)
    top, left = ((length - side) // 2 for length in grid)
    region[top : top + side, left : left + side] = True
    return region


def read_region(path: str | os.PathLike, grid: tuple[int, int]) -> np.ndarray:
    """
    Reads a region from a file, see `read_mask`.

    Returns:
        bool array of shape (height, width).

    Raises:
        ValueError: as `read_mask`; or the file is of another size than the grid, or nothing is to be drawn.
    """
    region = read_mask(path)
    if region.shape != tuple(grid):
        raise ValueError(
            f"Mask {str(path)!r} must be of the grid's size, {grid[0]} high and {grid[1]} wide, got shape "
            f"{region.shape}."
        )
    if not region.any():
        raise ValueError(f"Mask {str(path)!r} hides nothing: make it non-zero where pixels are to be drawn.")
    return region


def read_mask(mask: Any) -> np.ndarray:
    """
    A mask of any size: True where it isn't zero, or as an image where it isn't black.

    Args:
        mask: numbers or truth values of shape (height, width), as array, tensor or lists; or a Pillow image; or the
            path of a PNG or of an .npy array.

    Returns:
        bool array of shape (height, width).

    Raises:
        ValueError: the file is missing, is no such file or is damaged; or it is no mask of two axes; or a JPEG, in
            which black doesn't stay black.
    """
    name = "`mask`"
    if isinstance(mask, str | os.PathLike):
        name, values = f"Mask {str(mask)!r}", _file_values(mask)
    else:
        values = _image_values(mask) if isinstance(mask, Image.Image) else _array_values(mask)
    if values.ndim != 2:
        raise ValueError(f"{name} must have the shape (height, width), got {values.shape}.")
    return np.asarray(values) != 0


def _file_values(path: str | os.PathLike) -> np.ndarray:
    is_array = Path(path).suffix.lower() == ".npy"
    try:
        return _read_array(path) if is_array else _image_values(open_image(path), ("PNG",))
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(
            f"Mask {str(path)!r} can't be read as {'an .npy array' if is_array else 'a PNG'}: {error}"
        ) from error


def _read_array(path: str | os.PathLike) -> np.ndarray:
    # Mapped, so that a header that promises more than the file holds takes no memory. It never unpickles.
    values = np.lib.format.open_memmap(path, mode="r")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it must hold numbers or truth values, got {values.dtype}.")
    return values


def _array_values(mask: Any) -> np.ndarray:
    try:
        values = mask.detach().cpu().numpy() if hasattr(mask, "detach") else np.asarray(mask)
    except ValueError as error:
        raise ValueError("`mask` must have rows of equal length.") from error
    if values.dtype.kind not in "biuf":
        raise ValueError(
            "`mask` must be an array of numbers or truth values, a Pillow image, or the path of a PNG or .npy file, "
            f"got {type(mask).__name__}."
        )
    return values


def _image_values(image: Image.Image, formats: tuple[str | None, ...] = ("PNG", None)) -> np.ndarray:
    # An image that was made and not read has no format.
    if image.format not in formats:
        raise ValueError(f"a mask must be a PNG: it is a {image.format} file, which may not keep black black.")
    return np.asarray(to_rgb(image)).any(axis=-1)


__all__ = ["center_square", "prefix_lengths", "read_mask", "read_region", "rows_below", "token_mask"]
