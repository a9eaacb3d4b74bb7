"""What differs between the objectives of pretraining; everything else is one path."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.data.loading import TokenCollator
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel
    from hf_igpt.training.arguments import PretrainArguments


# Masks of a validation image: numbers of hidden tokens are spread over images too, so that more would change little.
VALIDATION_MASKS = 2


def model_class(config: "ImageGPTConfig") -> type["ImageGPTPreTrainedModel"]:
    """The head that pretrains a backbone of this config."""
    from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling

    return ImageGPTForCausalImageModeling if config.is_causal else ImageGPTForMaskedImageModeling


def collator(arguments: "PretrainArguments", config: "ImageGPTConfig") -> "TokenCollator":
    """What makes a batch of tokenized images into the arguments of that head."""
    from hf_igpt.data.loading import MaskedTokenCollator, TokenCollator
    from hf_igpt.data.masking import masking_for

    if config.is_causal:
        return TokenCollator(config.num_values, config.n_positions)
    masking = masking_for(config, arguments.mask_rate, arguments.seed)
    return MaskedTokenCollator(config.num_values, config.n_positions, masking=masking)


def eval_loss(
    model: "ImageGPTPreTrainedModel", tokens: "Dataset | np.ndarray", batch_collator: Any, batch_size: int
) -> float:
    """The objective's mean over images, each counted once, with any number of processes."""
    from hf_igpt.evaluation import log_likelihood, masked_nats_per_token

    if model.config.is_causal:
        return log_likelihood(model, tokens, batch_size).nats_per_token
    nats = masked_nats_per_token(model, tokens, batch_collator.masking, num_masks=1, batch_size=batch_size)
    return float(nats.mean())


def validation_metrics(
    model: "ImageGPTPreTrainedModel", tokens: "Dataset", arguments: "PretrainArguments"
) -> dict[str, Any]:
    """Figures of a finished model on validation images."""
    from hf_igpt.data.masking import PAPER_RATE, UNIFORM
    from hf_igpt.evaluation import log_likelihood, masked_metrics

    batch_size = arguments.per_device_eval_batch_size
    if model.config.is_causal:
        return log_likelihood(model, tokens, batch_size).metrics()
    rate = PAPER_RATE if arguments.mask_rate == UNIFORM else arguments.mask_rate
    options = {"num_masks": VALIDATION_MASKS, "seed": arguments.seed, "batch_size": batch_size}
    return masked_metrics(model, tokens, mask_rate=rate, **options)[0]
