"""The Trainer of a classifier: validation by exact accuracy, early stopping, and rates that fall with depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_igpt.data.masking import Masking
from hf_igpt.evaluation.classification import Classification, classify
from hf_igpt.training.trainer import IGPTTrainer


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

# What Trainer chooses the best checkpoint by.
METRIC = "eval_accuracy"


@dataclass(frozen=True)
class LabelledTokens:
    """
    A split to classify.

    Args:
        tokens: a tokenized split.
        labels: its classes, int64 of shape (images,).
    """

    tokens: "Dataset"
    labels: "np.ndarray"

    def __len__(self) -> int:
        return len(self.labels)


class FinetuneTrainer(IGPTTrainer):
    """
    Takes what IGPTTrainer takes, with `LabelledTokens` to evaluate on.

    Args:
        masking: draws the masks of a masked model in evaluation; None for a next-pixel model.
        patience: training stops after so many validations without a better accuracy; None never stops it. A function
            of the log alone, so that a resumed run stops where it would have stopped.
        layer_decay: factor of the learning rate from each block to the one below it.
    """

    def __init__(
        self,
        *args: Any,
        masking: Masking | None = None,
        patience: int | None = None,
        layer_decay: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.masking, self.patience, self.layer_decay = masking, patience, layer_decay

    def _check_fsdp(self) -> None:
        # Its evaluation calls parts of the model, which FSDP does not put together.
        raise ValueError("Fine-tuning does not shard the model: leave `--config_file` out, or take `ddp`.")

    # Evaluation

    def classify(self, split: LabelledTokens, num_masks: int = 1) -> Classification:
        """What the model says of a split, at the precision that it trains in."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with self.accelerator.autocast():
            return classify(
                model,
                split.tokens,
                split.labels,
                masking=self.masking,
                num_masks=num_masks,
                batch_size=self.args.per_device_eval_batch_size,
            )

    def evaluate(
        self,
        eval_dataset: LabelledTokens | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss, its two parts, and accuracy, over every image once, whatever the batches and processes."""
        with self._outside_throughput():
            classified = self.classify(self.eval_dataset if eval_dataset is None else eval_dataset)
        values = {
            "loss": classified.loss,
            "class_loss": classified.class_loss,
            "generative_loss": classified.generative_loss,
            "accuracy": classified.accuracy(),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self._is_done():
            self.control.should_training_stop = True
        return metrics

    # The end

    def _is_done(self) -> bool:
        if self.patience is None:
            return False
        accuracies = [entry[METRIC] for entry in self.state.log_history if METRIC in entry]
        return evaluations_since_best(accuracies) >= self.patience

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Killed between the checkpoint that ended it and the model, a run must not train on.
        if self._is_done():
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # The optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in Trainer; with a decay, one group for each depth, the head's first."""
        model = self.model if model is None else model
        if self.optimizer is None and self.layer_decay != 1:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            groups = layer_groups(model, self.args.learning_rate, self.layer_decay, self.args.weight_decay, decayed)
            self.optimizer = optimizer_class(groups, **options)
        return super().create_optimizer(model)


def evaluations_since_best(accuracies: Sequence[float]) -> int:
    """Evaluations after the best one; of equal ones the first counts, as it does for Trainer."""
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0


def layer_groups(
    model: nn.Module, learning_rate: float, layer_decay: float, weight_decay: float, decayed: set[str]
) -> list[dict[str, Any]]:
    """
    Parameter groups with the rate `learning_rate * layer_decay ** distance`: 0 for the heads and the final norm, 1 for
    the last block, and so on down to the embeddings (BEiT, arXiv 2106.08254). From the top down.

    Args:
        decayed: names of the parameters that have weight decay.
    """
    blocks = model.config.num_hidden_layers
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((distance_from_top(name, blocks), name in decayed), []).append(parameter)
    return [
        {
            "params": groups[distance, is_decayed],
            "lr": learning_rate * layer_decay**distance,
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for distance, is_decayed in sorted(groups)
    ]


def distance_from_top(name: str, num_blocks: int) -> int:
    """Of a classifier's parameter: 0 for heads and final norm, `num_blocks` + 1 for the embeddings."""
    parts = name.split(".")
    if "h" in parts:
        return num_blocks - int(parts[parts.index("h") + 1])
    return num_blocks + 1 if "wte" in parts or "wpe" in parts else 0
