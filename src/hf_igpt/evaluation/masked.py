"""The loss of a masked-pixel model at a mask rate, and an upper bound on its negative log-likelihood."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.masking import PAPER_RATE, UNIFORM, Masking, masking_for
from hf_igpt.evaluation.likelihood import Likelihood, count_pixels, score_images, standard_error


NUM_MASKS = 8

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTForMaskedImageModeling


def masked_nats_per_token(
    model: "ImageGPTForMaskedImageModeling",
    tokens: "Dataset | np.ndarray",
    masking: Masking,
    *,
    num_masks: int = NUM_MASKS,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """
    Mean negative log-likelihood of each image's hidden tokens, averaged over its masks: float64 of shape (images,), in
    the split's order. Masks depend on the masking's seed and the image's index alone.

    Args:
        num_masks: masks of each image.
        model, tokens, batch_size, progress: as for `log_likelihood`, which says what is raised.
    """
    if num_masks < 1:
        raise ValueError(f"`num_masks` must be at least 1, got {num_masks}.")

    def score(model: Any, batch: Any, images: np.ndarray) -> Any:
        import torch

        from hf_igpt.losses_igpt import masked_mean, token_nats

        total = torch.zeros(len(batch), dtype=torch.float64)
        for number in range(num_masks):
            mask = torch.from_numpy(masking(0, images, (number, num_masks))).to(batch.device)
            nats = token_nats(model(input_ids=batch, bool_masked_pos=mask).logits, batch)
            total += masked_mean(nats.double(), mask).cpu()
        return total / num_masks

    return score_images(model, tokens, score, batch_size, progress)


def likelihood_bound(
    model: "ImageGPTForMaskedImageModeling",
    tokens: "Dataset | np.ndarray",
    *,
    num_masks: int = NUM_MASKS,
    seed: int = 0,
    processor: "IGPTImageProcessor | None" = None,
    **options: Any,
) -> Likelihood:
    """
    An unbiased estimate of an upper bound on the negative log-likelihood, comparable with `log_likelihood` of a
    next-pixel model: the mean over all orders of drawing the cells one by one (see `Masking`). The model itself is
    the mixture over orders, which is likelier still, and what `generate` draws from with one token a step.

    Args:
        num_masks: masks of each image, with stratified numbers of hidden cells; as many as an image has cells have
            one mask for each number.
        seed: of the masks.
        processor: the image processor that made the tokens: says how many pixels an image has (see `count_pixels`).
        options: `batch_size` and `progress`, as for `masked_nats_per_token`.
    """
    count = model.config.n_positions
    nats = masked_nats_per_token(
        model, tokens, masking_for(model.config, UNIFORM, seed), num_masks=num_masks, **options
    )
    return Likelihood(nats * count, count, count_pixels(model.config, tokens, processor))


def masked_metrics(
    model: "ImageGPTForMaskedImageModeling",
    tokens: "Dataset | np.ndarray",
    *,
    mask_rate: float = PAPER_RATE,
    num_masks: int = NUM_MASKS,
    seed: int = 0,
    processor: "IGPTImageProcessor | None" = None,
    **options: Any,
) -> tuple[dict[str, Any], Likelihood]:
    """
    Figures for a results JSON: the loss at a mask rate and the bound on the likelihood, with standard errors over
    images; and the bound of every image. Arguments as above; `progress` sees every image twice.
    """
    masking = masking_for(model.config, mask_rate, seed)
    at_rate = masked_nats_per_token(model, tokens, masking, num_masks=num_masks, **options)
    bound = likelihood_bound(model, tokens, num_masks=num_masks, seed=seed, processor=processor, **options)
    metrics = {
        "masked_nats_per_token": float(at_rate.mean()),
        "masked_nats_per_token_standard_error": standard_error(at_rate),
        "mask_rate": mask_rate,
        "num_masks": num_masks,
    }
    for name, value in bound.metrics().items():
        metrics[name if name in ("num_images", "tokens_per_image") else f"bound_{name}"] = value
    return metrics, bound
