"""The weights of a model as a whole: reading them with all checks, and what identifies them."""

import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel


def load_verified(
    name_or_path: str | os.PathLike,
    choose_class: "Callable[[ImageGPTConfig], type[ImageGPTPreTrainedModel]]",
    *,
    needs_head: bool = True,
) -> "tuple[ImageGPTPreTrainedModel, IGPTImageProcessor]":
    """
    A model in evaluation mode and its image processor, for whatever is to be measured, trained on or passed on. A
    folder with a manifest is verified first. Code that comes with it is not run.

    Args:
        name_or_path: a folder or Hub name.
        choose_class: gives the class for its config.
        needs_head: whether a head that was not saved is an error; otherwise it starts at zero.

    Raises:
        OSError: there is no config.
        ValueError: the folder is damaged, config and weights do not fit, numbers are not finite, the head or the image
            processor is missing, or it and the model do not fit.
    """
    from hf_igpt import IGPTImageProcessor, ImageGPTConfig
    from hf_igpt.checks_igpt import check_processor
    from hf_igpt.config_files_igpt import check_finite
    from hf_igpt.storage import verify_if_listed

    verify_if_listed(name_or_path)
    head = choose_class(ImageGPTConfig.from_pretrained(name_or_path))
    model, info = head.from_pretrained(name_or_path, output_loading_info=True)
    if needs_head and info["missing_keys"]:
        raise ValueError(
            f"{name_or_path} was saved without {', '.join(sorted(info['missing_keys']))}, so that a "
            f"{head.__name__} of it predicts nothing. Take a checkpoint of pretraining."
        )
    check_finite(model, str(name_or_path))
    try:
        processor = IGPTImageProcessor.from_pretrained(name_or_path)
    except OSError as error:
        raise ValueError(
            f"{name_or_path}: the image processor, without which its tokens mean nothing, can't be read: {error}"
        ) from error
    try:
        check_processor(processor, model.config)
    except ValueError as error:
        raise ValueError(f"{name_or_path}: {error}") from error
    return model.eval(), processor


def weights_digest(model: "PreTrainedModel") -> str:
    """
    SHA-256 over names and bytes of all weights: what results are keyed by. Of a model that is sharded all processes
    must call it together.
    """
    from torch.distributed.tensor import DTensor

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
