"""Checks of what a model is given, before it can end in an index error or in wrong numbers."""

from typing import Any

import torch

from .configuration_igpt import ImageGPTConfig


def check_tokens(
    name: str, tokens: torch.LongTensor, config: ImageGPTConfig, with_start: bool = False, ignored: int | None = None
) -> None:
    """
    Args:
        name: the argument that the message names.
        with_start: whether the start token is among the ids allowed.
        ignored: an id outside the range that is allowed all the same.

    Raises:
        ValueError: tokens that aren't int32 or int64 of shape (B, T), or, on a CPU, an id out of range (with its
            place).
    """
    if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32) or tokens.numel() == 0:
        raise ValueError(
            f"`{name}` must be int64 of shape (images, tokens), none of them 0, got {tokens.dtype} of shape "
            f"{list(tokens.shape)}."
        )
    # On an accelerator the check would wait for the device; collators check there before the batch is moved.
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    num_ids = config.vocab_size if with_start else config.num_values
    outside = (tokens < 0) | (tokens >= num_ids)
    if ignored is not None:
        outside &= tokens != ignored
    if bool(outside.any()):
        image, position = outside.nonzero()[0].tolist()
        value = int(tokens[image, position])
        hint = " That id is the start token: leave it out." if value == config.start_token_id else ""
        raise ValueError(
            f"`{name}` must be in [0, {num_ids - 1}], got {value} at position {position} of image {image}.{hint}"
        )


def check_mask(bool_masked_pos: torch.BoolTensor, shape: torch.Size, config: ImageGPTConfig) -> None:
    """
    Raises:
        ValueError: a mask for a next-pixel model, or one that isn't bool of `shape`, which is (B, T).
    """
    if config.is_causal:
        raise ValueError(
            "`bool_masked_pos` is for masked models, but this one has `is_causal=True`: it predicts every pixel from "
            "those before it. Leave the mask out."
        )
    if not torch.is_tensor(bool_masked_pos) or bool_masked_pos.dtype != torch.bool or bool_masked_pos.shape != shape:
        is_tensor = torch.is_tensor(bool_masked_pos)
        received = (
            f"{bool_masked_pos.dtype} of shape {list(bool_masked_pos.shape)}"
            if is_tensor
            else type(bool_masked_pos).__name__
        )
        raise ValueError(
            f"`bool_masked_pos` must be a bool tensor of shape {list(shape)}, True where a token is hidden, got "
            f"{received}."
        )


def check_processor(image_processor: Any, config: ImageGPTConfig) -> None:
    """
    Raises:
        ValueError: an image processor whose tokens or grid are not the model's.
    """
    theirs = _layout(image_processor, config.token_kind and image_processor.token_kind)
    ours = _layout(config, config.token_kind)
    if theirs != ours:
        raise ValueError(
            f"the image processor makes {theirs}, but the model has {ours}. They are not of one checkpoint: load both "
            "from the same."
        )


def _layout(owner: Any, kind: str | None) -> str:
    (height, width), channels = owner.grid, owner.num_channels
    a_cell = "" if channels == 1 else f", {channels} a cell"
    return f"{f'{kind} ' if kind else ''}tokens of {owner.num_values} values on a grid of {height} x {width}{a_cell}"


__all__ = ["check_mask", "check_processor", "check_tokens"]
