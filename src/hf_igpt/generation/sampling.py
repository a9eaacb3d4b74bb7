"""Sampling images, completing given ones and filling regions of them, with a next-pixel or a masked model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.regions_igpt import prefix_lengths, rows_below, token_mask


if TYPE_CHECKING:
    from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling

    ImageModel = ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling

# Numbers of drawings, their tokens and what is hidden of them.
OnRows = Callable[[np.ndarray, np.ndarray, np.ndarray], None]

# Images at once by default. A GPU reads the weights once for all of them, and has idle units until there are many.
MOST_ON_GPU = 256
MOST_ON_CPU = 32
CACHE_BYTES_ON_CPU = 2 << 30


def default_batch_size(model: "ImageModel") -> int:
    """Images at once where nobody says how many."""
    import torch

    config = model.config
    image_bytes = 2 * config.num_hidden_layers * config.hidden_size * config.n_positions * model.dtype.itemsize
    most, budget = MOST_ON_CPU, CACHE_BYTES_ON_CPU
    if model.device.type == "cuda":
        most, budget = MOST_ON_GPU, torch.cuda.mem_get_info(model.device)[0] // 2
    return max(1, min(most, budget // image_bytes))


def sample(
    model: "ImageModel",
    num_images: int,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    on_rows: OnRows | None = None,
    **generation: Any,
) -> np.ndarray:
    """
    Draws whole images.

    Args:
        num_images: how many.
        batch_size: images at once; by default as many as pay, at most 32 on a CPU and 256 on a GPU, fewer where their
            keys and values would take more than 2 GiB or half of what a GPU has free.
        seed: of this call, a whole number of at least 0. An image is a function of the seed and its own number (and
            of what is given of it), whatever the batch size, up to rounding. The global random state is left as it
            was.
        progress: called with the number of images of each finished batch.
        on_rows: called as images come, after every row (of a masked model: after every step), with the numbers of
            the images in work (integers of shape (B,), from 0 in the order of the result), their tokens (B, T) and
            what is still hidden of them (bool, (B, T); a token there means nothing). What it raises ends the drawing.
        generation: arguments of the model's `generate()`: `temperature`, `top_k`, `top_p`; of a next-pixel model also
            `parallel_window`, `forecast`, `exit_layer`, for the same images in fewer passes; of a masked model also
            `num_steps`, `order`, `schedule`, `choice_temperature`. By default plain sampling at temperature 1, as in
            the paper, with one pass for every pixel.

    Returns:
        int64 array of shape (num_images, tokens), without the start token.
    """
    given = np.zeros((num_images, model.config.n_positions), dtype=np.int64)
    hidden = np.ones_like(given, dtype=bool)
    return _fill(model, given, hidden, 1, batch_size, seed, progress, on_rows, generation)[:, 0]


def complete(
    model: "ImageModel",
    tokens: np.ndarray,
    rows_kept: int,
    *,
    num_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    on_rows: OnRows | None = None,
    **generation: Any,
) -> np.ndarray:
    """
    Keeps the upper rows of images and draws the rest. A next-pixel model draws in raster order, so that nothing but an
    upper part can be given to it; for other regions of a masked model see `inpaint`.

    Args:
        tokens: integers of shape (images, tokens); only the kept rows are read.
        rows_kept: rows of the grid to keep, from 0 to height - 1.
        num_samples: completions of each image.
        batch_size, seed, progress, on_rows, generation: as for `sample`.

    Returns:
        int64 array of shape (images, num_samples, tokens), the kept rows included.

    Raises:
        ValueError: `rows_kept` is out of range.
    """
    region = rows_below(rows_kept, model.config.grid)
    options = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed}
    return inpaint(model, tokens, region, **options, progress=progress, on_rows=on_rows, **generation)


def inpaint(
    model: "ImageModel",
    tokens: np.ndarray,
    bool_masked_pos: np.ndarray,
    *,
    num_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    on_rows: OnRows | None = None,
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
        batch_size, seed, progress, on_rows, generation: as for `sample`.

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
    return _fill(model, tokens.astype(np.int64), hidden, num_samples, batch_size, seed, progress, on_rows, generation)


def _fill(
    model: "ImageModel",
    given: np.ndarray,
    hidden: np.ndarray,
    num_samples: int,
    batch_size: int | None,
    seed: int,
    progress: Callable[[int], None] | None,
    on_rows: OnRows | None,
    generation: dict[str, Any],
) -> np.ndarray:
    """Drawings of the given images, of shape (images, tokens), with what is hidden drawn, batch by batch."""
    import torch

    from hf_igpt.completion_igpt import draw_hidden, image_seeds, uses_fixed_caches

    batch_size = default_batch_size(model) if batch_size is None else batch_size
    if len(given) < 1 or batch_size < 1 or num_samples < 1:
        raise ValueError(
            "Give at least one image and a batch size of at least 1, and draw at least one for each, got "
            f"{len(given)}, {batch_size}, {num_samples}."
        )
    if model.config.is_causal:
        prefix_lengths(hidden)
    images, drawings = (numbers.ravel() for numbers in np.indices((len(given), num_samples)))
    seeds = image_seeds(seed, images.tolist(), drawings.tolist())
    drawn: list[np.ndarray] = []
    caches: dict = {}
    for start in range(0, len(images), batch_size):
        numbers = np.arange(start, min(start + batch_size, len(images)))
        # A last batch that is smaller would be compiled anew, which takes longer than drawing some images twice.
        size = batch_size if start and uses_fixed_caches(model, generation) else len(numbers)
        padded = np.resize(numbers, size)
        tokens, mask = (torch.from_numpy(part[images[padded]]) for part in (given, hidden))
        batch_seeds = [seeds[number] for number in padded]
        if on_rows is None:
            filled = draw_hidden(model, tokens, mask, batch_seeds, caches=caches, **generation).cpu().numpy()
        else:
            filled = _watched(model, tokens, mask, batch_seeds, generation, numbers, on_rows)
        drawn.append(filled[: len(numbers)])
        if progress is not None:
            progress(len(numbers))
    return np.concatenate(drawn).reshape(len(given), num_samples, -1)


def _watched(
    model: "ImageModel",
    tokens,
    mask,
    seeds: list[int],
    generation: dict[str, Any],
    numbers: np.ndarray,
    on_rows: OnRows,
) -> np.ndarray:
    """One batch, shown as it comes."""
    from hf_igpt.completion_igpt import stream_hidden

    was_training = model.training
    model.eval()
    try:
        for part, left in stream_hidden(model, tokens, mask, seeds, **generation):
            filled, still_hidden = part.cpu().numpy(), left.cpu().numpy()
            on_rows(numbers, filled[: len(numbers)], still_hidden[: len(numbers)])
    finally:
        model.train(was_training)
    return filled
