"""
Rotary positions in two dimensions (Su et al. 2021, https://arxiv.org/abs/2104.09864; for images as in Heo et al. 2024,
https://arxiv.org/abs/2403.13298, "axial"). They are not the paper's, and are added to its learned positions.

Half of the pairs of a query or key are turned by the row of a position, the other half by its column, so that what two
tokens have to do with each other may depend on how far apart they are on the grid. In next-pixel models a position
stands for the pixel that is predicted there, in masked models for its own.
"""

import torch
from torch.autograd.function import once_differentiable

from .configuration_igpt import ImageGPTConfig
from .functional_igpt import is_large_on_cpu


# Cosines and sines, each of shape (B, T, 1, D / 2).
Rotation = tuple[torch.Tensor, torch.Tensor]


def rotation_of(config: ImageGPTConfig, position_ids: torch.LongTensor, dtype: torch.dtype) -> Rotation | None:
    """
    How queries and keys at positions of shape (B, T) are turned; None where the config has no rotary positions.

    Tokens of one cell, such as the levels of a colour, are turned alike.
    """
    if config.rotary_base is None:
        return None
    pairs = config.hidden_size // config.num_attention_heads // 2
    cells = position_ids // config.num_channels
    width = config.grid[1]
    # Angles of a large grid need more than half precision.
    angle_type = torch.promote_types(torch.float32, dtype)
    steps = torch.arange(pairs // 2, device=position_ids.device, dtype=angle_type) / (pairs // 2)
    frequencies = config.rotary_base**-steps
    angles = torch.cat([(places.unsqueeze(-1) * frequencies) for places in (cells // width, cells % width)], dim=-1)
    angles = angles.unsqueeze(2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Queries or keys of shape (B, T, H, D), each pair (i, i + D / 2) turned by its angle."""
    cos, sin = (part.to(states.dtype) for part in rotation)
    if is_large_on_cpu(states) and type(states) is torch.Tensor:
        return _Rotate.apply(states, cos, sin)
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class _Rotate(torch.autograd.Function):
    # The same in four passes over half of the states each, where the sums above take seven and as many tensors.
    @staticmethod
    def forward(ctx, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(states, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        return _turned(grad_output, *ctx.saved_tensors, -1), None, None


def _turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    output = states.new_empty(states.shape)
    (first, second), (out_first, out_second) = states.chunk(2, dim=-1), output.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=direction)
    return output


def split_heads(qkv: torch.Tensor, num_heads: int, rotation: Rotation | None) -> tuple[torch.Tensor, ...]:
    """Query, key and value, each of shape (B, H, T, D), from one product (B, T, 3 C); the first two turned."""
    batch, length, width = qkv.shape
    states = qkv.view(batch, length, 3, num_heads, width // (3 * num_heads))
    if rotation is None:
        query, key, value = states.permute(2, 0, 3, 1, 4)
        return query, key, value
    # Heads stay behind tokens in memory, or attention's output would have to be copied.
    turned = rotate(states[:, :, :2].flatten(2, 3), rotation).unflatten(2, (2, num_heads))
    query, key = turned.permute(2, 0, 3, 1, 4)
    return query, key, states[:, :, 2].transpose(1, 2)


__all__ = ["Rotation", "rotate", "rotation_of", "split_heads"]
