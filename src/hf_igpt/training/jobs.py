"""What pretraining and fine-tuning share around their Trainer: finished runs, examples, the clock, the last step."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.processes import use_cpu
from hf_igpt.training.run_folder import check_owner


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.data.loading import ImageTokenDataset, TokenDataset
    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.training.throughput import Throughput
    from hf_igpt.training.trainer import IGPTTrainer

logger = logging.getLogger(__name__)

MODEL = "model"


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


def finished_results(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The results of a run that is finished, None where it isn't. Raises ValueError where it is another run's."""
    from hf_igpt.results import RESULTS, read_results
    from hf_igpt.storage import is_complete

    if not (folder / RESULTS).is_file() or not is_complete(folder / MODEL):
        return None
    check_owner(folder, identity)
    logger.info("%s is finished: nothing to do.", folder)
    return read_results(folder)


def announce(results: dict[str, Any] | None, is_main_process: bool) -> dict[str, Any]:
    """Prints results from one process; returns them, or nothing on the others."""
    from hf_igpt.results import print_results

    if is_main_process:
        print_results(results)
    return results or {}


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


def trained_model(trainer: "IGPTTrainer") -> dict[str, Any]:
    """
    What results say of the model that a run leaves: a digest of its weights (None where DeepSpeed's ZeRO-3 has taken
    them apart), and the tags its trackers gave it. All processes must call it together.
    """
    from hf_igpt.weights import weights_digest

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    is_whole = not any(hasattr(weight, "ds_id") for weight in model.parameters())
    return {"model_sha256": weights_digest(model) if is_whole else None, "model_tags": list(model.model_tags or [])}


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


def train_to_the_end(trainer: "IGPTTrainer", remedy: str | None = None) -> str | None:
    """
    Trains from the newest checkpoint and returns its name, or None where there was none.

    Args:
        remedy: what to do when memory runs out; by default the options that pretrain and finetune have for it.

    Raises:
        TrainingStopped: training had to end early; for want of memory it names the option to lower.
    """
    from hf_igpt.training.errors import TrainingStopped, is_out_of_memory

    checkpoint = trainer.newest_checkpoint()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        now, in_validation = trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size
        remedy = remedy or (
            f"Give `--per_device_train_batch_size {max(1, now // 2)}` (the images of a step stay the same) or "
            f"`--gradient_checkpointing`; in validation a `--per_device_eval_batch_size` below {in_validation}."
        )
        raise TrainingStopped(f"Out of memory with {now} images at once on a device. {remedy} {error}") from error
    return checkpoint and checkpoint.name
