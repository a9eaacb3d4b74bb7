"""From a recipe's fields to the arguments of Trainer."""

import math
from typing import TYPE_CHECKING, Any

from hf_igpt.processes import process_state, use_cpu


if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_igpt.training.arguments import PretrainArguments, StepOptions
    from hf_igpt.training.finetune_arguments import FinetuneArguments
    from hf_igpt.training.vqvae_arguments import TrainVQVAEArguments


def training_arguments(
    arguments: "PretrainArguments | FinetuneArguments | TrainVQVAEArguments", num_images: int, **changes: Any
) -> "TrainingArguments":
    """
    Trainer's arguments for a run on so many images: those of pretraining, with `changes` to them.

    Raises:
        ValueError: as the two functions below.
    """
    import torch
    from transformers import TrainingArguments

    steps_per_epoch = math.ceil(num_images / arguments.total_batch_size)
    per_device, accumulation = split_batch(arguments)
    has_validation = not arguments.fold_validation
    has_gpu = torch.cuda.is_available()
    fields = dict(
        output_dir=arguments.output_dir,
        seed=arguments.seed,
        data_seed=arguments.seed,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=arguments.per_device_eval_batch_size,
        num_train_epochs=arguments.num_train_epochs,
        max_steps=arguments.max_steps or -1,
        learning_rate=arguments.learning_rate,
        warmup_steps=round(arguments.warmup_epochs * steps_per_epoch),
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        adam_beta1=arguments.adam_beta1,
        adam_beta2=arguments.adam_beta2,
        max_grad_norm=arguments.max_grad_norm,
        dataloader_num_workers=arguments.dataloader_num_workers,
        ddp_timeout=arguments.ddp_timeout,
        # Workers that stay alive draw from the global generator once, a resumed run once more: dropout would differ.
        dataloader_persistent_workers=False,
        # The next batch is copied while the device works on this one.
        dataloader_pin_memory=has_gpu,
        accelerator_config={"non_blocking": has_gpu},
        use_cpu=use_cpu(),
        remove_unused_columns=False,
        prediction_loss_only=True,
        logging_steps=arguments.logging_steps,
        logging_first_step=True,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=arguments.eval_steps,
        save_steps=arguments.save_steps,
        save_total_limit=arguments.save_total_limit,
        report_to=trackers(arguments.report_to),
        **_precision(arguments.precision),
        **_transformer_fields(arguments),
    )
    return TrainingArguments(**(fields | changes))


def _transformer_fields(arguments: "PretrainArguments | FinetuneArguments | TrainVQVAEArguments") -> dict[str, Any]:
    """What only the training of an Image GPT has options for."""
    from hf_igpt.training.arguments import TrainerOptions

    if not isinstance(arguments, TrainerOptions):
        return {}
    fields = {"weight_decay": arguments.weight_decay, "torch_compile": arguments.torch_compile}
    if arguments.gradient_checkpointing:
        fields |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return fields


def split_batch(arguments: "StepOptions", devices: int | None = None) -> tuple[int, int]:
    """
    Images at once on a device, and accumulation steps, of one optimizer step, on so many devices, by default those of
    this run. Raises ValueError for a remainder.
    """
    devices, total = devices or process_state().num_processes, arguments.total_batch_size
    if total % devices:
        raise ValueError(f"`total_batch_size` must be divisible by the number of devices, got {total} for {devices}.")
    per_device = arguments.per_device_train_batch_size or total // devices
    if (total // devices) % per_device:
        raise ValueError(
            f"`total_batch_size` must be devices x `per_device_train_batch_size` x a whole number of accumulation "
            f"steps, got {total} for {devices} devices with {per_device} images at once. Give another number, or "
            "`--per_device_train_batch_size null` for a whole step's share."
        )
    return per_device, total // devices // per_device


def _precision(precision: str) -> dict[str, bool]:
    if precision == "auto":
        precision = "bf16" if has_fast_bf16() else "fp32"
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}


def has_fast_bf16() -> bool:
    """Whether the device that this process trains on multiplies matrices in bf16 faster than in fp32."""
    import torch

    from hf_igpt.training.devices import has_amx

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return use_cpu() and has_amx()


def trackers(report_to: str) -> list[str]:
    """Trainer's name of the tracker asked for. Raises ValueError where it isn't installed."""
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    if report_to == "auto":
        return ["tensorboard"] if "tensorboard" in available else []
    if report_to == "none":
        return []
    if report_to not in available:
        raise ValueError(
            f"`report_to` must be auto, none or an installed tracker ({', '.join(available) or 'there is none'}), "
            f"got {report_to!r}. For tensorboard: pip install 'hf-igpt[tracking]'."
        )
    return [report_to]
