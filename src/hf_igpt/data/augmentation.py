"""Augmentation, as a function of (seed, epoch, image index).

Crops of a reflection-padded image and flips only move cells of the grid, so they are done on tokens: the same result
as on pixels before quantization, without decoding an image. Resizing mixes colours, so ImageNet's random resize and
crop is done on the image.
"""

from typing import TYPE_CHECKING

import numpy as np

from hf_igpt.data.randomness import random_integers, random_words
from hf_igpt.token_kinds_igpt import TOKEN_KINDS


if TYPE_CHECKING:
    from PIL.Image import Image


AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")
# ImageNet's, of the pixels.
RESIZED_CROP = "random_resized_crop"


def check_augmentation(augment: str, grid: tuple[int, int], padding: int = 4) -> None:
    """Raises ValueError for an unknown augmentation or a grid too small for the reflection padding."""
    if augment not in AUGMENTATIONS:
        raise ValueError(f"`augment` must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}.")
    if padding < 1:
        raise ValueError(f"`padding` must be at least 1, got {padding}; to crop nothing choose `augment` 'none'.")
    if "crop" in augment and min(grid) <= padding:
        raise ValueError(
            f"`padding` must be smaller than both sides of the grid to reflect it, got padding {padding} "
            f"for the grid {grid[0]}x{grid[1]}; lower `padding` or choose `augment` 'flip'."
        )


def check_token_augmentation(augment: str, token_kind: str) -> None:
    """Raises ValueError where tokens can't be moved: a flipped image has other codes, not the same ones flipped."""
    if augment in AUGMENTATIONS and augment != "none" and not TOKEN_KINDS[token_kind].is_movable:
        raise ValueError(
            f"`augmentation: {augment}` moves tokens, but a VQ-VAE's codes of a moved image are others. Choose "
            "'none', or 'random_resized_crop', which reads the images."
        )


def augmented_positions(
    augment: str,
    grid: tuple[int, int],
    num_channels: int = 1,
    *,
    seed: int,
    epochs: np.ndarray | int,
    indices: np.ndarray,
    padding: int = 4,
) -> np.ndarray:
    """Which stored token each position of the augmented image shows.

    "crop" is the recipe of paper §3.1 for CIFAR: reflection padding of 4 cells on each side and a random crop of the
    original size; "flip" is a horizontal flip with probability 1/2. The tokens of one cell stay together.

    Args:
        augment: One of `AUGMENTATIONS`.
        grid: Height and width in cells.
        num_channels: Tokens per cell.
        seed: Seed of the run.
        epochs: Epoch of each image, of shape (batch,), or one for all.
        indices: Image indices of shape (batch,).
        padding: Cells of reflection padding on each side.

    Returns:
        int64 array of shape (batch, height * width * num_channels), for `numpy.take_along_axis(tokens, positions, 1)`.

    Raises:
        ValueError: If the augmentation is unknown or the grid is too small.
    """
    check_augmentation(augment, grid, padding)
    height, width = grid
    words = random_words("augment", seed, epochs, indices, 3)
    top = left = flip = np.zeros(len(words), dtype=np.int64)
    if "crop" in augment:
        top = random_integers(words[:, 0], 2 * padding + 1) - padding
        left = random_integers(words[:, 1], 2 * padding + 1) - padding
    if "flip" in augment:
        flip = random_integers(words[:, 2], 2)
    columns = np.where(flip[:, None] == 1, np.arange(width)[::-1], np.arange(width))
    rows = _reflect(top[:, None] + np.arange(height), height)
    columns = _reflect(left[:, None] + columns, width)
    cells = rows[:, :, None] * width + columns[:, None, :]
    return (cells[..., None] * num_channels + np.arange(num_channels)).reshape(len(words), -1)


def random_resized_crop(
    image: "Image",
    *,
    seed: int,
    epoch: int,
    index: int,
    shorter_side: tuple[int, int] = (256, 384),
    crop_size: int = 224,
    resample: int | None = None,
) -> "Image":
    """ImageNet's training crop of paper §3.1: shorter side resized to a random length, then a random square.

    Resize and crop are one resampling of the box that the crop covers, so that a very long image costs no more memory
    than the crop; it differs from two steps only where the filter reaches over the crop's border.

    Args:
        image: PIL image in a mode that can be resampled (RGB, L).
        seed: Seed of the run.
        epoch: Epoch.
        index: Image index.
        shorter_side: Smallest and largest length of the resized shorter side, both included, in pixels.
        crop_size: Side of the square in pixels.
        resample: PIL resampling filter, defaults to bilinear (the paper does not name its own).

    Returns:
        PIL image of crop_size x crop_size pixels.

    Raises:
        ValueError: If the shortest side allowed is smaller than the crop, or the range is empty.
    """
    from PIL.Image import Resampling

    low, high = shorter_side
    if not 0 < crop_size <= low <= high:
        raise ValueError(
            f"`shorter_side` must be a range of lengths of at least `crop_size`, got {low} to {high} "
            f"for a crop of {crop_size}."
        )
    words = random_words("resized_crop", seed, epoch, np.array([index]), 3)[0]
    side = low + int(random_integers(words[0], high - low + 1))
    scale = side / min(image.size)
    width, height = (max(round(length * scale), side) for length in image.size)
    left = int(random_integers(words[1], width - crop_size + 1))
    top = int(random_integers(words[2], height - crop_size + 1))
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + crop_size) * across, (top + crop_size) * down)
    return image.resize((crop_size, crop_size), Resampling.BILINEAR if resample is None else resample, box=box)


def _reflect(positions: np.ndarray, length: int) -> np.ndarray:
    positions = np.abs(positions)
    return np.where(positions >= length, 2 * (length - 1) - positions, positions)
