"""The weights that pretraining begins with where it goes on from a checkpoint, of the same grid or of another."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hf_igpt.configuration_igpt import ImageGPTConfig


if TYPE_CHECKING:
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel

logger = logging.getLogger(__name__)

# Fields that may differ: they change neither the shape nor the meaning of a weight, but for the positions. Kind and
# number of values follow from the tokens, which are compared themselves.
FREE_FIELDS = frozenset(
    {
        "vocab_size",
        "token_kind",
        "bos_token_id",
        "image_size",
        "layer_types",
        "sliding_window",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "initializer_range",
        "pooler_layer",
        "generative_loss_weight",
        "use_cache",
    }
)


@dataclass(frozen=True)
class InitialWeights:
    """
    A checkpoint to begin with.

    Args:
        model: with the head that it was pretrained with.
        processor: its image processor, which makes its tokens.
        digest: SHA-256 of its weights.
    """

    model: "ImageGPTPreTrainedModel"
    processor: "IGPTImageProcessor"
    digest: str


def load_initial_weights(
    name_or_path: str, config_for: "Callable[[IGPTImageProcessor], ImageGPTConfig]"
) -> InitialWeights:
    """
    Reads a checkpoint to begin with.

    Args:
        config_for: gives the config of the model that is to begin with it, for the checkpoint's tokens.

    Raises:
        ValueError: there is no whole checkpoint, or the model is another one in more than its grid, its windows of
            attention and its dropout.
    """
    from hf_igpt.training.objectives import model_class
    from hf_igpt.weights import load_verified, weights_digest

    try:
        model, processor = load_verified(name_or_path, model_class)
    except OSError as error:
        raise ValueError(f"`init_from`: {name_or_path} is no checkpoint: {error}") from error
    config = config_for(processor)
    for name in config.field_names():
        theirs, ours = getattr(model.config, name), getattr(config, name)
        if name not in FREE_FIELDS and theirs != ours:
            raise ValueError(
                f"`init_from`: {name_or_path} has `{name}` {theirs!r}, the model of this run {ours!r}. Only grid, "
                "windows of attention and dropout may differ."
            )
    return InitialWeights(model, processor, weights_digest(model))


def copy_weights(initial: InitialWeights, model: "ImageGPTPreTrainedModel") -> None:
    """Gives the model, built from another config with the same sizes, the checkpoint's weights."""
    weights = initial.model.state_dict()
    name = "transformer.wpe.weight"
    weights[name] = resample_positions(weights[name], initial.model.config, model.config)
    model.load_state_dict(weights, strict=True)


def resample_positions(positions: torch.Tensor, old: ImageGPTConfig, new: ImageGPTConfig) -> torch.Tensor:
    """
    Learned positions (tokens, width) of one grid for another, by bicubic interpolation over rows and columns; every
    channel of a cell by itself. For a smaller grid they are averaged, with a warning.

    In a next-pixel model position i reads token i - 1 and predicts token i; it is resampled as the place of what it
    predicts. The first position reads the start token, which is no pixel: it is kept as it is, and the position to its
    right (or below) stands in for it where its neighbours are resampled.

    Raises:
        ValueError: the grids have another number of channels.
    """
    if old.num_channels != new.num_channels:
        raise ValueError(
            f"Positions can be resampled for another height and width only: `num_channels` must stay "
            f"{old.num_channels}, got {new.num_channels}."
        )
    if old.grid == new.grid:
        return positions.clone()
    cells = positions.float().unflatten(0, (*old.grid, old.num_channels)).clone()
    has_start = old.is_causal and old.use_start_token
    if has_start and old.grid != (1, 1):
        cells[0, 0, 0] = cells[0, 1, 0] if old.grid[1] > 1 else cells[1, 0, 0]
    planes = cells.permute(2, 3, 0, 1)  # (channels, width, rows, columns)
    shrinks = any(side < before for side, before in zip(new.grid, old.grid, strict=True))
    if shrinks:
        logger.warning(
            "The positions of a grid of %d x %d are averaged for one of %d x %d: what tells neighbours apart is lost. "
            "Go on from smaller images to larger ones instead.",
            *old.grid,
            *new.grid,
        )
    resampled = F.interpolate(planes, size=new.grid, mode="bicubic", align_corners=False, antialias=shrinks)
    resampled = resampled.permute(2, 3, 0, 1).flatten(0, 2).to(positions.dtype)
    if has_start:
        resampled[0] = positions[0]
    return resampled
