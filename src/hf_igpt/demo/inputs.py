"""What a user gives, checked: an uploaded file, a drawing, a painted hole, numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_igpt.demo.checkpoints import Checkpoint
from hf_igpt.image_reading_igpt import IMAGE_FORMATS, open_image, to_rgb
from hf_igpt.regions_igpt import center_square, rows_below


MAX_UPLOAD_BYTES = 20 * 1024 * 1024
MAX_UPLOAD_PIXELS = 16 * 1024 * 1024
# Every user's image is kept while the page is open.
MAX_SIDE = 512

MAX_IMAGES = 16
MAX_TOP_K = 512
MAX_SEED = 2**31 - 1
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 2.0
KEEP_ROWS, KEEP_FRAME, KEEP_UNPAINTED = "upper rows", "all but the middle", "all but what I paint"
KEEPS = (KEEP_ROWS, KEEP_FRAME, KEEP_UNPAINTED)


@dataclass(frozen=True)
class Settings:
    """
    How images are drawn.

    Args:
        num_images: 1 to 16.
        temperature: logits are divided by it, 0.1 to 2.
        top_k: draw from the k likeliest colours only; 0 draws from all, at most 512.
        seed: 0 to 2**31 - 1.
        num_steps: passes of a masked model; for next-pixel models it is not looked at.
    """

    num_images: int
    temperature: float
    top_k: int
    seed: int
    num_steps: int

    def generation(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The arguments of drawing that this kind of model takes."""
        options = {"temperature": self.temperature, "top_k": self.top_k}
        return options if checkpoint.is_causal else options | {"num_steps": self.num_steps}


def read_settings(
    checkpoint: Checkpoint, num_images: Any, temperature: Any, top_k: Any, seed: Any, num_steps: Any
) -> Settings:
    """
    Raises:
        ValueError: a number is missing, is no number, or is out of its range; says which.
    """
    steps = checkpoint.model.config.n_positions
    return Settings(
        num_images=_whole("Number of images", num_images, 1, MAX_IMAGES),
        temperature=_number("Temperature", temperature, MIN_TEMPERATURE, MAX_TEMPERATURE),
        top_k=_whole("Top-k", top_k, 0, MAX_TOP_K),
        seed=_whole("Seed", seed, 0, MAX_SEED),
        num_steps=steps if checkpoint.is_causal else _whole("Steps", num_steps, 1, steps),
    )


def read_upload(path: str | None) -> Image.Image:
    """
    An uploaded file as an RGB image of at most 512 pixels a side.

    Raises:
        ValueError: there is no file, or it is no image of a known format, damaged, or too large.
    """
    if not path:
        raise ValueError("No file has arrived: choose an image file.")
    file = Path(path)
    if file.stat().st_size > MAX_UPLOAD_BYTES:
        raise ValueError(f"This file can't be used: it has more than {MAX_UPLOAD_BYTES // 2**20} MB.")
    try:
        # As bytes, so that no message names a path of the server.
        image = to_rgb(open_image(file.read_bytes(), MAX_UPLOAD_PIXELS))
    except ValueError as error:
        cause = str(error).removeprefix("image bytes: ").partition(" Open it with")[0].rstrip(".")
        raise ValueError(
            f"This file can't be used: {cause}. Give one of {', '.join(IMAGE_FORMATS)} with at most "
            f"{MAX_UPLOAD_PIXELS // 2**20} million pixels."
        ) from error
    return fit_to_limit(image)


def fit_to_limit(image: Image.Image) -> Image.Image:
    """The image, made smaller where a side is longer than 512 pixels."""
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def read_drawing(value: Mapping[str, Any] | None) -> Image.Image:
    """
    What was drawn in an editor, on its background.

    Raises:
        ValueError: nothing was drawn.
    """
    if value is None or value.get("composite") is None or not _strokes(value):
        raise ValueError("The canvas is empty: draw something on it first.")
    return fit_to_limit(value["composite"].convert("RGB"))


def read_hole(value: Mapping[str, Any] | None, grid: tuple[int, int]) -> np.ndarray:
    """
    The cells of the grid that the brush has touched, bool of shape (height, width).

    Raises:
        ValueError: nothing is painted.
    """
    region = np.zeros(grid, dtype=bool)
    for layer in _strokes(value):
        touched = Image.fromarray(np.asarray(layer.getchannel("A"), dtype=np.float32))
        region |= np.asarray(touched.resize((grid[1], grid[0]), Image.Resampling.BOX)) > 0
    if not region.any():
        raise ValueError("Nothing is painted: paint over the part that is to be drawn anew, then draw again.")
    return region


def read_region(checkpoint: Checkpoint, keep: Any, rows_kept: Any, hole: Mapping[str, Any] | None) -> np.ndarray:
    """
    What is drawn anew, bool of shape (height, width). A next-pixel model draws everything behind its first pixel.

    Raises:
        ValueError: an unknown choice, rows out of range, or nothing painted.
    """
    grid = checkpoint.grid
    if keep == KEEP_ROWS:
        return rows_below(_whole("Rows kept", rows_kept, 0, grid[0] - 1), grid)
    if keep not in KEEPS:
        raise ValueError(f"What is kept must be one of {', '.join(KEEPS)}, got {str(keep)[:100]!r}.")
    region = center_square(grid) if keep == KEEP_FRAME else read_hole(hole, grid)
    if not checkpoint.is_causal:
        return region
    return np.logical_or.accumulate(region.ravel()).reshape(grid)


def _strokes(value: Mapping[str, Any] | None) -> list[Image.Image]:
    """The layers of an editor with anything on them."""
    layers = [layer.convert("RGBA") for layer in (value or {}).get("layers") or [] if layer is not None]
    return [layer for layer in layers if layer.getchannel("A").getbbox() is not None]


def _number(name: str, value: Any, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {str(value)[:100]!r}.")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value != int(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:100]!r}.")
    return int(value)
