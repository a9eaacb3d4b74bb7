"""Drawing the hidden tokens of images with a next-pixel or a masked model, every image from its own random numbers."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import StaticCache

from .causal_generation_igpt import CACHE_NAME
from .generation_igpt import iterative_steps
from .regions_igpt import prefix_lengths


# Arguments of `generate` with which the caller decides on the cache.
_OF_CACHES = {"cache_implementation", "use_cache", "parallel_window", CACHE_NAME}


def image_seeds(seed: int, images: Iterable[int], drawings: Iterable[int]) -> list[int]:
    """
    A seed for each drawing, as a function of the call's seed, the number of the image and that of the drawing.

    Raises:
        ValueError: `seed` is no whole number of at least 0.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"`seed` must be a whole number of at least 0, got {seed!r}.")
    keys = zip(images, drawings, strict=True)
    # Hashed: torch's CPU generator reads 32 bits of a seed, where sums or shifts of seeds would soon meet.
    sequences = (np.random.SeedSequence(int(seed), spawn_key=key) for key in keys)
    return [int(sequence.generate_state(1, np.uint64)[0]) for sequence in sequences]


def decodes_compiled(model: nn.Module) -> bool:
    """
    Whether images are drawn with a cache of fixed size, for which transformers compiles the step of a next-pixel model
    and replays it as a CUDA graph. On a CPU the loop of `fast_decoding_igpt.py` is there.
    """
    return model.config.is_causal and model.device.type == "cuda"


def uses_fixed_caches(model: nn.Module, generation: dict[str, Any]) -> bool:
    """Whether that is so with these arguments of `generate`, which may name another cache."""
    return decodes_compiled(model) and not _OF_CACHES & {*generation}


def draw_hidden(
    model: nn.Module,
    tokens: torch.LongTensor,
    hidden: torch.BoolTensor,
    seeds: list[int],
    *,
    caches: dict[int, StaticCache] | None = None,
    **generation: Any,
) -> torch.LongTensor:
    """
    Draws the hidden tokens of images, without dropout. An image is a function of its own tokens, mask and seed: up to
    rounding, it is the same in any batch. The global random state is left as it was.

    Args:
        model: a next-pixel or masked head.
        tokens: of shape (B, T), without the start token. What is hidden is not read.
        hidden: True where a token is to be drawn, of shape (B, T).
        seeds: one for each image.
        caches: on a GPU, caches by the number of images, kept from call to call: what was captured for one is then
            used again. It is filled here; by default every call has its own.
        generation: arguments of the model's `generate()`.

    Returns:
        Tokens of shape (B, T) on the model's device, the given ones unchanged.

    Raises:
        ValueError: a region that a next-pixel model can't draw, or what `generate()` refuses.
    """
    if not model.config.is_causal:
        _refuse_parallel(generation, "masked models, which draw several pixels a pass by `num_steps`")
    tokens, hidden = tokens.to(model.device), hidden.to(model.device)
    generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if model.config.is_causal:
                return _continue(model, tokens, hidden, generators, {} if caches is None else caches, generation)
            return model.generate(tokens, hidden, generator=generators, **generation)
    finally:
        model.train(was_training)


def stream_hidden(
    model: nn.Module, tokens: torch.LongTensor, hidden: torch.BoolTensor, seeds: list[int], **generation: Any
) -> Iterator[tuple[torch.LongTensor, torch.BoolTensor]]:
    """
    `draw_hidden` bit by bit, for who wants to watch or to stop: row by row with a next-pixel model, step by step with
    a masked one. The model runs when the next bit is asked for, and no more once nobody asks. The last bit is what
    `draw_hidden` gives, up to rounding.

    Args:
        model, tokens, hidden, seeds, generation: as for `draw_hidden`. The model must be in evaluation mode.

    Yields:
        Tokens and what is hidden of them (a token there means nothing), both of shape (B, T) on the model's device: as
        they are given, then after every row or step. They are not changed later.

    Raises:
        ValueError: as `draw_hidden`; or the model is in training mode, in which dropout would be on; or pixels are to
            be drawn in parallel, which doesn't go row by row.
    """
    _refuse_parallel(generation, "images that are watched row by row")
    if model.training:
        raise ValueError(
            "`model` must be in evaluation mode, for dropout would change the images: call `model.eval()`."
        )
    tokens, hidden = tokens.to(model.device), hidden.to(model.device)
    generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    if not model.config.is_causal:
        return iterative_steps(model, tokens, hidden, generator=generators, **generation)
    return _stream_rows(model, tokens, hidden, generators, generation)


