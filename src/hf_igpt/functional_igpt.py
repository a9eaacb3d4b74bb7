"""
The norm and the activation of Image GPT, with backward passes that keep less memory than autograd's.

On a CPU in eager mode, the many steps of a norm or an activation of a large tensor each write a tensor of that size,
and fresh memory costs more than the arithmetic. Here they run in blocks that stay in the cache and save only their
input. Elsewhere torch's own kernels, or the compiler, do better.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# Elements of one block: 512 kB in float32, the second-level cache of one core.
BLOCK_ELEMENTS = 1 << 17
# Tensors below this size stay in the cache by themselves: there, torch's own steps cost less than Python's.
SMALL_ELEMENTS = 1 << 19
QUICK_GELU_SCALE = 1.702


def rms_norm(hidden_states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`hidden_states` (..., C) over their root mean square along C, times `weight` (C,); statistics in float32 up."""
    if _runs_in_blocks(hidden_states, weight):
        return _BlockRMSNorm.apply(hidden_states, weight, eps)
    return F.rms_norm(hidden_states, weight.shape, weight, eps)


def quick_gelu(hidden_states: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), elementwise (openai/image-gpt, src/model.py 28)."""
    if _runs_in_blocks(hidden_states):
        return _BlockQuickGELU.apply(hidden_states)
    return hidden_states * torch.sigmoid(QUICK_GELU_SCALE * hidden_states)


@contextlib.contextmanager
def recomputed_for_backward(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor, enabled: bool = True
) -> Iterator[torch.Tensor]:
    """
    Yields `function(*inputs)` for use as the input of a linear layer inside the `with` block. What the layer saves of
    it is dropped and computed again in the backward pass. `function` must be cheap and without randomness.
    """
    output = function(*inputs)
    if not (enabled and output.requires_grad and is_large_on_cpu(output)):
        yield output
        return
    detached = [tensor.detach() for tensor in inputs]
    # The hooks live as long as the graph: `output` itself must not be among what they hold.
    address, size, dtype = output.data_ptr(), output.numel(), output.dtype

    def pack(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.Size, tuple[int, ...]]:
        is_output = tensor.data_ptr() == address and tensor.numel() == size and tensor.dtype == dtype
        return (tensor.shape, tensor.stride()) if is_output else tensor

    def unpack(packed: torch.Tensor | tuple[torch.Size, tuple[int, ...]]) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        with torch.no_grad():
            return function(*detached).as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield output


def is_large_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether a function of its own pays for a tensor, in eager mode, where nothing else has to see through it."""
    is_eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    return tensor.device.type == "cpu" and is_eager and tensor.numel() >= SMALL_ELEMENTS


def _runs_in_blocks(*tensors: torch.Tensor) -> bool:
    first = tensors[0]
    is_full_precision = all(tensor.dtype == first.dtype for tensor in tensors) and first.dtype in (
        torch.float32,
        torch.float64,
    )
    return is_full_precision and first.is_contiguous() and is_large_on_cpu(first) and type(first) is torch.Tensor


def _row_blocks(width: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    rows = max(1, BLOCK_ELEMENTS // width)
    return zip(*(tensor.view(-1, tensor.shape[-1]).split(rows) for tensor in tensors), strict=True)


class _BlockRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        width = hidden_states.shape[-1]
        output = torch.empty_like(hidden_states)
        inverse = hidden_states.new_empty(*hidden_states.shape[:-1], 1)
        for x, y, scale in _row_blocks(width, hidden_states, output, inverse):
            torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=scale)
            scale.square_().div_(width).add_(eps).rsqrt_()
            torch.mul(x, scale, out=y).mul_(weight)
        ctx.save_for_backward(hidden_states, weight, inverse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        hidden_states, weight, inverse = ctx.saved_tensors
        width = hidden_states.shape[-1]
        grad_input = torch.empty_like(hidden_states)
        grad_weight = torch.zeros_like(weight)
        for x, scale, grad, out in _row_blocks(width, hidden_states, inverse, grad_output.contiguous(), grad_input):
            normed = x * scale
            torch.mul(grad, normed, out=out)
            grad_weight.add_(out.sum(dim=0))
            projection = torch.mv(out, weight).div_(width).unsqueeze_(-1)
            torch.mul(grad, weight, out=out)
            out.sub_(normed.mul_(projection)).mul_(scale)
        return grad_input, grad_weight, None


class _BlockQuickGELU(torch.autograd.Function):
    # x * sigmoid(a x) = silu(a x) / a, and torch has silu and its derivative in one step each.
    @staticmethod
    def forward(ctx, hidden_states: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden_states)
        output = torch.empty_like(hidden_states)
        for x, y in zip(*(t.view(-1).split(BLOCK_ELEMENTS) for t in (hidden_states, output)), strict=True):
            torch.mul(x, QUICK_GELU_SCALE, out=y)
            F.silu(y, inplace=True).mul_(1 / QUICK_GELU_SCALE)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        (hidden_states,) = ctx.saved_tensors
        grad_input = torch.empty_like(hidden_states)
        tensors = (hidden_states, grad_output.contiguous(), grad_input)
        for x, grad, out in zip(*(t.view(-1).split(BLOCK_ELEMENTS) for t in tensors), strict=True):
            torch.ops.aten.silu_backward.grad_input(grad, x * QUICK_GELU_SCALE, grad_input=out)
        return grad_input


__all__ = ["is_large_on_cpu", "quick_gelu", "recomputed_for_backward", "rms_norm"]
