"""Conversion of checkpoints: OpenAI's TensorFlow files to ours, transformers' ImageGPT to ours and back."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_igpt.configuration_igpt import SLIDING
from hf_igpt.hub.openai import CENTERS, is_tensorflow_checkpoint, read_centers, read_variables, variables_to_igpt
from hf_igpt.native_igpt import SHARED_FIELDS, TRANSPOSED
from hf_igpt.token_kinds_igpt import PALETTE


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel

logger = logging.getLogger(__name__)

TARGETS = ("igpt", "imagegpt")


@dataclass(frozen=True)
class Converted:
    """
    A converted checkpoint in memory.

    Args:
        model: in the target's class.
        processor: ours, with the palette.
        source_format: "openai", "imagegpt" or "igpt".
        notes: sentences on what was dropped or could not be kept.
    """

    model: "PreTrainedModel"
    processor: "IGPTImageProcessor"
    source_format: str
    notes: list[str]

    @property
    def target_format(self) -> str:
        """ "igpt" or "imagegpt"."""
        return self.model.config.model_type

    def save(self, folder: str | os.PathLike) -> None:
        """Writes weights, config and image processor, for a native model in transformers' own format."""
        from hf_igpt.storage import write_json

        self.model.save_pretrained(folder)
        if self.target_format == "igpt":
            self.processor.save_pretrained(folder)
        else:
            write_json(Path(folder) / "preprocessor_config.json", native_processor_config(self.processor))

    def summary(self) -> dict[str, Any]:
        """What was converted, for a results JSON."""
        return {
            "source_format": self.source_format,
            "target_format": self.target_format,
            "class": type(self.model).__name__,
            "parameters": self.model.num_parameters(),
            "token_hash": self.processor.token_hash,
            "notes": self.notes,
        }


def convert(source: str, target: str = "igpt", palette: str | None = None) -> Converted:
    """
    Converts a checkpoint and its palette.

    Args:
        source: a TensorFlow checkpoint of openai/image-gpt (its path without an ending), or a folder or Hub name of
            transformers' ImageGPT or of ours.
        target: "igpt", ours, or "imagegpt", transformers' own.
        palette: OpenAI's `kmeans_centers.npy`; by default the one beside the TensorFlow checkpoint.

    Raises:
        ValueError: the source is damaged, is no such checkpoint, or can't be expressed in the target.
        ModuleNotFoundError: TensorFlow is needed and not installed.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, got {target!r}.")
    notes: list[str] = []
    if is_tensorflow_checkpoint(source):
        source_format = "openai"
        model, processor = load_openai(source, palette or Path(source).parent / CENTERS)
    elif palette is not None:
        raise ValueError(f"`palette` is for TensorFlow checkpoints; {source} has a palette of its own. Leave it out.")
    else:
        model, processor, source_format = _load(source)
    if source_format == "imagegpt":
        model = without_zero_biases(model, notes)
    if target == "imagegpt":
        model = to_native(model)
        if processor.do_center_crop:
            notes.append("transformers' image processor has no centre crop: crop images before it sees them.")
    for note in notes:
        logger.warning(note)
    return Converted(model, processor, source_format, notes)


def load_openai(
    checkpoint: str | os.PathLike, centers: str | os.PathLike
) -> "tuple[ImageGPTPreTrainedModel, IGPTImageProcessor]":
    """
    Our model, next-pixel or masked, and image processor from a TensorFlow checkpoint of openai/image-gpt and its
    `kmeans_centers.npy`.

    Raises:
        ValueError, ModuleNotFoundError: as `read_variables` and `read_centers`; or the palette has another size.
    """
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.training.objectives import model_class

    palette = read_centers(centers)
    variables = read_variables(checkpoint)
    config, weights = variables_to_igpt(variables)
    if len(palette) != config.num_values:
        raise ValueError(f"{centers} has {len(palette)} colours, but {checkpoint} predicts {config.num_values}.")
    model = _with_weights(model_class(config), config, weights)
    height, width = config.grid
    return model, IGPTImageProcessor(size={"height": height, "width": width}, palette=palette)


def without_zero_biases(model: "ImageGPTPreTrainedModel", notes: list[str]) -> "ImageGPTPreTrainedModel":
    """The model without biases if all of them are zero, as OpenAI's are; otherwise the model itself."""
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    parameters = dict(model.named_parameters())
    if not biases or any(parameters[name].any() for name in biases):
        return model
    config = type(model.config).from_dict(model.config.to_dict() | {"use_bias": False})
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in biases}
    notes.append(f"All {len(biases)} biases are zero and were dropped (`use_bias=False`).")
    return _with_weights(type(model), config, weights)