def _refuse_parallel(generation: dict[str, Any], images: str) -> None:
    if generation.get("parallel_window") is not None:
        raise ValueError(f"`parallel_window` is not for {images}: leave it out.")


@torch.no_grad()
def _stream_rows(
    model: nn.Module,
    tokens: torch.LongTensor,
    hidden: torch.BoolTensor,
    generators: list[torch.Generator],
    generation: dict[str, Any],
) -> Iterator[tuple[torch.LongTensor, torch.BoolTensor]]:
    """Row by row; images of which equally many tokens are given are drawn together, one group after the other."""
    lengths = torch.from_numpy(prefix_lengths(hidden.cpu().numpy()))
    row = model.config.grid[1] * model.config.num_channels
    yield tokens.masked_fill(hidden, 0), hidden
    for length in lengths.unique().tolist():
        group = (lengths == length).nonzero().squeeze(1).tolist()
        sources = [generators[image] for image in group]
        drawn = torch.cat(
            [tokens.new_full((len(group), 1), model.config.start_token_id), tokens[group, :length]], dim=1
        )
        state = _cache_arguments(model, len(group), {}, generation)
        for end in range(length // row * row + row, tokens.shape[1] + 1, row):
            # Goes on where the row before ended: its cache, and the generators as it left them.
            ended = model.generate(
                drawn,
                attention_mask=torch.ones_like(drawn),
                max_length=end + 1,
                generator=sources,
                return_dict_in_generate=True,
                **state,
                **generation,
            )
            drawn, state = ended.sequences, {CACHE_NAME: ended[CACHE_NAME]}
            tokens, hidden = tokens.clone(), hidden.clone()
            tokens[group, :end], hidden[group, :end] = drawn[:, 1:], False
            yield tokens.masked_fill(hidden, 0), hidden


def _continue(
    model: nn.Module,
    tokens: torch.LongTensor,
    hidden: torch.BoolTensor,
    generators: list[torch.Generator],
    caches: dict[int, StaticCache],
    generation: dict[str, Any],
) -> torch.LongTensor:
    """Images that begin with the given tokens; those of which equally many are given are drawn together."""
    drawn = tokens.clone()
    lengths = torch.from_numpy(prefix_lengths(hidden.cpu().numpy()))
    for length in lengths.unique().tolist():
        if length == tokens.shape[1]:
            continue
        group = (lengths == length).nonzero().squeeze(1).tolist()
        start = tokens.new_full((len(group), 1), model.config.start_token_id)
        prefix = torch.cat([start, tokens[group, :length]], dim=1)
        # The start token is in the prefix, so the whole is one longer than an image.
        whole = model.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            max_length=model.config.n_positions + 1,
            generator=[generators[image] for image in group],
            **_cache_arguments(model, len(group), caches, generation),
            **generation,
        )
        drawn[group] = whole[:, 1:]
    return drawn


def _cache_arguments(
    model: nn.Module, num_images: int, caches: dict[int, StaticCache], generation: dict[str, Any]
) -> dict[str, StaticCache]:
    """An empty cache of fixed size, where it pays; of the last number of images alone, for a cache is large."""
    if not uses_fixed_caches(model, generation):
        return {}
    if num_images in caches:
        caches[num_images].reset()
    else:
        caches.clear()
        caches[num_images] = StaticCache(config=model.config, max_cache_len=model.config.n_positions)
    return {CACHE_NAME: caches[num_images]}


__all__ = ["draw_hidden", "image_seeds", "stream_hidden", "uses_fixed_caches"]
