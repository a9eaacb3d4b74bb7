"""Training a VQ-VAE from images to a model folder: training, model, reconstructions, results."""

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.processes import process_state
from hf_igpt.training.jobs import throughput_at
from hf_igpt.training.run_folder import run_identity
from hf_igpt.training.runs import last_train_loss, run_training
from hf_igpt.training.trainer_arguments import split_batch, trackers, training_arguments


if TYPE_CHECKING:
    from hf_igpt.configuration_igpt_vqvae import ImageGPTVQVAEConfig
    from hf_igpt.data.pixels import PixelDataset
    from hf_igpt.data.sources import ImageSource
    from hf_igpt.training.vqvae_arguments import TrainVQVAEArguments
    from hf_igpt.training.vqvae_trainer import VQVAETrainer

    Images = tuple[ImageSource, dict[str, PixelDataset]]

CURVE, RECONSTRUCTION = "loss.png", "reconstruction.png"
EXAMPLE_IMAGES = 16
REMEDY = "Give `--per_device_train_batch_size {smaller}`: the images of a step stay the same."


def train_vqvae(arguments: "TrainVQVAEArguments") -> dict[str, Any]:
    """
    Does what `hf-igpt train_vqvae` does and returns the contents of results.json.

    Raises:
        ValueError: bad options, bad data, or an output folder of another run.
        TrainingStopped: training had to end early; the last good checkpoint is kept.
    """
    _check(arguments)

    def build() -> "tuple[VQVAETrainer, Images]":
        images = _load(arguments)
        return _build_trainer(arguments, images[1]), images

    def measure(trainer: "VQVAETrainer", images: "Images") -> dict[str, Any]:
        return _metrics(trainer, arguments, images[1])

    def record(trainer: "VQVAETrainer", images: "Images", metrics: dict[str, Any]) -> dict[str, Any]:
        return _record(trainer, arguments, *images)

    return run_training(arguments, run_identity(arguments), build, measure, record, REMEDY)


def vqvae_config(arguments: "TrainVQVAEArguments") -> "ImageGPTVQVAEConfig":
    """
    The config of the model that the options ask for.

    Raises:
        ValueError: sizes that no model has, or images that are no multiple of its cells.
    """
    from hf_igpt.configuration_igpt_vqvae import ImageGPTVQVAEConfig

    names = (*ImageGPTVQVAEConfig.field_names(),)
    fields = {name: getattr(arguments, name) for name in names if name != "revival_seed"}
    config = ImageGPTVQVAEConfig(revival_seed=arguments.seed, **fields)
    config.grid_of(*_sides(arguments))
    return config


def _sides(arguments: "TrainVQVAEArguments") -> tuple[int, int]:
    from hf_igpt.data.options import grid_size

    size = grid_size(arguments)
    return size["height"], size["width"]


def _check(arguments: "TrainVQVAEArguments") -> None:
    """Everything that can be wrong before data is read."""
    arguments.check()
    import matplotlib.figure  # noqa: F401  # if it is missing, that is said here and not after the training

    from hf_igpt.data.augmentation import RESIZED_CROP, check_augmentation
    from hf_igpt.training.sharding import check_launcher

    check_launcher(0.0, False)
    vqvae_config(arguments)
    split_batch(arguments)
    trackers(arguments.report_to)
    if arguments.augmentation != RESIZED_CROP:
        check_augmentation(arguments.augmentation, _sides(arguments), arguments.augmentation_padding)


def _load(arguments: "TrainVQVAEArguments") -> "Images":
    from hf_igpt.data.options import crop_fields, grid_size, load_source
    from hf_igpt.data.pixels import PixelDataset
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

    with process_state().main_process_first():
        # Classes are never read, and there may be several columns of them.
        source = load_source(dataclasses.replace(arguments, label_column="none"))
    processor = IGPTImageProcessor(size=grid_size(arguments), **crop_fields(arguments.crop_size))

    def split(name: str, augment: str) -> PixelDataset:
        return PixelDataset(
            source.split(name),
            processor,
            image_column=source.image_column,
            augment=augment,
            seed=arguments.seed,
            padding=arguments.augmentation_padding,
            image_roots=source.image_roots,
        )

    return source, {name: split(name, arguments.augmentation if name == "train" else "none") for name in source.splits}


def _build_trainer(arguments: "TrainVQVAEArguments", splits: "dict[str, PixelDataset]") -> "VQVAETrainer":
    from transformers import set_seed

    from hf_igpt.data.pixels import PixelCollator
    from hf_igpt.modeling_igpt_vqvae import ImageGPTVQVAEModel
    from hf_igpt.training.vqvae_trainer import VQVAETrainer

    set_seed(arguments.seed)
    config = vqvae_config(arguments)
    training = training_arguments(arguments, len(splits["train"]))
    rows, columns = config.grid_of(*_sides(arguments))
    return VQVAETrainer(
        ImageGPTVQVAEModel(config),
        training,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=PixelCollator(),
        throughput=throughput_at(rows * columns, _flops(arguments), training, arguments.total_batch_size),
    )


def _flops(arguments: "TrainVQVAEArguments") -> int:
    from hf_igpt.training.cost import vqvae_training_flops

    return vqvae_training_flops(vqvae_config(arguments), *_sides(arguments))


def _metrics(
    trainer: "VQVAETrainer", arguments: "TrainVQVAEArguments", splits: "dict[str, PixelDataset]"
) -> dict[str, Any]:
    from hf_igpt.training.vqvae_trainer import warn_of_collapse

    config = trainer.model.config
    metrics: dict[str, Any] = {
        "train_loss": last_train_loss(trainer),
        "receptive_field": config.receptive_field,
        "grid": list(config.grid_of(*_sides(arguments))),
    }
    for name in ("validation", "test"):
        metrics[name] = trainer.score(splits[name]) if name in splits else None
        if metrics[name] is not None and trainer.is_world_process_zero():
            warn_of_collapse(metrics[name])
    return metrics


def _draw(trainer: "VQVAETrainer", arguments: "TrainVQVAEArguments", splits: "dict[str, PixelDataset]") -> None:
    """The first held-out images, as they come, and what the model makes of them."""
    import numpy as np
    from PIL import Image

    from hf_igpt.plots import quantization_grid, save_png

    held_out = splits.get("test", splits.get("validation", splits["train"]))
    pixels = np.stack([example["pixels"] for example in itertools.islice(held_out, EXAMPLE_IMAGES)])
    model = trainer._bare_model().eval()
    decoded = model.decode(model.encode(pixels)).cpu().numpy()
    side = model.config.downsampling
    tokens = f"{model.config.codebook_size} codes of {side}x{side} pixels"
    originals, images = ([Image.fromarray(image) for image in batch] for batch in (pixels, decoded))
    save_png(quantization_grid(originals, images, tokens), Path(arguments.output_dir) / RECONSTRUCTION)


def _record(
    trainer: "VQVAETrainer", arguments: "TrainVQVAEArguments", source: "ImageSource", splits: "dict[str, PixelDataset]"
) -> dict[str, Any]:
    from hf_igpt.plots import save_loss_curve

    _draw(trainer, arguments, splits)
    save_loss_curve(trainer.state.log_history, Path(arguments.output_dir) / CURVE, unit="loss")
    return {
        "dataset": source.origin | {"num_images": {name: len(split) for name, split in splits.items()}},
        "codes_hash": trainer._bare_model().codes_hash,
    }
