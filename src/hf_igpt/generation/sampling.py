"""Sampling images, completing given ones and filling regions of them, with a next-pixel or a masked model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.regions_igpt import prefix_lengths, rows_below, token_mask


if TYPE_CHECKING:
    from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling

    ImageModel = ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling


def sample(
    model: "ImageModel",
    num_images: int,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **generation: Any,
) -> np.ndarray:
    """
    Draws whole images.

    Args:
        num_images: how many.
        batch_size: images at once.
        seed: of this call, a whole number of at least 0. An image is a function of the seed and its own number (and
            of what is given of it), whatever the batch size, up to rounding. The global random state is left as it
            was.
        progress: called with the number of images of each finished batch.
        generation: arguments of the model's `generate()`: `temperature`, `top_k`, `top_p`; of a next-pixel model also
            `parallel_window`, `forecast`, `exit_layer`, for the same images in fewer passes; of a masked model also
            `num_steps`, `order`, `schedule`, `choice_temperature`. By default plain sampling at temperature 1, as in
            the paper, with one pass for every pixel.

    Returns:
        int64 array of shape (num_images, tokens), without the start token.
    """
    given = np.zeros((num_images, model.config.n_positions), dtype=np.int64)
    hidden = np.ones_like(given, dtype=bool)
    return _fill(model, given, hidden, 1, batch_size, seed, progress, generation)[:, 0]


def complete(
    model: "ImageModel",
    tokens: np.ndarray,
    rows_kept: int,
    *,
    num_samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **generation: Any,
) -> np.ndarray:
    """
    Keeps the upper rows of images and draws the rest. A next-pixel model draws in raster order, so that nothing but an
    upper part can be given to it; for other regions of a masked model see `inpaint`.

    Args:
        tokens: integers of shape (images, tokens); only the kept rows are read.
        rows_kept: rows of the grid to keep, from 0 to height - 1.
        num_samples: completions of each image.
        batch_size, seed, progress, generation: as for `sample`.

    Returns:
        int64 array of shape (images, num_samples, tokens), the kept rows included.

    Raises:
        ValueError: `rows_kept` is out of range.
    """
    region = rows_below(rows_kept, model.config.grid)
    options = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed, "progress": progress}
    return inpaint(model, tokens, region, **options, **generation)


def inpaint(
    model: "ImageModel",
    tokens: np.ndarray,
    bool_masked_pos: np.ndarray,
    *,
    num_samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **generation: Any,
) -> np.ndarray:
    """
    Draws a region of images anew and keeps the rest. Masked models draw any region, next-pixel models what
    `complete` draws.

    Args:
        tokens: integers of shape (images, tokens). What stands in the region is not read.
        bool_masked_pos: bool, True where pixels are to be drawn, of shape (images, tokens); or for all images alike
            (tokens,), (height, width, channels) or (height, width).
        num_samples: drawings of each image.
        batch_size, seed, progress, generation: as for `sample`.

    Returns:
        int64 array of shape (images, num_samples, tokens), the kept pixels included.

    Raises:
        ValueError: tokens or region of another shape or type, or a region that a next-pixel model can't draw.
    """
    tokens, length = np.asarray(tokens), model.config.n_positions
    if tokens.ndim != 2 or tokens.shape[1] != length or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"`tokens` must be integers of shape (images, {length}), got {tokens.dtype} of shape {tokens.shape}."
        )
    hidden = token_mask(bool_masked_pos, model.config, len(tokens))
    return _fill(model, tokens.astype(np.int64), hidden, num_samples, batch_size, seed, progress, generation)


def _fill(
    model: "ImageModel",
    given: np.ndarray,
    hidden: np.ndarray,
    num_samples: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
    generation: dict[str, Any],
) -> np.ndarray:
    """Drawings of the given images, of shape (images, tokens), with what is hidden drawn, batch by batch."""
    import torch

    from hf_igpt.completion_igpt import draw_hidden, image_seeds

    if len(given) < 1 or batch_size < 1 or num_samples < 1:
        raise ValueError(
            "Give at least one image and a batch size of at least 1, and draw at least one for each, got "
            f"{len(given)}, {batch_size}, {num_samples}."
        )
    if model.config.is_causal:
        prefix_lengths(hidden)
    images, drawings = (numbers.ravel() for numbers in np.indices((len(given), num_samples)))
    seeds = image_seeds(seed, images.tolist(), drawings.tolist())
    drawn = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        tokens, mask = (torch.from_numpy(part[images[batch]]) for part in (given, hidden))
        drawn.append(draw_hidden(model, tokens, mask, seeds[batch], **generation).cpu().numpy())
        if progress is not None:
            progress(len(tokens))
    return np.concatenate(drawn).reshape(len(given), num_samples, -1)
