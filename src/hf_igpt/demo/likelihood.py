"""How likely a model finds every part of an image, as a picture."""

import math

import numpy as np
from PIL import Image

from hf_igpt.demo.checkpoints import Checkpoint


# A masked model's cells are scored with half of the image hidden, each in half of the passes.
NUM_MASKS = 16
MASK_SEED = 0


def cell_bits(checkpoint: Checkpoint, image: Image.Image) -> np.ndarray:
    """
    What each cell of the grid costs the model, in bits: -log2 of the probability it gave the cell's tokens. A cell is
    a pixel, or the pixels of a VQ-VAE's code.

    A next-pixel model sees the cells before it, so that all of them add up to the image's likelihood. A masked model
    sees a random half of the others: the mean over as many masks as hide the cell, which adds up to nothing. The
    levels of a pixel are hidden together, as in training: one of three is no riddle beside the other two.

    Returns:
        float64 array of shape (height, width), the grid's.
    """
    import torch

    from hf_igpt.losses_igpt import masked_mean, token_nats

    model, config = checkpoint.model, checkpoint.model.config
    tokens = checkpoint.processor([image], return_tensors="pt").input_ids.to(model.device)
    with checkpoint.lock, torch.inference_mode():
        if config.is_causal:
            nats = token_nats(model(labels=tokens).logits, tokens)[0]
        else:
            hidden = _half_masks(config.n_positions, config.num_channels).to(model.device)
            repeated = tokens.expand(len(hidden), -1)
            scored = token_nats(model(input_ids=repeated, bool_masked_pos=hidden).logits, repeated)
            nats = masked_mean(scored.T, hidden.T)
    cells = nats.double().cpu().numpy().reshape(*checkpoint.grid, config.num_channels)
    return cells.sum(axis=-1) / math.log(2)


def heat_map(bits: np.ndarray) -> Image.Image:
    """The array in colours from dark, 0 bits, to bright, the largest value."""
    from matplotlib import colormaps

    return Image.fromarray(colormaps["viridis"](bits / max(bits.max(), 1e-9), bytes=True)[..., :3].copy())


def _half_masks(num_tokens: int, num_channels: int):
    """Masks and their complements, bool of shape (masks, tokens): every cell is hidden, whole, in half of them."""
    import torch

    cells = num_tokens // num_channels
    generator = torch.Generator().manual_seed(MASK_SEED)
    order = torch.rand(NUM_MASKS // 2, cells, generator=generator).argsort(dim=1)
    hidden = (order < cells // 2).repeat_interleave(num_channels, dim=1)
    return torch.cat([hidden, ~hidden])
