"""Pictures of data, samples and training, as Pillow images or PNG files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_igpt.image_quality import psnr_of_images
from hf_igpt.storage import atomic_path


BACKGROUND = (255, 255, 255)
TEXT = (40, 40, 40)
MISSING = (225, 225, 230)
GAP = 4
CELL_SIDE = 96


def image_grid(
    images: Sequence[Image.Image], columns: int | None = None, column_titles: Sequence[str] | None = None
) -> Image.Image:
    """
    Images of one size in rows, enlarged without smoothing by a whole factor so that pixels can be told apart.

    Args:
        columns: images in a row; by default about a square grid.
        column_titles: a word above each column.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("`images` must hold at least one image, got none.")
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, round(CELL_SIDE / max(images[0].size)))
    width, height = (side * factor for side in images[0].size)
    font = ImageFont.load_default(size=14)
    widths = [width] * columns
    if column_titles:
        widths = [max(width, math.ceil(font.getlength(title))) for title in column_titles]
    top = 22 if column_titles else GAP
    rows = math.ceil(len(images) / columns)
    lefts = [GAP + sum(widths[:column]) + GAP * column for column in range(columns)]
    grid = Image.new("RGB", (GAP + sum(widths) + GAP * columns, top + rows * (height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for left, title in zip(lefts, column_titles or [], strict=False):
        draw.text((left, 3), title, fill=TEXT, font=font)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (lefts[column], top + row * (height + GAP)))
    return grid


def completion_grid(
    given: Sequence[Image.Image], completions: Sequence[Sequence[Image.Image]], originals: Sequence[Image.Image]
) -> Image.Image:
    """A row for each image: the given part, its completions, the original."""
    rows = zip(given, completions, originals, strict=True)
    images = [image for part, drawn, original in rows for image in (part, *drawn, original)]
    titles = ["given", "completion", *[""] * (len(completions[0]) - 1), "original"]
    return image_grid(images, columns=len(titles), column_titles=titles)


def hide_region(image: Image.Image, region: np.ndarray) -> Image.Image:
    """
    A copy of an RGB image, greyed out where the bool array `region` is True: one value for every pixel, or for every
    square of as many pixels as make up the image.
    """
    pixels = np.array(image)
    side = len(pixels) // len(region)
    pixels[np.kron(region, np.ones((side, side), dtype=bool))] = MISSING
    return Image.fromarray(pixels)


def palette_swatch(palette: np.ndarray) -> Image.Image:
    """Every colour of a palette (colours, 3) as a square, from dark to bright."""
    colors = np.rint(palette).astype(np.uint8)
    colors = colors[np.argsort(colors @ np.array([0.299, 0.587, 0.114]), kind="stable")]
    columns = math.ceil(math.sqrt(len(colors)))
    missing = -len(colors) % columns
    squares = np.concatenate([colors, np.full((missing, 3), BACKGROUND, dtype=np.uint8)])
    image = Image.fromarray(squares.reshape(-1, columns, 3))
    side = max(4, 480 // columns)
    return image.resize((image.width * side, image.height * side), Image.Resampling.NEAREST)


def quantization_grid(
    originals: Sequence[Image.Image], quantized: Sequence[Image.Image], description: str, columns: int = 8
) -> Image.Image:
    """
    Images before and after quantization, above each other, with the PSNR of these images in the title.

    Args:
        description: what they were quantized to, for the title.
    """
    columns = min(columns, len(originals))
    blank = Image.new("RGB", originals[0].size, BACKGROUND)
    blocks = []
    for start in range(0, len(originals), columns):
        for images in (originals, quantized):
            row = images[start : start + columns]
            blocks += [*row, *[blank] * (columns - len(row))]
    grid = image_grid(blocks, columns=columns)
    titled = Image.new("RGB", (max(grid.width, 420), grid.height + 22), BACKGROUND)
    titled.paste(grid, (0, 22))
    quality = psnr_of_images(quantized, originals)
    found = "exact" if math.isinf(quality) else f"{quality:.1f} dB"
    title = f"above: original, below: {description}, PSNR of these images {found}"
    ImageDraw.Draw(titled).text((GAP, 3), title, fill=TEXT, font=ImageFont.load_default(size=14))
    return titled


def save_png(image: Image.Image, path: str | os.PathLike) -> Path:
    """Writes a picture so that a reader finds the old or the new file, whole."""
    with atomic_path(path) as partial:
        image.save(partial, format="PNG")
    return Path(path)


def save_loss_curve(
    log_history: Sequence[dict[str, Any]],
    path: str | os.PathLike,
    references: dict[str, float] | None = None,
    unit: str = "nats per token",
) -> Path:
    """
    Draws training and validation loss over optimizer steps, from Trainer's `log_history`.

    Args:
        references: names and heights of horizontal lines, such as the baselines.
        unit: of the loss, for the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "train"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if key == "eval_loss" else None)
    for (name, height), style in zip((references or {}).items(), ("--", ":", "-."), strict=False):
        axes.axhline(height, color="grey", linestyle=style, linewidth=1, label=f"{name} ({height:.3f})")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return Path(path)
