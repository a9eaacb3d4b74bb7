"""What a model computes, from its config alone, and the matrix-product peak it is measured against."""

import time

import torch

from hf_igpt.configuration_igpt import SLIDING, ImageGPTConfig
from hf_igpt.configuration_igpt_vqvae import ImageGPTVQVAEConfig


def parameters(config: ImageGPTConfig) -> int:
    """Parameters of a model with the head that it is pretrained with, equal to its `num_parameters()`."""
    embeddings = (config.vocab_size + config.n_positions) * config.hidden_size
    head = config.num_values * config.hidden_size
    return embeddings + config.num_hidden_layers * block_parameters(config) + config.hidden_size + head


def block_parameters(config: ImageGPTConfig) -> int:
    """Parameters of one block: four projections, two norms and, in transformers' ImageGPT, biases."""
    width, inner = config.hidden_size, config.intermediate_size
    biases = 5 * width + inner if config.use_bias else 0
    return 4 * width * width + 2 * width * inner + 2 * width + biases


def block_matrices(config: ImageGPTConfig) -> int:
    """Parameters of the projections of all blocks, without biases."""
    projections = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * projections


def product_parameters(config: ImageGPTConfig) -> int:
    """Parameters that are multiplied with: projections and head, without embeddings, norms and biases."""
    return block_matrices(config) + config.num_values * config.hidden_size


def attention_window(config: ImageGPTConfig, layer: int) -> int | None:
    """Tokens of a layer's sliding window, or None where it attends to the whole image."""
    return config.sliding_window if config.attention_types[layer] == SLIDING else None


def attended_pairs(config: ImageGPTConfig, layer: int) -> int:
    """
    Pairs of a query and a key that a layer needs for one image.

    A causal query attends to itself and the tokens before it, in a window of w tokens to itself and w - 1 before it; a
    masked model's to all tokens, in a window to those at most w away.
    """
    tokens, window = config.n_positions, attention_window(config, layer)
    if config.is_causal:
        window = tokens if window is None else min(window, tokens)
        return window * (window + 1) // 2 + (tokens - window) * window
    reach = tokens - 1 if window is None else min(window, tokens - 1)
    return tokens * (2 * reach + 1) - reach * (reach + 1)


def forward_flops(config: ImageGPTConfig) -> int:
    """
    Floating-point operations (a multiply-add is two) of matrix products and attention for one image, without a cache.

    Attention counts the pairs that it needs: of a causal model half of the score matrix.
    """
    attended = sum(attended_pairs(config, layer) for layer in range(config.num_hidden_layers))
    return 2 * (config.n_positions * product_parameters(config) + 2 * attended * config.hidden_size)


def head_flops(config: ImageGPTConfig) -> int:
    """What the output head has of `forward_flops`; the rest is the blocks."""
    return 2 * config.n_positions * config.num_values * config.hidden_size


def training_flops(config: ImageGPTConfig) -> int:
    """Forward and backward for one image: the backward pass costs twice the forward pass."""
    return 3 * forward_flops(config)


def executed_flops(config: ImageGPTConfig, gradient_checkpointing: bool = False) -> int:
    """
    `training_flops`, the head's second forward pass, whose logits aren't kept, and with gradient checkpointing that of
    the blocks, which ends before the last product of each: nothing needs its output again.
    """
    flops = training_flops(config) + head_flops(config)
    if gradient_checkpointing:
        last = 2 * config.num_hidden_layers * config.n_positions * config.intermediate_size * config.hidden_size
        flops += forward_flops(config) - head_flops(config) - last
    return flops


def vqvae_training_flops(config: ImageGPTVQVAEConfig, height: int, width: int) -> int:
    """
    Of a VQ-VAE for one image of so many pixels, forward and backward: its convolutions, and once the search of the
    nearest code, which has no backward pass.
    """
    rows, columns = config.grid_of(height, width)
    cells, convolutions = rows * columns, 0
    before, after = 3, config.hidden_size * 2 // config.downsampling
    for halved in range(config.downsampling.bit_length() - 1):
        pixels = height * width >> 2 * (halved + 1)
        convolutions += 2 * pixels * 16 * before * after  # once downwards, once upwards
        before, after = after, 2 * after
    block = 9 * config.hidden_size * config.residual_size + config.residual_size * config.hidden_size
    convolutions += 2 * cells * (config.num_residual_blocks * block + config.hidden_size * config.code_size)
    search = cells * config.codebook_size * config.code_size
    return 2 * (3 * convolutions + search)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None, seconds: float = 0.5) -> float:
    """
    Measured peak of square matrix products in FLOP/s: the best of the products that fit into `seconds`.

    Args:
        size: side of the matrices; by default 4096, or 1024 on a CPU.
    """
    if size is None:
        size = 1024 if device.type == "cpu" else 4096
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
