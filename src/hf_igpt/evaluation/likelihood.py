"""Exact likelihood of images under a next-pixel model, and the baselines to read it against."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.evaluation.color_density import ColorCost, color_cost


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling, ImageGPTPreTrainedModel


@dataclass(frozen=True)
class Likelihood:
    """
    Negative log-likelihood of every image of a split.

    Args:
        nats_per_image: float64 of shape (images,), in the split's order: the sum over all tokens, the first included.
        tokens_per_image: height x width x tokens per cell.
        pixels_per_image: height x width of the image at the size that its tokens stand for.
        colors: what the RGB colours cost on top of the tokens; None where nobody asked.
    """

    nats_per_image: np.ndarray
    tokens_per_image: int
    pixels_per_image: int
    colors: ColorCost | None = None

    @property
    def nats_per_token(self) -> float:
        """Mean over images and tokens."""
        return float(self.nats_per_image.mean() / self.tokens_per_image)

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the tokens for each pixel. Not bits/dim of the RGB image: a palette or a VQ-VAE has lost some."""
        return self.nats_per_token * self.tokens_per_image / self.pixels_per_image / math.log(2)

    @property
    def bits_per_dim(self) -> float | None:
        """
        Bits that the RGB image costs for each of its 3 x height x width levels: those of the tokens and those of the
        colours given the tokens. None where nobody asked for the colours, or there is no density of them.
        """
        bits = self._bits_per_dim_of_images()
        return None if bits is None else float(bits.mean())

    def _bits_per_dim_of_images(self) -> np.ndarray | None:
        if self.colors is None or self.colors.nats_per_image is None:
            return None
        return (self.nats_per_image + self.colors.nats_per_image) / (3 * self.pixels_per_image * math.log(2))

    def with_colors(self, colors: ColorCost) -> "Likelihood":
        """
        The same with these costs of the colours.

        Raises:
            ValueError: they are of another number of images.
        """
        if colors.nats_per_image is not None and colors.nats_per_image.shape != self.nats_per_image.shape:
            raise ValueError(
                f"`colors` must be of the {len(self.nats_per_image)} images that were scored, got costs of shape "
                f"{colors.nats_per_image.shape}."
            )
        return replace(self, colors=colors)

    def metrics(self) -> dict[str, float | int | str | None]:
        """
        Figures for a results JSON, with bits/dim if the colours were asked for. Standard errors are over images, None
        for a single one.
        """
        return {
            "nats_per_token": self.nats_per_token,
            "nats_per_token_standard_error": standard_error(self.nats_per_image / self.tokens_per_image),
            "bits_per_pixel": self.bits_per_pixel,
            "num_images": len(self.nats_per_image),
            "tokens_per_image": self.tokens_per_image,
            **self._color_metrics(),
        }

    def _color_metrics(self) -> dict[str, float | str | None]:
        if self.colors is None:
            return {}
        made: dict[str, float | str | None] = {"color_density": self.colors.density}
        if self.colors.smoothing is not None:
            made |= {"color_smoothing": self.colors.smoothing, "color_smoothing_from": self.colors.smoothing_from}
        if (bits := self._bits_per_dim_of_images()) is None:
            return {"bits_per_dim": None, **made, "bits_per_dim_reason": self.colors.reason}
        of_colors = float(self.colors.nats_per_image.mean() / (3 * self.pixels_per_image * math.log(2)))
        return {
            "bits_per_dim": self.bits_per_dim,
            "bits_per_dim_standard_error": standard_error(bits),
            "bits_per_dim_of_colors": of_colors,
            **made,
        }


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of independent values; None for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def log_likelihood(
    model: "ImageGPTForCausalImageModeling",
    tokens: "Dataset | np.ndarray",
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    *,
    processor: "IGPTImageProcessor | None" = None,
) -> Likelihood:
    """
    Scores every image with teacher forcing; summed in float64. With several processes each scores a share, and all of
    them return the whole.

    Args:
        model: a next-pixel model; scored in evaluation mode, on its own device and in its own dtype.
        tokens: a tokenized split, or an integer array of shape (images, tokens) without the start token.
        batch_size: images at once on one device.
        progress: called with the number of images of each finished batch.
        processor: the image processor that made the tokens: says how many pixels an image has (see
            `count_pixels`), and gives the result `bits_per_dim` too, with the colours of a palette's cell equally
            likely. `EmpiricalColors` and `Likelihood.with_colors` do better.

    Raises:
        ValueError: a masked model, no images, an empty batch, tokens outside the vocabulary, an image whose
            likelihood is not finite, or a processor that didn't make these tokens.
    """
    if not model.config.is_causal:
        raise ValueError("A masked model has no exact likelihood: use `likelihood_bound`.")
    colors = None if processor is None else color_cost(processor, tokens)
    nats = score_images(model, tokens, _teacher_forcing, batch_size, progress)
    return Likelihood(nats, model.config.n_positions, count_pixels(model.config, tokens, processor), colors)


