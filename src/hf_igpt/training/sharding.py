"""Weights and optimizer states of a model that FSDP2 has sharded, as whole tensors: what checkpoints hold.

So a checkpoint has the same files whatever trained it, and a run goes on with one process, with copies of the model on
several (DDP), or with shards of it. accelerate's own FSDP checkpoints keep the weights a second time beside the
safetensors, and its sharded ones have an index that is unpickled freely.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_igpt.processes import use_cpu


if TYPE_CHECKING:
    from accelerate.utils import FullyShardedDataParallelPlugin


def check_launcher(dropout: float, gradient_checkpointing: bool) -> None:
    """
    Checks what the launcher was told about sharding, before any work is done.

    Raises:
        ValueError: as `refuse_to_ignore_fsdp` and `check_fsdp`.
    """
    if use_cpu():
        refuse_to_ignore_fsdp()
    elif _launched_with_fsdp():
        from accelerate.utils import FullyShardedDataParallelPlugin

        check_fsdp(FullyShardedDataParallelPlugin(), dropout, gradient_checkpointing)


def refuse_to_ignore_fsdp() -> None:
    """Raises ValueError where the launcher was told to shard the model and accelerate doesn't, which it won't say."""
    if _launched_with_fsdp():
        raise ValueError(
            "FSDP was asked for, but accelerate shards models on GPUs only, under its launcher; here every process "
            "would train a whole copy. Take the configuration `ddp`, or a machine with GPUs."
        )


def refuse_shards(option: str) -> None:
    """Raises ValueError for an option that needs whole matrices, where the launcher was told to shard them."""
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if _launched_with_fsdp() or is_deepspeed:
        raise ValueError(
            f"`{option}` needs every matrix whole, and {'DeepSpeed' if is_deepspeed else 'FSDP'} shards them. Take "
            "`optimizer: adamw`, or the configuration `ddp`."
        )


def _launched_with_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def check_fsdp(plugin: "FullyShardedDataParallelPlugin", dropout: float, gradient_checkpointing: bool) -> None:
    """
    Checks accelerate's settings of FSDP.

    Args:
        dropout: the highest dropout probability of the model.
        gradient_checkpointing: whether the model recomputes its blocks itself.

    Raises:
        ValueError: they are not those that training and checkpoints here support; says what to set.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_version` must be 2, got {plugin.fsdp_version}: checkpoints hold no flat parameters.")
    if (kind := plugin.state_dict_type.name) != "FULL_STATE_DICT":
        raise ValueError(
            f"`fsdp_state_dict_type` must be FULL_STATE_DICT, got {kind}: checkpoints hold whole tensors, since the "
            "index of sharded ones is unpickled freely."
        )
    if not plugin.activation_checkpointing:
        return
    if gradient_checkpointing:
        raise ValueError(
            "`gradient_checkpointing` and `fsdp_activation_checkpointing` do the same, twice. Leave one of them out."
        )
    if dropout > 0:
        raise ValueError(
            f"`fsdp_activation_checkpointing` draws dropout anew in the backward pass, so that `dropout` {dropout} "
            "would give wrong gradients. Set it to false and give `--gradient_checkpointing`, which draws it again."
        )


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """
    The state dict in whole tensors on the CPU. All processes must call it together; one that doesn't `keep` gets None
    in place of each tensor that was gathered.
    """
    return _gather(model.state_dict(), keep)


def whole_optimizer_state(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """The optimizer's state dict, as `whole_weights`."""
    return _gather(optimizer.state_dict(), keep)


@contextlib.contextmanager
def under_own_class(model: nn.Module) -> Iterator[None]:
    """
    Gives a model back the class that FSDP2 derived its own from. A model is saved with the source file of its class,
    which would be torch's.
    """
    sharded = type(model)
    own = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))
    model.__class__ = own
    try:
        yield
    finally:
        model.__class__ = sharded


def load_whole_weights(model: nn.Module, folder: Path) -> None:
    """
    Loads the safetensors of a checkpoint folder; each process keeps its own part.

    Raises:
        ValueError: they are not the model's weights.
    """
    own = model.state_dict()
    saved = dict(_saved_tensors(folder))
    if saved.keys() != own.keys():
        differing = ", ".join(sorted(saved.keys() ^ own.keys()))
        raise ValueError(f"{folder} must hold the weights of this model; they differ in {differing}.")
    model.load_state_dict({name: _part_of(whole, own[name]) for name, whole in saved.items()})


def load_whole_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's state dict in whole tensors; each process keeps its own part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        index: {
            name: _part_of(value, parameters[index]) if _is_like(value, parameters[index]) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def _saved_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors.torch import load_file

    for file in sorted(folder.glob("model*.safetensors")):
        yield from load_file(file).items()


def _gather(value: Any, keep: bool) -> Any:
    """Whole tensors in place of sharded ones. What isn't kept is dropped tensor by tensor, to spare memory."""
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, dict):
        return {key: _gather(item, keep) for key, item in value.items()}
    return value


def _is_like(value: Any, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


def _part_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return whole
    # Every process has read the whole: nothing has to be sent.
    moved = whole.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
