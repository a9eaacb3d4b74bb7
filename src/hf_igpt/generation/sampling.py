"""Sampling images and completing given ones with a next-pixel model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import torch

    from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling


def sample(
    model: "ImageGPTForCausalImageModeling",
    num_images: int,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **generation: Any,
) -> np.ndarray:
    """
    Draws whole images token by token.

    Args:
        num_images: how many.
        batch_size: images at once. Equal seeds give equal images for equal batch sizes.
        seed: of this call; the global random state is left as it was.
        progress: called with the number of images of each finished batch.
        generation: arguments of `generate()`, such as `temperature`, `top_k`, `top_p`. By default plain sampling at
            temperature 1, as in the paper.

    Returns:
        int64 array of shape (num_images, tokens), without the start token.
    """
    nothing = np.empty((num_images, 0), dtype=np.int64)
    return _continue(model, nothing, batch_size, seed, progress, generation)


def complete(
    model: "ImageGPTForCausalImageModeling",
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
    Keeps the upper rows of images and draws the rest. Raster order means that only an upper part can be given.

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
    height, width = model.config.grid
    if not 0 <= rows_kept < height:
        raise ValueError(f"`rows_kept` must be from 0 to {height - 1} for a grid {height} high, got {rows_kept}.")
    given = np.asarray(tokens)[:, : rows_kept * width * model.config.num_channels]
    given = np.repeat(given.astype(np.int64), num_samples, axis=0)
    images = _continue(model, given, batch_size, seed, progress, generation)
    return images.reshape(len(tokens), num_samples, -1)


def _continue(
    model: "ImageGPTForCausalImageModeling",
    given: np.ndarray,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
    generation: dict[str, Any],
) -> np.ndarray:
    import torch

    if len(given) < 1 or batch_size < 1:
        raise ValueError(f"Give at least one image and a batch size of at least 1, got {len(given)}, {batch_size}.")
    was_training = model.training
    model.eval()
    images = []
    for number, batch in enumerate(_batches(given, batch_size)):
        start = np.full((len(batch), 1), model.config.start_token_id)
        prefix = torch.from_numpy(np.concatenate([start, batch], axis=1)).to(model.device)
        with torch.random.fork_rng(devices=_devices(model.device)), torch.inference_mode():
            torch.manual_seed((seed << 20) + number)
            # The start token is in the prefix, so the whole is one longer than an image.
            whole = model.generate(
                prefix, attention_mask=torch.ones_like(prefix), max_length=model.config.n_positions + 1, **generation
            )
        images.append(whole[:, 1:].cpu().numpy())
        if progress is not None:
            progress(len(batch))
    model.train(was_training)
    return np.concatenate(images)


def _batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _devices(device: "torch.device") -> list["torch.device"]:
    return [device] if device.type == "cuda" else []
