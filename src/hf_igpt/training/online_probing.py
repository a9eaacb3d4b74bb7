"""Probes by SGD or with attentive pooling, trained on a frozen backbone: training, choice, results."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_igpt.data.masking import Masking
from hf_igpt.evaluation.features import default_batch_size
from hf_igpt.evaluation.online_probes import OnlineProbes, online_votes
from hf_igpt.evaluation.probes import add_test_accuracy, best_row
from hf_igpt.processes import process_state, use_cpu
from hf_igpt.training.jobs import token_dataset
from hf_igpt.training.online_probe_arguments import EPOCHS
from hf_igpt.training.run_folder import run_folder
from hf_igpt.training.runs import train_to_the_end
from hf_igpt.training.trainer_arguments import split_batch


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel
    from hf_igpt.training.online_probe_arguments import OnlineProbeOptions
    from hf_igpt.training.trainer import IGPTTrainer

logger = logging.getLogger(__name__)

MOMENTUM = 0.9


@dataclass(frozen=True)
class OnlineProbeSettings:
    """
    What is probed, and how.

    Args:
        solver: "sgd", linear probes of mean-pooled features (paper, section 3.4: momentum 0.9, cosine), or
            "attentive", probes that learn their pooling, by AdamW.
        num_classes: classes are 0 to `num_classes` - 1.
        layers: those to probe.
        concatenate: neighbouring layers put side by side, for sgd.
        normed: see `extract_features`.
        standardize: give every feature mean 0 and variance 1, over the first training images.
        masking: for masked models, what hides tokens, drawn anew in every epoch.
        num_masks: masks of every test image that vote together.
        seed: of first weights, order of the images, augmentation and ties.
        batch_size: images at once in evaluation; by default what suits the device.
    """

    solver: str
    num_classes: int
    layers: Sequence[int]
    concatenate: int = 1
    normed: bool = True
    standardize: bool = True
    masking: Masking | None = None
    num_masks: int = 1
    seed: int = 0
    batch_size: int | None = None


def train_online_probes(
    model: "ImageGPTPreTrainedModel",
    processor: "IGPTImageProcessor",
    tokens: "Mapping[str, Dataset]",
    labels: Mapping[str, np.ndarray],
    settings: OnlineProbeSettings,
    options: "OnlineProbeOptions",
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """
    Trains probes of every layer at every learning rate together, one pass of the backbone for all of them, and returns
    what `fit_probes` returns. The rate of each layer is chosen by validation accuracy, then by validation loss.
    Interrupted, it goes on from its newest checkpoint.

    Args:
        model: a backbone or any of its heads, on its device; nothing of it is changed.
        tokens, labels: of the splits "train", "validation" and "test".
        folder: for checkpoints.
        identity: what decides the numbers; another run's folder is refused.

    Raises:
        ValueError: what `OnlineProbes`, `TokenDataset` and `split_batch` refuse.
        TrainingStopped: training had to end early.
    """
    split_batch(options)
    rates = options.rates(settings.solver)
    probes = _build_probes(model, settings, options, len(rates))
    batch_size = settings.batch_size or default_batch_size(model.config.n_positions, model.device.type)
    train = token_dataset(
        tokens["train"],
        processor,
        augment=options.augmentation,
        seed=settings.seed,
        padding=options.augmentation_padding,
    )
    if settings.standardize:
        probes.standardize(tokens["train"], settings.masking, batch_size)
    holding = run_folder(folder, identity) if process_state().is_main_process else contextlib.nullcontext()
    with holding:
        trainer = _build_trainer(probes, train, settings, options, rates, folder)
        train_to_the_end(trainer, "Give `--per_device_train_batch_size {smaller}`, or fewer `--layers`.")

    def votes(split: str, mask: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return online_votes(
            probes, tokens[split], labels[split], masking=settings.masking, mask=mask, batch_size=batch_size
        )

    predictions, nats = votes("validation", (0, 1))
    chosen, rows = _choose_rates(
        predictions == labels["validation"], nats, settings.layers, rates, options.weight_decay
    )

    def predict(mask: int) -> np.ndarray:
        predictions, _ = votes("test", (mask, settings.num_masks))
        return predictions[chosen, range(len(chosen))]

    add_test_accuracy(rows, predict, settings.num_masks, labels["test"], settings.num_classes, settings.seed)
    best = best_row(rows)
    _warn_at_an_end(best["learning_rate"], rates)
    return {"layers": rows, "best": best, "optimizer_steps": trainer.state.global_step}


def _build_probes(
    model: "ImageGPTPreTrainedModel", settings: OnlineProbeSettings, options: "OnlineProbeOptions", num_rates: int
) -> OnlineProbes:
    return OnlineProbes(
        model,
        settings.num_classes,
        settings.layers,
        num_rates,
        attentive=settings.solver == "attentive",
        num_heads=options.pooling_heads,
        concatenate=settings.concatenate,
        normed=settings.normed,
        seed=settings.seed,
    ).to(model.device)


def _choose_rates(
    right: np.ndarray, nats: np.ndarray, layers: Sequence[int], rates: Sequence[float], penalty: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """
    The rate of each layer, by its number, and what is reported of the layer. `right` and `nats` are of validation
    images, (rates, layers, images).
    """
    accuracies, losses = right.mean(axis=-1), nats.mean(axis=-1)
    chosen, rows = [], []
    for column, layer in enumerate(layers):
        rate = max(range(len(rates)), key=lambda row: (accuracies[row, column], -losses[row, column]))
        chosen.append(rate)
        rows.append(
            {
                "layer": layer,
                "learning_rate": rates[rate],
                "penalty": penalty,
                "validation_accuracy": float(accuracies[rate, column]),
                "validation_loss": float(losses[rate, column]),
            }
        )
    return chosen, rows


def _warn_at_an_end(best: float, rates: Sequence[float]) -> None:
    if len(rates) > 1 and best in (min(rates), max(rates)):
        logger.warning(
            "The best probe has learning rate %g, at an end of those tried: give `--learning_rates` beyond it.", best
        )


def _build_trainer(
    probes: OnlineProbes,
    train: Any,
    settings: OnlineProbeSettings,
    options: "OnlineProbeOptions",
    rates: Sequence[float],
    folder: Path,
) -> "IGPTTrainer":
    from hf_igpt.data.loading import ClassCollator
    from hf_igpt.training.trainer import IGPTTrainer

    config = probes.backbone.config
    groups = [
        {"params": list(heads.parameters()), "lr": rate} for heads, rate in zip(probes.heads, rates, strict=True)
    ]
    if settings.solver == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups, momentum=MOMENTUM, weight_decay=options.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    return IGPTTrainer(
        probes,
        _training_arguments(settings, options, max(rates), folder),
        train_dataset=train,
        data_collator=ClassCollator(
            config.num_values, config.n_positions, num_classes=settings.num_classes, masking=settings.masking
        ),
        optimizers=(optimizer, None),
    )


def _training_arguments(
    settings: OnlineProbeSettings, options: "OnlineProbeOptions", learning_rate: float, folder: Path
) -> "TrainingArguments":
    from transformers import TrainingArguments

    per_device, accumulation = split_batch(options)
    return TrainingArguments(
        output_dir=str(folder),
        seed=settings.seed,
        data_seed=settings.seed,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=options.num_train_epochs or EPOCHS,
        max_steps=options.max_steps or -1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        # A norm over all of them would couple probes that have nothing to do with each other.
        max_grad_norm=0.0,
        dataloader_num_workers=options.dataloader_num_workers,
        dataloader_persistent_workers=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=use_cpu(),
        remove_unused_columns=False,
        eval_strategy="no",
        save_steps=options.save_steps,
        save_total_limit=1,
        logging_steps=50,
        report_to=[],
    )