def count_pixels(
    config: "ImageGPTConfig", tokens: "Dataset | np.ndarray", processor: "IGPTImageProcessor | None" = None
) -> int:
    """
    Pixels of an image. A cell of the grid is one, but a VQ-VAE's code stands for a square of them, whose side the
    processor knows, or without one the record of a tokenized split. Tokens in an array have no record: without
    a processor these are the cells of the grid, and what is counted per pixel is per cell.
    """
    from hf_igpt.data.token_store import recorded_cell_pixels

    height, width = config.grid
    cell = recorded_cell_pixels(tokens) if processor is None else processor.cell_size**2
    return height * width * cell


def score_images(
    model: "ImageGPTPreTrainedModel",
    tokens: "Dataset | np.ndarray",
    score: Callable[[Any, Any, np.ndarray], Any],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    what: str = "likelihood",
) -> np.ndarray:
    """
    One number for every image, or a row of numbers, whatever the batches and the number of processes: float64 of shape
    (images,) or (images, numbers).

    Args:
        score: takes the model, tokens of shape (batch, tokens) on its device and the images' indices, and returns
            a tensor of shape (batch,) or (batch, numbers).
        what: what the numbers are, for the message where one is not finite.
        model, tokens, batch_size, progress: as for `log_likelihood`, which says what it raises.
    """
    import torch

    from hf_igpt.data.token_store import token_rows
    from hf_igpt.processes import from_all_processes, is_sharded, process_state

    if len(tokens) == 0 or batch_size < 1:
        raise ValueError(f"Give at least one image and a batch size of at least 1, got {len(tokens)}, {batch_size}.")
    state = process_state()
    mine = np.arange(state.process_index, len(tokens), state.num_processes)
    # A forward pass of a sharded model needs all processes: who has no image left scores the first one once more.
    longest = math.ceil(len(tokens) / state.num_processes) if is_sharded(model) else len(mine)
    was_training = model.training
    model.eval()
    scored: list[tuple[int, Any]] = []
    with torch.inference_mode():
        for start in range(0, longest, batch_size):
            images = mine[start : start + batch_size] if start < len(mine) else np.array([0])
            batch = torch.from_numpy(token_rows(tokens, images).astype(np.int64))
            check_range(batch, model.config.num_values)
            scored += zip(images.tolist(), score(model, batch.to(model.device), images).tolist(), strict=True)
            if progress is not None:
                progress(len(images))
    model.train(was_training)
    of_image = dict(from_all_processes(scored))
    scores = np.array([of_image[image] for image in range(len(tokens))], dtype=np.float64)
    if not (finite := np.isfinite(scores)).all():
        place = tuple(np.argwhere(~finite)[0])
        raise ValueError(f"The {what} of image {place[0]} is {scores[place]}: the model's weights or logits overflow.")
    return scores


def baselines(train: "Dataset | np.ndarray", held_out: "Dataset | np.ndarray", num_values: int) -> dict[str, float]:
    """
    Nats per token of the held-out images under a uniform distribution, and under the token frequencies of train with
    one added to every count.
    """
    from hf_igpt.data.token_store import token_rows

    counts = np.bincount(token_rows(train).ravel(), minlength=num_values) + 1.0
    log_frequency = np.log(counts / counts.sum())
    seen = np.bincount(token_rows(held_out).ravel(), minlength=num_values)
    return {
        "uniform_nats_per_token": math.log(num_values),
        "unigram_nats_per_token": float(-(seen * log_frequency).sum() / seen.sum()),
    }


def _teacher_forcing(model: Any, tokens: Any, images: np.ndarray) -> Any:
    from hf_igpt.losses_igpt import token_nats

    return token_nats(model(labels=tokens).logits, tokens).double().sum(dim=1)


def check_range(labels: Any, num_values: int) -> None:
    """Raises ValueError for tokens that the model has no value for."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_values:
        raise ValueError(
            f"Tokens must be in [0, {num_values - 1}] for this model, got {low} to {high}: they were "
            "made for another model, with another palette or VQ-VAE."
        )
