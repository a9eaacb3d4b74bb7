"""
Attention of a window of tokens, where the backend itself knows none: in blocks, so that what lies outside is skipped.

A mask of T x T would make `scaled_dot_product_attention` compute every product and hide most of them. Here queries are
cut into blocks no shorter than the window. A block then needs the keys of its own, of the block before it and, in
models that attend in both directions, of the block after it: the work grows with T x window.
"""

from collections.abc import Callable

import torch
from transformers.masking_utils import (
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)


# Queries in a block, or the window where that is larger. Smaller blocks are slower than what they save.
MIN_BLOCK = 64

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attend_in_blocks(
    attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, is_causal: bool
) -> torch.Tensor:
    """
    What `attend` gives with the mask of transformers' sliding window: a causal query sees itself and the `window - 1`
    tokens before it, a query of a model that attends in both directions sees up to `window` tokens on either side.

    Args:
        attend: attention of queries (B, H, Q, D) to keys and values (B, H, K, D) under a mask (1, 1, Q, K), True
            where a query sees a key. Gives (B, Q, H, D).
        query, key, value: of one sequence each, of shape (B, H, T, D).
        window: as `sliding_window` of the config.

    Returns:
        A tensor of shape (B, T, H, D).
    """
    length = query.shape[2]
    size = max(window, MIN_BLOCK)
    # Blocks that see one block behind, and one ahead where they look ahead, in full. The first block and what is left
    # at the end are shorter; all of these in between are alike and computed at once.
    ahead = 0 if is_causal else 1
    inner = max(length // size - 1 - ahead, 0)
    end = min(size * (1 + ahead), length)
    parts = [_attend_band(attend, query[:, :, :size], key[:, :, :end], value[:, :, :end], 0, window, is_causal)]
    if inner:
        blocks = _blocks(query, 1, inner, size).flatten(0, 1)
        keys, values = (
            torch.cat([_blocks(states, first, inner, size) for first in range(2 + ahead)], dim=3).flatten(0, 1)
            for states in (key, value)
        )
        attended = _attend_band(attend, blocks, keys, values, size, window, is_causal)
        parts.append(attended.unflatten(0, (-1, inner)).flatten(1, 2))
    if length > size * (1 + inner):
        start = size * inner
        last = query[:, :, start + size :], key[:, :, start:], value[:, :, start:]
        parts.append(_attend_band(attend, *last, size, window, is_causal))
    return torch.cat(parts, dim=1)


def _blocks(states: torch.Tensor, first: int, number: int, size: int) -> torch.Tensor:
    """Neighbouring blocks (B, number, H, size, D) of states (B, H, T, D), from block `first` on."""
    return states[:, :, first * size : (first + number) * size].unflatten(2, (number, size)).transpose(1, 2)


def _attend_band(
    attend: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offset: int,
    window: int,
    is_causal: bool,
) -> torch.Tensor:
    """Queries of which the first stands at key number `offset`."""
    visible = sliding_window_causal_mask_function if is_causal else sliding_window_bidirectional_mask_function
    queries = torch.arange(offset, offset + query.shape[2], device=query.device)[:, None]
    keys = torch.arange(key.shape[2], device=query.device)[None, :]
    return attend(query, key, value, visible(window)(0, 0, queries, keys)[None, None])


__all__ = ["attend_in_blocks"]
