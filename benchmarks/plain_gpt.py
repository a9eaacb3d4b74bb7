"""A plain GPT and its training step, of the kind that nanoGPT made common: the baseline without a library.

One file, no options that the benchmarks don't use: `nn.Linear` with biases, LayerNorm, GELU, learned positions, causal
attention by `F.scaled_dot_product_attention(is_causal=True)`, an untied head as in Image GPT, one cross entropy over
all logits, fused AdamW.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.contract(F.gelu(self.expand(self.norm_2(x))))


class PlainGPT(nn.Module):
    """
    Args:
        layers, width, heads: sizes of the blocks.
        tokens: tokens of an image.
        values: token values; one more id starts an image.
    """

    def __init__(self, layers: int, width: int, heads: int, tokens: int, values: int = 512):
        super().__init__()
        self.start = values
        self.embed, self.positions = nn.Embedding(values + 1, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, values, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood in nats of tokens (batch, tokens), the first of an image included."""
        start = tokens.new_full((len(tokens), 1), self.start)
        x = self.embed(torch.cat([start, tokens[:, :-1]], dim=1)) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens.flatten())


def schedule(step: int, steps: int, warm_up: float) -> float:
    """Share of the peak rate: linear over a share `warm_up` of the steps, then a cosine to zero, as Trainer's."""
    warm_up_steps = round(warm_up * steps)
    if step < warm_up_steps:
        return step / max(1, warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up_steps) / max(1, steps - warm_up_steps)))
