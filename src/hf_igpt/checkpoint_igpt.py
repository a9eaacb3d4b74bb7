"""Reading the weights of a checkpoint folder or repository, and refusing one whose config is about other weights."""

import re
from typing import Any

import torch
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .configuration_igpt import ImageGPTConfig


_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BLOCK = re.compile(r"(?:^|\.)h\.(\d+)\.")


def read_state_dict(
    name_or_path: str, variant: str | None = None, map_location: str = "cpu", **hub_kwargs: Any
) -> dict[str, torch.Tensor]:
    """
    Reads the weights of a checkpoint, in one file or in shards, safetensors before `.bin` (weights only, no pickle).
    On `map_location="meta"` only names and shapes are read.

    Raises:
        OSError: the checkpoint has no weights.
    """
    for file_name in _WEIGHT_FILES:
        if variant is not None:
            stem, suffix = file_name.split(".", 1)
            file_name = f"{stem}.{variant}.{suffix}" if "index" not in suffix else _index_variant(file_name, variant)
        path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if path is None:
            continue
        files = [path]
        if file_name.endswith(".index.json"):
            files, _ = get_checkpoint_shard_files(name_or_path, path, **hub_kwargs)
        state_dict = {}
        for file in files:
            state_dict.update(load_state_dict(file, map_location=map_location, weights_only=True))
        return state_dict
    raise OSError(f"{name_or_path} has no weights: none of {', '.join(_WEIGHT_FILES)} is there.")


def refuse_other_sizes(name_or_path: str, config: ImageGPTConfig, state_dict: dict[str, torch.Tensor]) -> None:
    """
    transformers would draw missing blocks at random with a warning, and build a model of any size before it compares.

    Raises:
        ValueError: a size of the config is not that of the weights.
    """
    shapes = {name.removeprefix("transformer."): tuple(tensor.shape) for name, tensor in state_dict.items()}
    blocks = {int(match.group(1)) for name in shapes if (match := _BLOCK.search(name))}
    found = {
        "num_hidden_layers": len(blocks),
        "hidden_size": shapes.get("ln_f.weight", (None,))[0],
        "vocab_size": shapes.get("wte.weight", (None,))[0],
        "n_positions": shapes.get("wpe.weight", (None,))[0],
        "intermediate_size": shapes.get("h.0.mlp.c_fc.weight", (None,))[0],
        "use_bias": "h.0.mlp.c_fc.bias" in shapes,
    }
    for field, value in found.items():
        if value != getattr(config, field):
            raise ValueError(
                f"{name_or_path}: the config has {field}={getattr(config, field)}, but the weights have "
                f"{'none' if value is None else value}. Config and weights are not of one model."
            )


def _index_variant(file_name: str, variant: str) -> str:
    return file_name.replace(".index.json", f".index.{variant}.json")


__all__ = ["read_state_dict", "refuse_other_sizes"]
