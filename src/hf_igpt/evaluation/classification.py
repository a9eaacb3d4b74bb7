"""What a classifier says of every image of a split, under one mask or several."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.masking import Masking
from hf_igpt.evaluation.ensembles import majority
from hf_igpt.evaluation.likelihood import score_images


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.modeling_igpt import ImageGPTForImageClassification


@dataclass(frozen=True)
class Classification:
    """
    Votes and losses of every image, in the split's order.

    Args:
        labels: the images' classes, int64 of shape (images,).
        votes: predicted classes, int64 of shape (masks, images); one row for a model without masks.
        class_nats: cross-entropy of the class in nats, float64 of shape (masks, images).
        generative_nats: the pretraining's loss in nats per token, or per hidden one, float64 of shape (masks, images);
            None for a model without that loss.
        num_classes: classes of the model.
        generative_weight: weight of the generative loss in the model's.
    """

    labels: np.ndarray
    votes: np.ndarray
    class_nats: np.ndarray
    generative_nats: np.ndarray | None
    num_classes: int
    generative_weight: float = 0.0

    @property
    def class_loss(self) -> float:
        """Mean over images and masks."""
        return float(self.class_nats.mean())

    @property
    def generative_loss(self) -> float | None:
        """Mean over images and masks."""
        return None if self.generative_nats is None else float(self.generative_nats.mean())

    @property
    def loss(self) -> float:
        """What the model is trained on: the class loss and, at its weight, the generative one."""
        return self.class_loss + self.generative_weight * (self.generative_loss or 0.0)

    @property
    def single_mask_accuracy(self) -> float:
        """Share of right votes, each on its own."""
        return float((self.votes == self.labels).mean())

    def accuracy(self, seed: int = 0) -> float:
        """Share of images whose class most masks vote for, ties at random by seed (paper, section 4.6)."""
        return float((majority(self.votes, self.num_classes, seed) == self.labels).mean())

    def metrics(self, seed: int = 0) -> dict[str, float | int | None]:
        """Figures for a results JSON. With several masks also what one of them gives in the mean."""
        metrics = {
            "accuracy": self.accuracy(seed),
            "class_loss": self.class_loss,
            "generative_loss": self.generative_loss,
            "num_images": len(self.labels),
            "ensemble_masks": len(self.votes),
        }
        if len(self.votes) > 1:
            metrics["single_mask_accuracy"] = self.single_mask_accuracy
        return metrics


def classify(
    model: "ImageGPTForImageClassification",
    tokens: "Dataset | np.ndarray",
    labels: np.ndarray,
    *,
    masking: Masking | None = None,
    num_masks: int = 1,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Classification:
    """
    Classifies every image once, or once under each mask. With several processes each takes a share, and all of them
    return the whole.

    Args:
        model: scored in evaluation mode, on its own device and in its own dtype.
        tokens: a tokenized split, or an integer array of shape (images, tokens) without the start token.
        labels: the images' classes, int64 of shape (images,).
        masking: for masked models, draws the masks; by default nothing is hidden.
        num_masks: masks of each image.
        batch_size: images at once on one device.
        progress: called with the number of images of each finished batch.

    Raises:
        ValueError: a masking for a next-pixel model, several masks without a masking, labels of another number or out
            of range, or an image whose loss is not finite.
    """
    config = model.config
    if config.is_causal and masking is not None:
        raise ValueError("A next-pixel model has no masks: leave `masking` out.")
    if num_masks < 1 or (masking is None and num_masks > 1):
        raise ValueError(f"`num_masks` must be 1, or more with a `masking`, got {num_masks}.")
    if labels.shape != (len(tokens),) or (labels.size and not (0 <= labels.min() <= labels.max() < config.num_labels)):
        raise ValueError(
            f"`labels` must be {len(tokens)} classes from 0 to {config.num_labels - 1}, got an array of shape "
            f"{list(labels.shape)}{f' from {labels.min()} to {labels.max()}' if labels.size else ''}."
        )

    def score(model: Any, batch: Any, images: np.ndarray) -> Any:
        import torch

        classes, columns = torch.from_numpy(labels[images]).to(batch.device), []
        for number in range(num_masks):
            mask = None
            if masking is not None:
                mask = torch.from_numpy(masking(0, images, (number, num_masks))).to(batch.device)
            columns += _score_mask(model, batch, classes, mask)
        return torch.stack([column.double() for column in columns], dim=1)

    numbers = score_images(model, tokens, score, batch_size, progress, "loss")
    votes, *nats = numbers.reshape(len(labels), num_masks, -1).transpose(2, 1, 0)
    weight = config.generative_loss_weight
    return Classification(
        labels, votes.astype(np.int64), nats[0], nats[1] if weight else None, config.num_labels, weight
    )


def _score_mask(model: Any, tokens: Any, classes: Any, mask: Any) -> list[Any]:
    """Vote, class loss and, where the model has one, generative loss of every image: tensors of shape (batch,)."""
    import torch.nn.functional as F

    from hf_igpt.losses_igpt import masked_mean, token_nats

    config = model.config
    layer = config.num_hidden_layers if config.pooler_layer is None else config.pooler_layer
    needs_hidden_states = layer < config.num_hidden_layers
    outputs = model.transformer.encode(tokens, output_hidden_states=needs_hidden_states, bool_masked_pos=mask)
    logits = model.score(model.transformer._pool(outputs, layer)).double()
    columns = [logits.argmax(dim=1), F.cross_entropy(logits, classes, reduction="none")]
    if config.generative_loss_weight:
        nats = token_nats(model.lm_head(outputs.last_hidden_state), tokens).double()
        if config.is_causal:
            columns.append(nats.mean(dim=1))
        else:
            columns.append(nats.new_zeros(len(tokens)) if mask is None else masked_mean(nats, mask))
    return columns
