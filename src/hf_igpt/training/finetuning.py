"""Fine-tuning from a checkpoint to a classifier, in stages: tokens, training, model, results."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.data.augmentation import RESIZED_CROP
from hf_igpt.training.finetune_data import LabelledData, labelled_data, train_examples
from hf_igpt.training.jobs import check_backend, check_centre_crop, throughput_of
from hf_igpt.training.run_folder import run_identity
from hf_igpt.training.runs import run_training
from hf_igpt.training.trainer_arguments import split_batch, trackers, training_arguments


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import (
        ImageGPTForCausalImageModeling,
        ImageGPTForImageClassification,
        ImageGPTForMaskedImageModeling,
    )
    from hf_igpt.training.finetune_arguments import FinetuneArguments
    from hf_igpt.training.finetune_trainer import FinetuneTrainer

TOKENS, CURVE = "tokens", "curve.png"
# How many times lower the learning rate is than in pretraining (paper, section 3.4).
LOWER_RATE = 10


@dataclass(frozen=True)
class Checkpoint:
    """
    What is fine-tuned.

    Args:
        name: folder or Hub name.
        model: with the head that it was pretrained with.
        processor: its image processor.
        digest: SHA-256 of its weights.
        record: what results say of it.
    """

    name: str
    model: "ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling"
    processor: "IGPTImageProcessor"
    digest: str
    record: dict[str, Any]


def finetune(
    arguments: "FinetuneArguments", checkpoint: Checkpoint, load_tokens: Callable[[Path], "DatasetDict"]
) -> dict[str, Any]:
    """
    Does what `hf-igpt finetune` does and returns the contents of results.json.

    Args:
        load_tokens: gives the tokenized images with their classes. May write them into the folder that it is given.

    Raises:
        ValueError: bad options, bad data, or an output folder of another run.
        TrainingStopped: training had to end early; the last good checkpoint is kept.
    """
    settings = _check(arguments, checkpoint)
    folder = Path(arguments.output_dir)
    # Tokens that exist are read first: nothing is written where they don't fit.
    tokens = load_tokens(folder / TOKENS) if arguments.dataset_name is None else None
    checked = None if tokens is None else labelled_data(settings, tokens)

    def build() -> "tuple[FinetuneTrainer, LabelledData]":
        data = checked or labelled_data(settings, load_tokens(folder / TOKENS))
        return _build_trainer(settings, checkpoint, data), data

    def measure(trainer: "FinetuneTrainer", data: LabelledData) -> dict[str, Any]:
        return _metrics(trainer, settings, data)

    def record(trainer: "FinetuneTrainer", data: LabelledData, metrics: dict[str, Any]) -> dict[str, Any]:
        return _record(trainer, settings, checkpoint, data)

    return run_training(settings, _identity(settings, checkpoint, tokens), build, measure, record)


# Options


def _check(arguments: "FinetuneArguments", checkpoint: Checkpoint) -> "FinetuneArguments":
    """Everything that can be wrong before data is read; the options with the defaults that depend on others."""
    import matplotlib.figure  # noqa: F401  # if it is missing, that is said here and not after the training

    from hf_igpt.data.augmentation import check_augmentation, check_token_augmentation
    from hf_igpt.data.masking import PAPER_RATE
    from hf_igpt.data.options import mask_options
    from hf_igpt.evaluation.ensembles import ENSEMBLE_MASKS

    config = checkpoint.model.config
    arguments.check()
    split_batch(arguments)
    trackers(arguments.report_to)
    check_backend(arguments.attn_implementation)
    if arguments.augmentation == RESIZED_CROP:
        check_centre_crop(checkpoint.processor)
    else:
        check_augmentation(arguments.augmentation, config.grid, arguments.augmentation_padding)
        check_token_augmentation(arguments.augmentation, checkpoint.processor.token_kind)
    if arguments.pooler_layer is not None and arguments.pooler_layer > config.num_hidden_layers:
        raise ValueError(
            f"`pooler_layer` must be from 0 to {config.num_hidden_layers}, the final norm of {checkpoint.name}, got "
            f"{arguments.pooler_layer}."
        )
    weight = arguments.generative_loss_weight
    defaults = {"mask_rate": PAPER_RATE, "num_masks": ENSEMBLE_MASKS}
    return dataclasses.replace(
        arguments,
        learning_rate=_learning_rate(arguments, checkpoint),
        # From scratch the paper trains on the class alone (section 4.5).
        generative_loss_weight=weight if weight is not None else 0.0 if arguments.from_scratch else 1.0,
        **mask_options(arguments, defaults, config.is_causal, checkpoint.name),
    )


def _learning_rate(arguments: "FinetuneArguments", checkpoint: Checkpoint) -> float:
    from hf_igpt.storage import read_json
    from hf_igpt.training.trainer import TRAINING_ARGUMENTS

    if arguments.learning_rate is not None:
        return arguments.learning_rate
    file = Path(checkpoint.name) / TRAINING_ARGUMENTS
    rate = read_json(file).get("learning_rate") if file.is_file() else None
    if not isinstance(rate, float) or rate <= 0:
        raise ValueError(
            f"{checkpoint.name} does not say at which learning rate it was pretrained ({TRAINING_ARGUMENTS}): give "
            "`--learning_rate`, about a tenth of it."
        )
    return rate if arguments.from_scratch else rate / LOWER_RATE


def _identity(settings: "FinetuneArguments", checkpoint: Checkpoint, tokens: "DatasetDict | None") -> dict[str, Any]:
    """What decides the numbers: where checkpoint and tokens lie does not, what is in them does."""
    identity = run_identity(settings)
    del identity["model"], identity["tokens"]
    identity["checkpoint"] = checkpoint.digest
    if not settings.fold_validation:
        # Other than in pretraining it decides which weights are kept, and when to stop.
        identity["eval_steps"] = settings.eval_steps
    if tokens is not None:
        identity["tokens"] = {split: rows._fingerprint for split, rows in tokens.items()}
    return identity


# Model and training


def classifier_of(
    model: "ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling",
    names: list[str],
    *,
    from_scratch: bool = False,
    attn_implementation: str = "sdpa",
    **fields: Any,
) -> "ImageGPTForImageClassification":
    """
    A classifier in float32 with the backbone of a pretrained model and, where its loss has a generative part, that
    model's head; or with fresh weights of the same shape.

    Args:
        names: the classes in the order of their numbers.
        fields: of the config, changed.
    """
    import torch

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.modeling_igpt import ImageGPTForImageClassification

    classes = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    config = ImageGPTConfig.from_dict(model.config.to_dict() | classes | fields)
    classifier = ImageGPTForImageClassification._from_config(
        config, attn_implementation=attn_implementation, dtype=torch.float32
    )
    if not from_scratch:
        classifier.transformer.load_state_dict(model.transformer.state_dict())
        if config.generative_loss_weight > 0:
            classifier.lm_head.load_state_dict(model.lm_head.state_dict())
    return classifier


def _build_trainer(settings: "FinetuneArguments", checkpoint: Checkpoint, data: LabelledData) -> "FinetuneTrainer":
    from transformers import set_seed

    from hf_igpt.data.loading import ClassCollator
    from hf_igpt.data.masking import masking_for
    from hf_igpt.training.finetune_trainer import METRIC, FinetuneTrainer

    set_seed(settings.seed)
    model = classifier_of(
        checkpoint.model,
        data.names,
        from_scratch=settings.from_scratch,
        attn_implementation=settings.attn_implementation,
        pooler_layer=settings.pooler_layer,
        generative_loss_weight=settings.generative_loss_weight,
        embd_pdrop=settings.dropout,
        resid_pdrop=settings.dropout,
        attn_pdrop=0.0,
    )
    config, count = model.config, len(data.splits["train"])
    steps = settings.eval_steps or math.ceil(count / settings.total_batch_size)
    validates = not settings.fold_validation
    choice = {"load_best_model_at_end": True, "metric_for_best_model": METRIC, "greater_is_better": True}
    training = training_arguments(
        dataclasses.replace(settings, eval_steps=steps),
        count,
        lr_scheduler_type="constant_with_warmup",
        **(choice if validates else {}),
    )
    masking = None if config.is_causal else masking_for(config, settings.mask_rate, settings.seed)
    return FinetuneTrainer(
        model,
        training,
        train_dataset=train_examples(settings, checkpoint.processor, data),
        eval_dataset=data.splits["validation"] if validates else None,
        data_collator=ClassCollator(
            config.num_values, config.n_positions, num_classes=len(data.names), masking=masking
        ),
        processing_class=checkpoint.processor,
        throughput=throughput_of(config, training, settings.total_batch_size),
        masking=masking,
        patience=settings.patience if validates else None,
        layer_decay=settings.layer_decay,
    )


# Results


def _metrics(trainer: "FinetuneTrainer", settings: "FinetuneArguments", data: LabelledData) -> dict[str, Any]:
    return {
        "best_step": trainer.state.best_global_step or trainer.state.global_step,
        **{
            split: trainer.classify(data.splits[split], settings.num_masks or 1).metrics(settings.seed)
            if split in data.splits
            else None
            for split in ("validation", "test")
        },
    }


def _record(
    trainer: "FinetuneTrainer", settings: "FinetuneArguments", checkpoint: Checkpoint, data: LabelledData
) -> dict[str, Any]:
    from hf_igpt.data.token_store import token_meaning
    from hf_igpt.plots import save_loss_curve

    save_loss_curve(trainer.state.log_history, Path(settings.output_dir) / CURVE, unit="loss in nats")
    seeds = {"seed": settings.seed, "split_seed": settings.split_seed, "subset_seed": settings.subset_seed or 0}
    return {
        "seeds": seeds,
        "learning_rate": settings.learning_rate,
        "from_scratch": settings.from_scratch,
        "checkpoint": checkpoint.record,
        "dataset": {
            "name": settings.dataset_name or settings.tokens or "tokens of the pretraining",
            "num_classes": len(data.names),
            "num_images": {split: len(rows) for split, rows in data.splits.items()},
            "source": data.source,
        },
        "tokens": token_meaning(checkpoint.processor),
    }
