"""What a pretraining run would cost and where it fits, from its options alone."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.configuration_igpt import ImageGPTConfig
from hf_igpt.data.options import TokenLayout, code_layout, grid_size, token_layout
from hf_igpt.data.sizes import KNOWN_SPLITS, known_training_images
from hf_igpt.data.token_repository import processor_beside
from hf_igpt.token_kinds_igpt import VQVAE
from hf_igpt.training.arguments import MUON
from hf_igpt.training.cost import executed_flops, forward_flops, parameters, training_flops
from hf_igpt.training.devices import REACHED, planned_device, resolved_precision
from hf_igpt.training.memory import TrainingSetting, cache_bytes, training_memory
from hf_igpt.training.plan_arguments import PlanArguments
from hf_igpt.training.pretraining import model_config
from hf_igpt.training.trainer_arguments import split_batch


if TYPE_CHECKING:
    from hf_igpt.image_processing_igpt import IGPTImageProcessor


def plan(arguments: PlanArguments, name: str) -> dict[str, Any]:
    """
    The cost of a run, and on each kind of device asked for its memory by part, whether it fits, and its time.

    Args:
        name: of the recipe.

    Raises:
        ValueError: options that contradict each other, a batch that can't be dealt out to the devices, or a data set
            of unknown size where the number of steps depends on it.
    """
    arguments.check()
    tokens, notes = planned_tokens(arguments)
    if arguments.torch_compile:
        notes.append(
            "Times and memory are those of a run that isn't compiled: `torch_compile` changes nothing in them."
        )
    config = model_config(arguments, tokens)
    steps = optimizer_steps(arguments)
    images = steps * arguments.total_batch_size
    return {
        "recipe": name,
        "objective": arguments.objective,
        "model": {
            "parameters": parameters(config),
            "num_hidden_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "tokens": config.n_positions,
        },
        "flops": {
            "forward_per_image": forward_flops(config),
            "training_per_image": training_flops(config),
            "run": images * training_flops(config),
        },
        "run": {"optimizer_steps": steps, "images": images, "total_batch_size": arguments.total_batch_size},
        "devices": [_on_device(arguments, config, images, device) for device in arguments.device],
        "notes": notes,
    }


def optimizer_steps(arguments: PlanArguments) -> int:
    """Optimizer steps of the run. Raises ValueError where they depend on a data set whose size isn't known."""
    if arguments.max_steps is not None:
        return arguments.max_steps
    images = arguments.num_images
    if images is None and arguments.tokens is None:
        images = known_training_images(arguments)
    if images is None:
        source = arguments.tokens or arguments.dataset_name
        raise ValueError(
            f"`num_images` must be given: how many images {source} has to train on isn't known, only of "
            f"{', '.join(KNOWN_SPLITS)}. Or give `max_steps`."
        )
    return math.ceil(arguments.num_train_epochs * math.ceil(images / arguments.total_batch_size))


def planned_tokens(arguments: PlanArguments) -> tuple["TokenLayout | IGPTImageProcessor", list[str]]:
    """The run's tokens, and what is assumed about them."""
    named = arguments.palette or arguments.init_from
    if arguments.tokens is not None and Path(arguments.tokens).is_dir() and named is None:
        named = processor_beside(arguments.tokens)
    if named is not None and Path(named).is_dir():
        from hf_igpt.image_processing_igpt import IGPTImageProcessor

        return IGPTImageProcessor.from_pretrained(named).with_size(grid_size(arguments)), []
    if arguments.token_kind == VQVAE and (arguments.vqvae is None or not Path(arguments.vqvae).is_dir()):
        from hf_igpt.configuration_igpt_vqvae import ImageGPTVQVAEConfig

        config = ImageGPTVQVAEConfig()
        layout = code_layout(arguments, config.codebook_size, config.downsampling)
        return layout, [
            f"The VQ-VAE is not here: {config.codebook_size} codes of {config.downsampling} x {config.downsampling} "
            "pixels are assumed."
        ]
    layout = token_layout(arguments)
    if arguments.palette is None:
        return layout, []
    return layout, [f"The palette {arguments.palette} is not here: {layout.num_values} colours are assumed."]


def _on_device(arguments: PlanArguments, config: ImageGPTConfig, images: int, name: str) -> dict[str, Any]:
    count = arguments.devices
    precision = resolved_precision(name, arguments.precision)
    device = planned_device(name, precision, arguments.measured_flops)
    per_device, accumulation = split_batch(arguments, count)
    asked = TrainingSetting(
        images=per_device,
        is_half=precision != "fp32",
        on_cpu=name == "cpu",
        attention=arguments.attn_implementation,
        gradient_checkpointing=arguments.gradient_checkpointing,
        accumulates=accumulation > 1,
        devices=count,
        sharding=arguments.sharding,
        dropout=arguments.dropout > 0,
        optimizer=arguments.optimizer,
    )
    usable = int(device.memory_bytes * device.usable_memory)
    fitting = _first_that_fits(config, asked, per_device * accumulation, usable)
    utilization = device.utilization(config.hidden_size) if arguments.utilization is None else arguments.utilization
    row = {
        "device": name,
        "count": count,
        "precision": precision,
        **dataclasses.asdict(device),
        "utilization": utilization,
        "usable_bytes": usable,
        "setting": _described(asked),
        "memory": training_memory(config, asked).by_part(),
        "fits": fitting == asked,
        "fitting_setting": fitting and _described(fitting),
        "cache_bytes_per_image": cache_bytes(config, 1, asked.product_bytes) if config.is_causal else None,
        "images_per_second": None,
        "seconds": None,
    }
    if fitting is not None:
        share = per_device * accumulation
        # The rate that a run has reached counts what a step needs, whatever the run computed twice.
        is_reached = device.peak_source == REACHED
        needed = training_flops(config)
        executed = share * (needed if is_reached else executed_flops(config, fitting.gradient_checkpointing))
        least = device.least_step_seconds(config.num_hidden_layers, share // fitting.images)
        step = max(executed / (device.peak_flops * utilization), least)
        row["images_per_second"] = arguments.total_batch_size / step
        row["seconds"] = images / row["images_per_second"]
        row["fitting_memory"] = training_memory(config, fitting).by_part()
    return row


def _first_that_fits(
    config: ImageGPTConfig, asked: TrainingSetting, images_a_step: int, usable: int
) -> TrainingSetting | None:
    """The setting asked for where it fits; otherwise what costs least time among those that fit; None for nothing."""
    for setting in _settings(asked, images_a_step):
        if training_memory(config, setting).peak <= usable:
            return setting
    return None


def _settings(asked: TrainingSetting, images_a_step: int) -> Iterator[TrainingSetting]:
    """Fewer images at once cost nothing to speak of, sharding an exchange, checkpointing a third more products."""
    can_shard = asked.sharding == "none" and asked.devices > 1 and asked.optimizer != MUON
    shardings = ("none", "full") if can_shard else (asked.sharding,)
    checkpointing = (False, True) if not asked.gradient_checkpointing else (True,)
    batches = [images for images in range(asked.images, 0, -1) if images_a_step % images == 0]
    for again in checkpointing:
        for sharding in shardings:
            for images in batches:
                yield dataclasses.replace(
                    asked,
                    images=images,
                    accumulates=images < images_a_step,
                    gradient_checkpointing=again,
                    sharding=sharding,
                )


def _described(setting: TrainingSetting) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": setting.images,
        "gradient_checkpointing": setting.gradient_checkpointing,
        "sharding": setting.sharding,
    }
