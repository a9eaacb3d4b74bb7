"""
Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for the matrices of blocks, Adam for the rest.

The step of a matrix is its momentum with all singular values brought near one, so that no direction of a projection
waits for the few that dominate its gradient. Embeddings, norms and the head keep Adam, as Muon's authors advise. It is
not the paper's optimizer. torch's own Muon takes the fused product of queries, keys and values for one matrix and
works in bf16, which is slow on most CPUs.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hf_igpt.modeling_igpt import ImageGPTAttention, ImageGPTMLP


# Coefficients of the quintic iteration, from the source above: steepest at zero, so that few steps do.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Matrices that are orthogonalized at once, in numbers.
MAX_ELEMENTS = 1 << 26


class MuonAdamW(torch.optim.Optimizer):
    """
    One optimizer, so that schedules and checkpoints treat it as any other. Groups with `parts` are Muon's, see
    `muon_groups`: matrices that consist of so many square or oblong ones, one under the other.

    Raises:
        ValueError: a parameter of Muon's isn't a matrix, or isn't of so many parts.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"parts": None})
        for group in self.param_groups:
            for parameter in group["params"] if group["parts"] else ():
                if parameter.dim() != 2 or parameter.shape[0] % group["parts"]:
                    raise ValueError(
                        f"`parts` is {group['parts']} for a parameter of shape {list(parameter.shape)}: Muon takes "
                        "matrices whose rows divide by it. Leave others to Adam."
                    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step over all groups; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["weight_decay"]:
                for parameter in parameters:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["parts"]:
                self._muon(group, parameters)
            else:
                self._adam(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's
            for part, part_update in zip(parameter.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                by_shape[tuple(part.shape)].append((part, part_update))
        for (rows, columns), pairs in by_shape.items():
            # A taller matrix makes a smaller change to its output; the source's factor.
            size = group["lr"] * max(1.0, rows / columns) ** 0.5
            at_once = max(1, MAX_ELEMENTS // (rows * columns))
            for first in range(0, len(pairs), at_once):
                parts, updates = zip(*pairs[first : first + at_once], strict=True)
                for part, update in zip(parts, orthogonalized(torch.stack(updates)), strict=True):
                    part.add_(update, alpha=-size)

    def _adam(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            step = state["step"].item()
            state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            spread = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - beta1**step))


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """
    The matrices (N, rows, columns) with their singular values brought to about 0.7 to 1.2, by Newton-Schulz iterations
    in bf16 on a GPU and in float32 elsewhere. Zeros stay zeros.
    """
    dtype = matrices.dtype
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(dtype)


def muon_groups(model: nn.Module, matrix_learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """
    Groups for `MuonAdamW`: Adam's with and without weight decay, then Muon's. Queries, keys and values are three
    matrices; embeddings, norms, biases and heads are Adam's, and of those only the heads decay.
    """
    attentions = [module for module in model.modules() if isinstance(module, ImageGPTAttention)]
    mlps = [module for module in model.modules() if isinstance(module, ImageGPTMLP)]
    fused = [attention.c_attn.weight for attention in attentions]
    single = [attention.c_proj.weight for attention in attentions]
    single += [matrix.weight for mlp in mlps for matrix in (mlp.c_fc, mlp.c_proj)]
    muons = {id(parameter) for parameter in fused + single}
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in muons]
    matrices = {"lr": matrix_learning_rate, "weight_decay": weight_decay}
    groups = [
        {"params": [parameter for parameter in rest if id(parameter) not in linears], "weight_decay": 0.0},
        {"params": [parameter for parameter in rest if id(parameter) in linears], "weight_decay": weight_decay},
        {"params": fused, "parts": 3, **matrices},
        {"params": single, "parts": 1, **matrices},
    ]
    return [group for group in groups if group["params"]]
