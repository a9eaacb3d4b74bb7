"""What trainings share before their Trainer starts: the attention backend, examples, the clock."""

from typing import TYPE_CHECKING, Any

from hf_igpt.processes import use_cpu


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.data.loading import ImageTokenDataset, TokenDataset
    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.training.throughput import Throughput


def check_backend(name: str) -> None:
    """Raises ValueError for an attention backend that can't train here."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    has_gpu = torch.cuda.is_available() and not use_cpu()
    if name in ("flash_attention_2", "flex_attention") and not has_gpu:
        raise ValueError(f"`attn_implementation: {name}` trains on a GPU only, and there is none. Take sdpa.")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "`attn_implementation: flash_attention_2` needs the package flash-attn. Install it, or take sdpa."
        )


def token_dataset(tokens: "Dataset", processor: "IGPTImageProcessor", **augmentation: Any) -> "TokenDataset":
    """A tokenized split as examples."""
    from hf_igpt.data.loading import TokenDataset

    return TokenDataset(
        tokens,
        num_values=processor.num_values,
        grid=processor.grid,
        num_channels=processor.num_channels,
        **augmentation,
    )


def check_centre_crop(processor: "IGPTImageProcessor") -> None:
    """Raises ValueError for an image processor that would leave whole what training sees in crops."""
    if not processor.do_center_crop:
        raise ValueError(
            "`augmentation: random_resized_crop` trains on crops, so validation images must be cropped too: the image "
            "processor has no centre crop. Fit one with `crop_size`."
        )


def crop_dataset(
    source: "ImageSource", images: "Dataset", processor: "IGPTImageProcessor", seed: int, *, label_column: str
) -> "ImageTokenDataset":
    """
    Images of a source as examples of ImageNet's random crops, the same size and filter as the processor's own.

    Raises:
        ValueError: the processor has no centre crop.
    """
    from hf_igpt.data.loading import ImageTokenDataset
    from hf_igpt.data.pixels import resized_sides

    check_centre_crop(processor)
    crop_size = processor.crop_size["height"]
    return ImageTokenDataset(
        images,
        # The crops are drawn here, so the processor's own crop must not come on top.
        processor.with_size(processor.size),
        image_column=source.image_column,
        label_column=label_column,
        seed=seed,
        shorter_side=resized_sides(crop_size),
        crop_size=crop_size,
        image_roots=source.image_roots,
    )


def throughput_of(config: "ImageGPTConfig", training: "TrainingArguments", images_per_step: int) -> "Throughput":
    """A clock of an Image GPT's training."""
    from hf_igpt.training.cost import training_flops

    return throughput_at(config.n_positions, training_flops(config), training, images_per_step)


def throughput_at(
    tokens_per_image: int, flops_per_image: int, training: "TrainingArguments", images_per_step: int
) -> "Throughput":
    """A clock that knows the peak of the run's devices at its precision."""
    import torch

    from hf_igpt.training.cost import matmul_peak
    from hf_igpt.training.throughput import Throughput

    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    peak = matmul_peak(training.device, dtype) * training.world_size
    return Throughput(tokens_per_image, flops_per_image, images_per_step, peak)
