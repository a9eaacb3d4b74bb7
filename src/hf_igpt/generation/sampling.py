"""Sampling images, completing given ones and filling regions of them, with a next-pixel or a masked model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.generation.regions import prefix_length, rows_below, token_mask


if TYPE_CHECKING:
    import torch

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
        batch_size: images at once. Equal seeds give equal images for equal batch sizes.
        seed: of this call; the global random state is left as it was.
        progress: called with the number of images of each finished batch.
        generation: arguments of the model's `generate()`: `temperature`, `top_k`, `top_p`; of a masked model also
            `num_steps`, `order`, `schedule`, `choice_temperature`. By default plain sampling at temperature 1, as in
            the paper; a masked model then takes one pass for every pixel.

    Returns:
        int64 array of shape (num_images, tokens), without the start token.
    """
    hidden = np.ones((num_images, model.config.n_positions), dtype=bool)
    return _fill(model, np.zeros(hidden.shape, dtype=np.int64), hidden, batch_size, seed, progress, generation)


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
    given = np.repeat(tokens.astype(np.int64), num_samples, axis=0)
    hidden = np.repeat(hidden, num_samples, axis=0)
    images = _fill(model, given, hidden, batch_size, seed, progress, generation)
    return images.reshape(len(tokens), num_samples, -1)


def _fill(
    model: "ImageModel",
    given: np.ndarray,
    hidden: np.ndarray,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
    generation: dict[str, Any],
) -> np.ndarray:
    """The given images, of shape (images, tokens), with what is hidden drawn, batch by batch."""
    import torch

    if len(given) < 1 or batch_size < 1:
        raise ValueError(f"Give at least one image and a batch size of at least 1, got {len(given)}, {batch_size}.")
    kept = prefix_length(hidden) if model.config.is_causal else None
    was_training = model.training
    model.eval()
    images = []
    for number, start in enumerate(range(0, len(given), batch_size)):
        batch = slice(start, start + batch_size)
        tokens = torch.from_numpy(given[batch]).to(model.device)
        batch_seed = (seed << 20) + number
        with torch.inference_mode():
            if kept is None:
                mask = torch.from_numpy(hidden[batch]).to(model.device)
                drawn = _draw_hidden(model, tokens, mask, batch_seed, generation)
            else:
                drawn = _continue(model, tokens[:, :kept], batch_seed, generation)
        images.append(drawn.cpu().numpy())
        if progress is not None:
            progress(len(tokens))
    model.train(was_training)
    return np.concatenate(images)


def _draw_hidden(
    model: "ImageGPTForMaskedImageModeling",
    tokens: "torch.Tensor",
    mask: "torch.Tensor",
    seed: int,
    generation: dict[str, Any],
) -> "torch.Tensor":
    import torch

    generator = torch.Generator(model.device).manual_seed(seed)
    return model.generate(tokens, mask, generator=generator, **generation)


def _continue(
    model: "ImageGPTForCausalImageModeling", given: "torch.Tensor", seed: int, generation: dict[str, Any]
) -> "torch.Tensor":
    """Whole images that begin with the tokens `given`."""
    import torch

    if given.shape[1] == model.config.n_positions:
        return given
    prefix = torch.cat([given.new_full((len(given), 1), model.config.start_token_id), given], dim=1)
    # `generate` of transformers draws from the global state.
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        # The start token is in the prefix, so the whole is one longer than an image.
        whole = model.generate(
            prefix, attention_mask=torch.ones_like(prefix), max_length=model.config.n_positions + 1, **generation
        )
    return whole[:, 1:]