def to_native(model: "ImageGPTPreTrainedModel") -> "PreTrainedModel":
    """
    transformers' ImageGPT with the weights of ours: backbone, next-pixel model or classifier. Biases that ours does
    not have are zero.

    Raises:
        ValueError: transformers' ImageGPT can't express the model.
    """
    import transformers

    config = model.config
    _check_expressible(model)
    fields = {name: getattr(config, name) for name in SHARED_FIELDS}
    kept = {"bos_token_id": config.bos_token_id}
    if type(model).__name__ == "ImageGPTForImageClassification":
        kept |= {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
    native_config = transformers.ImageGPTConfig(**fields, **kept)
    native_class = getattr(transformers, type(model).__name__)
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.t().contiguous() if TRANSPOSED.search(name) else tensor
        if not config.use_bias and TRANSPOSED.search(name):
            weights[name.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    return _with_weights(native_class, native_config, weights)


def native_processor_config(processor: "IGPTImageProcessor") -> dict[str, Any]:
    """`preprocessor_config.json` of transformers' ImageGPT for our processor, without a centre crop."""
    return {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": (processor.palette / 127.5 - 1).tolist(),
        "do_color_quantize": True,
        "do_normalize": True,
        "do_resize": processor.do_resize,
        "resample": int(processor.resample),
        "size": dict(processor.size),
    }


def _load(source: str) -> "tuple[ImageGPTPreTrainedModel, IGPTImageProcessor, str]":
    from hf_igpt import ImageGPTConfig
    from hf_igpt.weights import load_verified

    try:
        saved, _ = ImageGPTConfig.get_config_dict(source)
        model, processor = load_verified(source, _saved_class)
    except OSError as error:
        raise ValueError(
            f"{source} is neither a TensorFlow checkpoint (there is no {source}.index), nor a folder or Hub name with "
            f"a config and weights: {error}"
        ) from error
    return model, processor, saved.get("model_type", "igpt")


def _saved_class(config: "ImageGPTConfig") -> "type[ImageGPTPreTrainedModel]":
    """Files of transformers' ImageGPT may not name theirs: they are next-pixel models then."""
    import hf_igpt
    from hf_igpt.hub.card_facts import HEADS
    from hf_igpt.training.objectives import model_class

    head = next((name for name in config.architectures or () if name in HEADS), None)
    return getattr(hf_igpt, head) if head else model_class(config)


def _check_expressible(model: "ImageGPTPreTrainedModel") -> None:
    config = model.config
    reasons = {
        "masked attention": not config.is_causal,
        "windows of attention": SLIDING in config.attention_types,
        "rotary positions": config.rotary_base is not None,
        f"{config.num_channels} tokens a cell": config.num_channels != 1,
        f"tokens of the kind {config.token_kind}": config.token_kind not in (None, PALETTE),
        "a classifier behind the start token": type(model).__name__ == "ImageGPTForImageClassification"
        and config.use_start_token,
        "a classifier of another layer than the last": config.pooler_layer not in (None, config.num_hidden_layers),
    }
    if unknown := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"transformers' ImageGPT has no {unknown[0]}: this checkpoint can't be converted to it.")


def _with_weights(model_class: Any, config: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A model in evaluation mode that holds these very tensors; every name and shape must fit."""
    model = model_class(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()
