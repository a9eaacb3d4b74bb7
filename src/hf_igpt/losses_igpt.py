"""
Losses in nats, as means over images that add up over batches, accumulation steps and processes.

Logits have a number for every value that a token can have, and a plain cross entropy keeps them twice, in
float32 whatever they were. Here it works on blocks of tokens: `token_nats` keeps the logits as they are given, and
`head_nats` never holds those of all tokens.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


# Logits of one block. On a CPU 1 MB in float32, which stays in the cache; elsewhere enough to fill the device.
CPU_BLOCK_LOGITS = 1 << 18
BLOCK_LOGITS = 1 << 24
# Blocks of the head: every one is a matrix product, and a piece of the compiled graph.
MAX_HEAD_BLOCKS = 16
IGNORED = -100


def mean_over(nats: torch.Tensor, labels: torch.LongTensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """
    Mean of `nats` (B, T) over the labels that aren't -100; or their sum over `num_items`, so that the shares of
    several batches add up.
    """
    if num_items is None:
        return nats.sum() / (labels != IGNORED).sum().to(nats.device)
    return nats.sum() / (num_items.to(nats.device) if torch.is_tensor(num_items) else num_items)


def token_nats(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """
    Negative log-likelihood of every token in nats, in float32 for half-precision logits; 0 where the label is -100.

    Args:
        logits: of shape (B, T, V).
        labels: of shape (B, T).

    Returns:
        A tensor of shape (B, T). For the backward pass it keeps the logits and no copy of them.
    """
    rows, flat = logits.flatten(0, 1), labels.flatten().to(logits.device, torch.long)
    if logits.numel() <= _block_logits(logits) or _is_traced() or type(rows) is not torch.Tensor:
        # One block, or a compiler that makes the same of it.
        rows = rows.to(torch.promote_types(torch.float32, rows.dtype))
        return F.cross_entropy(rows, flat, reduction="none", ignore_index=IGNORED).view(labels.shape)
    return _BlockNats.apply(rows, flat).view(labels.shape)


def head_nats(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.LongTensor,
    num_values: int,
) -> torch.Tensor:
    """
    `token_nats(head(hidden_states), labels)`, block by block: the logits of a block are dropped at once, and computed
    again in the backward pass, which costs one more product of the head's size.

    Args:
        head: a linear layer from (N, C) to (N, V).
        hidden_states: of shape (B, T, C).
        labels: of shape (B, T).
        num_values: V.
    """
    rows, flat = hidden_states.flatten(0, 1), labels.flatten().to(hidden_states.device, torch.long)
    block = max(_block_logits(rows) // num_values, math.ceil(len(rows) / MAX_HEAD_BLOCKS), 1)
    score = functools.partial(_block_nats, head)
    if torch.is_grad_enabled():
        score = functools.partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    blocks = [score(x, y) for x, y in zip(rows.split(block), flat.split(block), strict=True)]
    return torch.cat(blocks).view(labels.shape)


def masked_mean(values: torch.Tensor, bool_masked_pos: torch.BoolTensor) -> torch.Tensor:
    """
    Mean of values (B, T) over each image's masked tokens, of shape (B,); 0 where nothing is masked (openai/image-gpt,
    src/model.py 201-204).
    """
    mask = bool_masked_pos.to(values.device)
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def share(mean_loss: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """What a mean over `labels` contributes to the mean over `num_items` labels of several batches."""
    # In this order, for a quotient of integers would be rounded to float32.
    return mean_loss if num_items is None else mean_loss * labels.numel() / num_items


def _block_nats(head: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, labels: torch.Tensor):
    return token_nats(head(rows)[None], labels[None])[0]


def _block_logits(tensor: torch.Tensor) -> int:
    return CPU_BLOCK_LOGITS if tensor.device.type == "cpu" else BLOCK_LOGITS


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class _BlockNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(torch.float32, logits.dtype)
        log_norms = logits.new_empty(len(logits), dtype=dtype)
        for x, norm in _row_blocks(logits, log_norms):
            torch.logsumexp(x.to(dtype), dim=-1, out=norm)
        ctx.save_for_backward(logits, labels, log_norms)
        scored = labels != IGNORED
        chosen = logits.gather(1, torch.where(scored, labels, 0)[:, None])[:, 0]
        return torch.where(scored, log_norms - chosen, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nats: torch.Tensor):
        logits, labels, log_norms = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        scored = labels != IGNORED
        columns, scales = torch.where(scored, labels, 0), torch.where(scored, grad_nats, 0)
        for x, norm, column, scale, out in _row_blocks(logits, log_norms, columns, scales, grad_logits):
            softmax = out if out.dtype == norm.dtype else torch.empty_like(out, dtype=norm.dtype)
            torch.sub(x, norm[:, None], out=softmax).exp_()
            softmax.mul_(scale[:, None])
            softmax.scatter_(1, column[:, None], softmax.gather(1, column[:, None]) - scale[:, None])
            if softmax is not out:
                out.copy_(softmax)
        return grad_logits, None


def _row_blocks(logits: torch.Tensor, *others: torch.Tensor):
    rows = max(1, _block_logits(logits) // logits.shape[-1])
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)


__all__ = ["head_nats", "masked_mean", "mean_over", "share", "token_nats"]
