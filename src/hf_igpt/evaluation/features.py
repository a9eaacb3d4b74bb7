"""Features of whole images for probes: every layer in one pass, averaged over positions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.evaluation.layers import visit_layers
from hf_igpt.evaluation.likelihood import check_range


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.data.masking import Masking
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel

# On a CPU what a batch leaves in the cache counts, and one image of 1024 tokens already fills it.
CPU_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 1 << 16


def extract_features(
    model: "ImageGPTPreTrainedModel",
    tokens: "Dataset | np.ndarray",
    *,
    masking: "Masking | None" = None,
    mask: tuple[int, int] = (0, 1),
    normed: bool = True,
    batch_size: int | None = None,
    out: Sequence[np.ndarray] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """
    Mean over positions of every layer's features (paper, section 2.4): one float32 array of shape (images, width) for
    each layer from 0, the normed embeddings, to `num_hidden_layers`, the final norm. Of the hidden states only one
    layer of one batch is kept, whatever the size of the data and the number of layers.

    Args:
        model: a backbone or any of its heads; run in evaluation mode, on its own device and in its own dtype.
        tokens: a tokenized split, or an integer array of shape (images, tokens) without the start token.
        masking: for masked models, what hides tokens: pretrained with hidden ones, they see them here too (paper,
            section 4.6). None hides nothing.
        mask: which one of how many masks of an image, see `Masking`.
        normed: False takes the residual stream in front of the norms, an ablation.
        batch_size: images at once on one device; by default what suits the device.
        out: arrays to write into, one for each layer. With several processes it must be given, memory-mapped on a file
            they share: each writes its own rows.
        progress: called with the number of images of each finished batch.

    Raises:
        ValueError: no images, masks for a next-pixel model, tokens outside the vocabulary, or features that are not
            finite (names image and layer).
    """
    import torch

    from hf_igpt.data.token_store import token_rows
    from hf_igpt.processes import process_state

    state, config = process_state(), model.config
    if len(tokens) == 0:
        raise ValueError("`tokens` must hold at least one image, got none.")
    if masking is not None and config.is_causal:
        raise ValueError("`masking` is for masked models: leave it out for a next-pixel model.")
    if out is None and state.num_processes > 1:
        raise ValueError("With several processes `out` must be arrays that all of them can write to, got None.")
    batch_size = batch_size or default_batch_size(config.n_positions, model.device.type)
    shape = (len(tokens), config.hidden_size)
    out = [np.empty(shape, np.float32) for _ in range(config.num_hidden_layers + 1)] if out is None else list(out)
    first, last = process_share(len(tokens), state.process_index, state.num_processes)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(first, last, batch_size):
                images = np.arange(start, min(start + batch_size, last))
                pooled = _pooled(model, token_rows(tokens, images), images, masking, mask, normed)
                for layer, values in enumerate(pooled):
                    out[layer][images] = values
                if progress is not None:
                    progress(len(images))
    finally:
        model.train(was_training)
    return out


def default_batch_size(num_tokens: int, device_type: str) -> int:
    """Images at once that suit a device."""
    return max(1, (CPU_BATCH_TOKENS if device_type == "cpu" else GPU_BATCH_TOKENS) // num_tokens)


def process_share(num_images: int, process: int, processes: int) -> tuple[int, int]:
    """First row of a process's share, and the row behind its last."""
    return num_images * process // processes, num_images * (process + 1) // processes


def concatenated(layers: Sequence[np.ndarray], count: int, center: int) -> np.ndarray:
    """
    Features of `count` neighbouring layers side by side, (images, count x width), centred at one layer or as near to
    it as the first and the last layer allow (the paper's 5 x 3072, section 4.3).
    """
    window = layer_window(len(layers), count, center)
    return layers[center] if count == 1 else np.concatenate([layers[layer] for layer in window], axis=1)


def layer_window(num_layers: int, count: int, center: int) -> range:
    """The `count` neighbouring layers that `concatenated` takes."""
    first = min(max(center - count // 2, 0), num_layers - count)
    return range(first, first + count)


def _pooled(
    model: Any, rows: np.ndarray, images: np.ndarray, masking: "Masking | None", mask: tuple[int, int], normed: bool
) -> np.ndarray:
    """Pooled features of one batch, float32 of shape (layers, batch, width)."""
    import torch

    batch = torch.from_numpy(rows.astype(np.int64))
    check_range(batch, model.config.num_values)
    hidden = None if masking is None else torch.from_numpy(masking(0, images, mask)).to(model.device)
    dtype = torch.promote_types(torch.float32, model.dtype)
    pooled: list[Any] = []
    visit_layers(
        model,
        batch.to(model.device),
        lambda layer, states: pooled.append(states.mean(dim=1, dtype=dtype)),
        bool_masked_pos=hidden,
        normed=normed,
    )
    values = torch.stack(pooled).float().cpu().numpy()
    if not np.isfinite(values).all():
        layer, image = np.argwhere(~np.isfinite(values))[0][:2]
        raise ValueError(
            f"Features of image {images[image]} in layer {layer} are not finite: the model's weights overflow."
        )
    return values
