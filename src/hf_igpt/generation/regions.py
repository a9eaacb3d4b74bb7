"""Regions of images that a model is to draw: as masks over tokens or over the grid, from words and from files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from hf_igpt.configuration_igpt import ImageGPTConfig


def token_mask(bool_masked_pos: Any, config: "ImageGPTConfig", num_images: int) -> np.ndarray:
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


def prefix_length(mask: np.ndarray) -> int:
    """
    The number of tokens before a region that a next-pixel model can draw: everything from some token on, the same in
    every image.

    Args:
        mask: of shape (images, tokens).

    Raises:
        ValueError: any other region.
    """
    length = mask.shape[1] - int(mask[0].sum())
    if not (mask == (np.arange(mask.shape[1]) >= length)).all():
        raise ValueError(
            "A next-pixel model can only draw what comes after the given pixels, so the mask must be everything from "
            "one row or pixel on, the same for every image. Use `complete` (of the command, `rows_kept`), or a masked "
            "model."
        )
    return length


def rows_below(rows_kept: int, grid: tuple[int, int]) -> np.ndarray:
    """
    The region below the upper rows, of shape (height, width).

    Raises:
        ValueError: `rows_kept` is out of range.
    """
    height, width = grid
    if not 0 <= rows_kept < height:
        raise ValueError(f"`rows_kept` must be from 0 to {height - 1} for a grid {height} high, got {rows_kept}.")
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
    Reads a region from a file: a PNG of the grid's size, drawn where it isn't black, or an .npy array, drawn where it
    isn't zero.

    Returns:
        bool array of shape (height, width).

    Raises:
        ValueError: the file is missing, is no such file, is damaged or of another size, or nothing is to be drawn.
    """
    is_array = Path(path).suffix.lower() == ".npy"
    try:
        values = _read_array(path) if is_array else _read_png(path)
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(
            f"Mask {str(path)!r} can't be read as {'an .npy array' if is_array else 'a PNG'}: {error}"
        ) from error
    if values.shape != tuple(grid):
        raise ValueError(
            f"Mask {str(path)!r} must be of the grid's size, {grid[0]} high and {grid[1]} wide, got shape "
            f"{values.shape}."
        )
    region = np.asarray(values) != 0
    if not region.any():
        raise ValueError(f"Mask {str(path)!r} hides nothing: make it non-zero where pixels are to be drawn.")
    return region


def _read_array(path: str | os.PathLike) -> np.ndarray:
    # Mapped, so that a header that promises more than the file holds takes no memory. It never unpickles.
    values = np.lib.format.open_memmap(path, mode="r")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it must hold numbers or truth values, got {values.dtype}.")
    return values


def _read_png(path: str | os.PathLike) -> np.ndarray:
    from hf_igpt.image_reading_igpt import open_image, to_rgb

    image = open_image(path)
    if image.format != "PNG":
        raise ValueError(f"it is a {image.format} file, which may not keep black black.")
    return np.asarray(to_rgb(image)).any(axis=-1)
