"""Exact likelihood of images under a next-pixel model, and the baselines to read it against."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling


@dataclass(frozen=True)
class Likelihood:
    """
    Negative log-likelihood of every image of a split.

    Args:
        nats_per_image: float64 of shape (images,), in the split's order: the sum over all tokens, the first included.
        tokens_per_image: height x width x tokens per cell.
        pixels_per_image: height x width.
    """

    nats_per_image: np.ndarray
    tokens_per_image: int
    pixels_per_image: int

    @property
    def nats_per_token(self) -> float:
        """Mean over images and tokens."""
        return float(self.nats_per_image.mean() / self.tokens_per_image)

    @property
    def bits_per_pixel(self) -> float:
        """Bits that the tokens of one grid cell cost. Not bits/dim of the RGB image: the palette has lost some."""
        return self.nats_per_token * self.tokens_per_image / self.pixels_per_image / math.log(2)

    def metrics(self) -> dict[str, float | int | None]:
        """Figures for a results JSON. The standard error is over images, None for a single one."""
        count = len(self.nats_per_image)
        error = self.nats_per_image.std(ddof=1) / math.sqrt(count) / self.tokens_per_image if count > 1 else None
        return {
            "nats_per_token": self.nats_per_token,
            "nats_per_token_standard_error": None if error is None else float(error),
            "bits_per_pixel": self.bits_per_pixel,
            "num_images": count,
            "tokens_per_image": self.tokens_per_image,
        }


def log_likelihood(
    model: "ImageGPTForCausalImageModeling",
    tokens: "Dataset | np.ndarray",
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Likelihood:
    """
    Scores every image with teacher forcing; summed in float64. With several processes each scores a share, and all of
    them return the whole.

    Args:
        model: a next-pixel model; scored in evaluation mode, on its own device and in its own dtype.
        tokens: a tokenized split, or an integer array of shape (images, tokens) without the start token.
        batch_size: images at once on one device.
        progress: called with the number of images of each finished batch.

    Raises:
        ValueError: no images, an empty batch, tokens outside the vocabulary, or an image whose likelihood is not
            finite.
    """
    import torch
    from accelerate.utils import gather_object

    from hf_igpt.processes import process_state

    if len(tokens) == 0 or batch_size < 1:
        raise ValueError(f"Give at least one image and a batch size of at least 1, got {len(tokens)}, {batch_size}.")
    rows = token_rows(tokens)
    state = process_state()
    mine = np.arange(state.process_index, len(rows), state.num_processes)
    was_training = model.training
    model.eval()
    scored: list[tuple[int, float]] = []
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            images = mine[start : start + batch_size]
            labels = torch.from_numpy(rows[images].astype(np.int64))
            _check_range(labels, model.config.num_values)
            logits = model(labels=labels.to(model.device)).logits
            scored += zip(images.tolist(), _nats(logits, labels.to(logits.device)), strict=True)
            if progress is not None:
                progress(len(images))
    model.train(was_training)
    nats = np.full(len(rows), np.nan)
    for image, value in gather_object(scored) if state.num_processes > 1 else scored:
        nats[image] = value
    if not np.isfinite(nats).all():
        image = int(np.flatnonzero(~np.isfinite(nats))[0])
        raise ValueError(f"The likelihood of image {image} is {nats[image]}: the model's weights or logits overflow.")
    height, width = model.config.grid
    return Likelihood(nats, model.config.n_positions, height * width)


def baselines(train: "Dataset | np.ndarray", held_out: "Dataset | np.ndarray", num_values: int) -> dict[str, float]:
    """
    Nats per token of the held-out images under a uniform distribution, and under the token frequencies of train with
    one added to every count.
    """
    counts = np.bincount(token_rows(train).ravel(), minlength=num_values) + 1.0
    log_frequency = np.log(counts / counts.sum())
    seen = np.bincount(token_rows(held_out).ravel(), minlength=num_values)
    return {
        "uniform_nats_per_token": math.log(num_values),
        "unigram_nats_per_token": float(-(seen * log_frequency).sum() / seen.sum()),
    }


def token_rows(tokens: Any) -> np.ndarray:
    """The tokens of a split as one integer array of shape (images, tokens), without a copy where Arrow allows."""
    if isinstance(tokens, np.ndarray):
        return tokens
    column = tokens.with_format("arrow")[:].column("input_ids").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(tokens), -1)


def _nats(logits: Any, labels: Any) -> list[float]:
    import torch

    dtype = torch.promote_types(torch.float32, logits.dtype)
    chosen = logits.to(dtype).log_softmax(dim=-1).gather(-1, labels.unsqueeze(-1))
    return (-chosen.squeeze(-1).double().sum(dim=1)).tolist()


def _check_range(labels: Any, num_values: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_values:
        raise ValueError(
            f"Tokens must be in [0, {num_values - 1}] for this model, got {low} to {high}: data and model have "
            "different palettes."
        )
