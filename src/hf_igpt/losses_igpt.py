"""Losses in nats, as means over images that add up over batches, accumulation steps and processes."""

import torch
import torch.nn.functional as F


def mean_cross_entropy(
    logits: torch.Tensor, labels: torch.LongTensor, num_items: torch.Tensor | int | None
) -> torch.Tensor:
    """Mean over the labels in nats; or their sum over `num_items`, so that the shares of several batches add up."""
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    loss = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten().to(logits.device, torch.long),
        reduction="mean" if num_items is None else "sum",
    )
    if num_items is None:
        return loss
    return loss / (num_items.to(loss.device) if torch.is_tensor(num_items) else num_items)


def masked_cross_entropy(
    logits: torch.Tensor, labels: torch.LongTensor, bool_masked_pos: torch.BoolTensor
) -> torch.Tensor:
    """
    Mean over each image's masked tokens, then over images, in nats per masked token (openai/image-gpt, src/model.py
    201-204). An image with nothing masked counts as 0.

    Args:
        logits: of shape (B, T, V).
        labels: of shape (B, T).
        bool_masked_pos: True where a token is scored, of shape (B, T).
    """
    return masked_mean(token_nats(logits, labels), bool_masked_pos).mean()


def token_nats(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Negative log-likelihood of every token in nats, of shape (B, T); in float32 for half-precision logits."""
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    labels = labels.to(logits.device, torch.long)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def masked_mean(values: torch.Tensor, bool_masked_pos: torch.BoolTensor) -> torch.Tensor:
    """Mean of values (B, T) over each image's masked tokens, of shape (B,); 0 where nothing is masked."""
    mask = bool_masked_pos.to(values.device)
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def share(mean_loss: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """What a mean over `labels` contributes to the mean over `num_items` labels of several batches."""
    # In this order, for a quotient of integers would be rounded to float32.
    return mean_loss if num_items is None else mean_loss * labels.numel() / num_items


__all__ = ["masked_cross_entropy", "masked_mean", "mean_cross_entropy", "share", "token_nats"]
