"""What a model costs, from its config alone, and the matrix-product peak it is measured against."""

import time

import torch

from hf_igpt.configuration_igpt import ImageGPTConfig


def forward_flops(config: ImageGPTConfig) -> int:
    """
    Floating-point operations (a multiply-add is two) of matrix products and attention for one image, without a cache.

    A causal model's attention counts the half of the score matrix that it needs.
    """
    tokens, width, layers = config.n_positions, config.hidden_size, config.num_hidden_layers
    projections = 4 * width * width + 2 * width * config.intermediate_size
    attended = tokens * (tokens + 1) // 2 if config.is_causal else tokens * tokens
    attention = 2 * attended * width
    head = tokens * width * config.num_values
    return 2 * (layers * (tokens * projections + attention) + head)


def training_flops(config: ImageGPTConfig) -> int:
    """Forward and backward for one image: the backward pass costs twice the forward pass."""
    return 3 * forward_flops(config)


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
