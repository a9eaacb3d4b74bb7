"""Fitting a palette: k-means on the exact colour histogram of the data."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.color_kmeans import fit_colors
from hf_igpt.image_quality import psnr


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from hf_igpt.image_processing_igpt import IGPTImageProcessor

logger = logging.getLogger(__name__)

MAX_FITTED_COLORS = 4096

_BLOCK_COLORS = 1 << 20


@dataclass(frozen=True)
class FittedPalette:
    """A palette and how well it serves the data it was fitted to.

    Attributes:
        palette: float64 array of shape (colours, 3), RGB in 0...255, not rounded, ordered from dark to bright.
        psnr: peak signal-to-noise ratio in dB over all pixels and channels, between the pixels and what `decode` gives
            back for their tokens (colours rounded to whole levels). Infinite where every pixel comes back exactly.
        num_pixels: pixels counted.
        num_distinct: distinct colours among them. Where that is no more than asked, the palette is just these.
        requested_colors: the number of colours asked for.
        seed: the seed of the fit.
    """

    palette: np.ndarray
    psnr: float
    num_pixels: int
    num_distinct: int
    requested_colors: int
    seed: int

    def metrics(self) -> dict[str, int | float | str | None]:
        """The figures for a results JSON, which knows no infinity: `psnr_db` is None for an exact palette."""
        from hf_igpt.palette_igpt import palette_hash

        return {
            "num_colors": len(self.palette),
            "requested_colors": self.requested_colors,
            "num_distinct": self.num_distinct,
            "num_pixels": self.num_pixels,
            "psnr_db": self.psnr if math.isfinite(self.psnr) else None,
            "palette_hash": palette_hash(self.palette),
            "seed": self.seed,
        }


def fit_palette(
    images: "Dataset | IterableDataset | np.ndarray | Iterable[Any]",
    num_colors: int = 512,
    seed: int = 0,
    *,
    image_column: str | None = None,
    processor: "IGPTImageProcessor | None" = None,
    image_roots: Iterable[str] = (),
) -> FittedPalette:
    """Fit a palette to images by k-means on all their pixels.

    The pixels are counted in one pass into an exact histogram of 128 MB, whatever the size of the data, and k-means
    runs on the distinct colours weighted by their counts (about 150 bytes of memory each). The same pixels and seed
    give the same bytes, in whatever batches or order they come.

    Args:
        images: a `datasets` Dataset or IterableDataset; one array of shape (batch, height, width, channels); or
            an iterable of images, each as `to_rgb` takes it.
        num_colors: colours wanted, 2 to 4096.
        seed: seed of the k-means starts.
        image_column: the column with the images, for a data set; None finds it.
        processor: brings every image to the size and crop at which it will be tokenized; its palette is not used.
            None counts the images' own pixels.
        image_roots: folders below which rows of a data set may name files, as in `read_image`.

    Returns:
        FittedPalette. With no more than `num_colors` distinct colours in the data the palette holds exactly these and
        the PSNR is infinite; a warning says so if there are fewer.

    Raises:
        ValueError: if `num_colors` is out of range, an image cannot be read (says which), or the data has no pixels or
            a single colour.
    """
    check_num_colors(num_colors)
    counts = count_colors(_pixels_of_images(images, image_column, processor, image_roots))
    return fit_histogram(counts, num_colors, seed)


def check_num_colors(num_colors: int) -> None:
    """Raises ValueError for a number of colours that no palette has."""
    if isinstance(num_colors, bool) or not isinstance(num_colors, (int, np.integer)):
        raise ValueError(f"`num_colors` must be a whole number, got {num_colors!r}.")
    if not 2 <= num_colors <= MAX_FITTED_COLORS:
        raise ValueError(f"`num_colors` must be from 2 to {MAX_FITTED_COLORS}, got {num_colors}.")


def count_colors(images: Iterable[np.ndarray]) -> np.ndarray:
    """Count the colours of uint8 pixels of shape (..., 3): int64 of shape (256**3,), indexed by `rgb_codes`."""
    from hf_igpt.palette_igpt import rgb_codes

    counts = np.zeros(1 << 24, dtype=np.int64)
    for pixels in images:
        np.add.at(counts, rgb_codes(pixels).reshape(-1), 1)
    return counts


def fit_histogram(counts: np.ndarray, num_colors: int, seed: int = 0) -> FittedPalette:
    """Fit a palette to a histogram of `count_colors`; see `fit_palette`."""
    codes = np.flatnonzero(counts)
    if len(codes) < 2:
        raise ValueError(f"a palette needs at least 2 distinct colours, the data has {len(codes)}.")
    weights = counts[codes]
    palette = fit_colors(codes, weights, num_colors, seed)
    if len(palette) < num_colors:
        logger.warning(
            "The data has only %d distinct colours of the %d asked for: the palette is these, exactly.",
            len(palette),
            num_colors,
        )
    return FittedPalette(
        palette=palette,
        psnr=psnr(_mean_squared_error(codes, weights, palette)),
        num_pixels=int(weights.sum()),
        num_distinct=len(codes),
        requested_colors=int(num_colors),
        seed=seed,
    )


def _mean_squared_error(codes: np.ndarray, weights: np.ndarray, palette: np.ndarray) -> float:
    """Over all pixels and channels, in levels, of what the palette gives back."""
    from hf_igpt.palette_igpt import PaletteLookup, split_codes

    lookup = PaletteLookup(palette)
    colors = np.rint(palette).astype(np.int64)
    squared_error = 0
    for start in range(0, len(codes), _BLOCK_COLORS):
        block = slice(start, start + _BLOCK_COLORS)
        pixels = np.stack(split_codes(codes[block]), axis=-1)
        decoded = colors[lookup.quantize(pixels.astype(np.uint8))]
        squared_error += int((((pixels - decoded) ** 2).sum(axis=1) * weights[block]).sum())
    return squared_error / (3 * int(weights.sum()))


def _pixels_of_images(
    images: Any, image_column: str | None, processor: "IGPTImageProcessor | None", image_roots: Iterable[str]
) -> Iterator[np.ndarray]:
    """The pixels of every image, uint8 of shape (height, width, 3), one image at a time."""
    from hf_igpt.data.columns import read_image
    from hf_igpt.image_processing_igpt import to_rgb

    is_dataset = hasattr(images, "column_names")
    if is_dataset:
        items = _dataset_cells(images, image_column)
    elif image_column is not None:
        raise ValueError(f"`image_column`={image_column!r} needs a data set, got {type(images).__name__}.")
    else:
        items = _as_list(images)
    for number, item in enumerate(items):
        try:
            image = read_image(item, image_roots) if is_dataset else item
            yield np.asarray(to_rgb(image)) if processor is None else processor.pixels([image])[0]
        except ValueError as error:
            raise ValueError(f"{'row' if is_dataset else 'image'} {number}: {error}") from error


def _as_list(images: Any) -> Iterable[Any]:
    from PIL import Image

    from hf_igpt.image_reading_igpt import array_to_rgb

    if isinstance(images, np.ndarray) or hasattr(images, "detach"):
        pixels = array_to_rgb(images)
        return map(Image.fromarray, pixels if pixels.ndim == 4 else pixels[None])
    is_single = isinstance(images, (str, bytes)) or hasattr(images, "__fspath__") or hasattr(images, "convert")
    return [images] if is_single else images


def _dataset_cells(dataset: "Dataset | IterableDataset", image_column: str | None) -> Iterator[Any]:
    from datasets import Image

    from hf_igpt.data.columns import find_image_column

    if isinstance(dataset, dict):
        raise ValueError(f"`images` must be one split, got all of them: choose one of {', '.join(dataset)}.")
    if dataset.features is None:
        raise ValueError("the data set doesn't know its columns: give it `features` with a `datasets.Image` column.")
    column = find_image_column(dataset.features, image_column)
    dataset = dataset.select_columns([column])
    if isinstance(dataset.features[column], Image):
        dataset = dataset.cast_column(column, Image(decode=False))
    for row in dataset:
        yield row[column]
