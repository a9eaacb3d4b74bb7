"""Reading the weights of a checkpoint folder or repository, and refusing those that are not what its config says."""

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.modeling_utils import load_state_dict
from transformers.quantizers import AutoHfQuantizer
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .config_files_igpt import DTYPES
from .configuration_igpt import ImageGPTConfig


_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BLOCK = re.compile(r"(?:^|\.)h\.(\d+)\.")
_PREFIX = "transformer."
# What a class has besides the backbone. These may be new where a checkpoint of another class is loaded, and only then.
_LM_HEAD, _CLASS_HEAD = "lm_head.weight", "score.weight"
_HEADS_OF = {
    "ImageGPTModel": (),
    "ImageGPTForCausalImageModeling": (_LM_HEAD,),
    "ImageGPTForMaskedImageModeling": (_LM_HEAD,),
    "ImageGPTForImageClassification": (_CLASS_HEAD, _LM_HEAD),
}
_LISTED = 20


class PickleRefusedError(ValueError, pickle.UnpicklingError):
    """A file of weights is a pickle that does more than hold tensors. Nothing of it was run."""


def read_state_dict(
    name_or_path: str,
    variant: str | None = None,
    map_location: str = "cpu",
    use_safetensors: bool | None = None,
    **hub_kwargs: Any,
) -> dict[str, torch.Tensor]:
    """
    Reads the weights of a checkpoint, in one file or in shards, safetensors before `.bin` (weights only, no pickle).
    On `map_location="meta"` only names and shapes are read. `use_safetensors` is that of `from_pretrained`.

    Raises:
        OSError: the checkpoint has no weights.
        ValueError: a file is damaged, or an index names files elsewhere.
    """
    _refuse_distributed(name_or_path, hub_kwargs.get("subfolder", ""))
    for file_name in _WEIGHT_FILES:
        if use_safetensors is not None and use_safetensors != ("safetensors" in file_name):
            continue
        if variant is not None:
            stem, suffix = file_name.split(".", 1)
            file_name = f"{stem}.{variant}.{suffix}" if "index" not in suffix else _index_variant(file_name, variant)
        path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if path is None:
            continue
        files = [path]
        if path.endswith(".json"):
            _check_index(path)
            files, _ = get_checkpoint_shard_files(name_or_path, path, **hub_kwargs)
            _refuse_links(path, files)
        state_dict = {}
        for file in files:
            state_dict.update(_read_weights(file, map_location))
        return state_dict
    raise OSError(f"{name_or_path} has no weights: none of {', '.join(_WEIGHT_FILES)} is there.")


def _read_weights(file: str, map_location: str) -> dict[str, torch.Tensor]:
    try:
        state_dict = load_state_dict(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickleRefusedError(
            f"{file} is a pickle that holds more than tensors, or is damaged: read weights-only, it was refused and "
            "nothing in it was run. Take weights in safetensors."
        ) from error
    except (EOFError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} can't be read, it is cut, damaged or no file of weights: {error}") from error
    is_plain = isinstance(state_dict, dict) and all(map(_is_plain, state_dict.values()))
    if not is_plain or not all(isinstance(name, str) for name in state_dict):
        raise ValueError(f"{file} must hold dense tensors by name and nothing else.")
    return state_dict


def _is_plain(value: Any) -> bool:
    is_tensor = type(value) in (torch.Tensor, torch.nn.Parameter)
    return is_tensor and value.layout == torch.strided and not value.is_quantized


def _refuse_distributed(name_or_path: str, subfolder: str) -> None:
    # transformers would take these in place of the files that are checked here.
    folder = Path(name_or_path, subfolder)
    if found := sorted(path.name for path in folder.glob("shard-*-model-*-of-*.safetensors")):
        raise ValueError(
            f"{folder} has {found[0]} of a distributed checkpoint, which isn't read. Save the model with "
            "`distributed_checkpoint=False`, or remove these files."
        )


def _check_index(path: str) -> None:
    """Raises ValueError for an index that is none, or that names anything but files beside it."""
    try:
        index = json.loads(Path(path).read_bytes().decode())
        names = set(index["weight_map"].values())
        is_index = isinstance(index["metadata"], dict) and names and all(isinstance(name, str) for name in names)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        is_index = False
    if not is_index:
        raise ValueError(f"{path} must be a JSON object with `metadata` and a `weight_map` from tensors to files.")
    ending = ".safetensors" if ".safetensors." in Path(path).name else ".bin"
    for name in sorted(names):
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII) or not name.endswith(ending):
            raise ValueError(f"`weight_map` in {path} must name {ending} files beside it, got {name!r}.")


def _refuse_links(index: str, files: Iterable[str]) -> None:
    folder = Path(index).absolute().parent
    # The Hub's cache keeps the files of all snapshots of a repository in one folder and links to them.
    blobs = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    places = [place.resolve() for place in (folder, *blobs)]
    for file in files:
        if not any(Path(file).resolve().is_relative_to(place) for place in places):
            raise ValueError(
                f"{file}, which {Path(index).name} names, is a link to a file elsewhere. Put the file itself there."
            )


def refuse_other_sizes(
    name_or_path: str, config: ImageGPTConfig, state_dict: dict[str, torch.Tensor], is_packed: bool = False
) -> None:
    """
    transformers would draw missing blocks at random with a warning, and build a model of any size before it compares.

    Args:
        is_packed: the weights are quantized, so that those of projections have shapes of their own.

    Raises:
        ValueError: a size of the config is not that of the weights.
    """
    shapes = {name.removeprefix(_PREFIX): tuple(tensor.shape) for name, tensor in state_dict.items()}
    blocks = {match.group(1) for name in shapes if (match := _BLOCK.search(name))}
    sized_by = {
        "hidden_size": "ln_f.weight",
        "vocab_size": "wte.weight",
        "n_positions": "wpe.weight",
        "intermediate_size": "h.0.mlp.c_fc.weight",
    }
    found = {"num_hidden_layers": len(blocks)}
    found |= {field: next(iter(shapes.get(name, ())), None) for field, name in sized_by.items()}
    found["use_bias"] = "h.0.mlp.c_fc.bias" in shapes
    for field, value in found.items():
        if value != getattr(config, field) and not (is_packed and field == "intermediate_size"):
            raise ValueError(
                f"{name_or_path}: the config has {field}={getattr(config, field)}, but the weights have "
                f"{'none' if value is None else value}. Config and weights are not of one model."
            )


def refuse_other_tensors(
    name_or_path: str, config: ImageGPTConfig, state_dict: Mapping[str, torch.Tensor], class_name: str
) -> None:
    """
    transformers would draw what is missing at random, leave out what it doesn't know and convert any type, with a
    line in the log.

    Args:
        class_name: of the model that is being loaded, for a config that does not name the one that was saved.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or type than the config of the saved model says.
    """
    saved = next((name for name in config.architectures or () if name in _HEADS_OF), None)
    has_prefix = any(name.startswith(_PREFIX) for name in state_dict)
    heads = _heads(config, saved or (class_name if has_prefix else "ImageGPTModel"))
    expected = _backbone_shapes(config) | {name: _head_shape(config, name) for name in heads}
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}
    others = found.keys() - expected.keys() - (set() if saved else {_LM_HEAD, _CLASS_HEAD})
    twice = [name for name in state_dict if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in state_dict]
    dtypes = [tensor.dtype for tensor in found.values()]
    dtype = max(set(dtypes), key=dtypes.count)
    problems = {
        "missing": expected.keys() - found.keys(),
        "unknown": {*others, *twice},
        "of another shape": {
            f"{name} {list(found[name].shape)} and not {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        },
        "of another type": {
            f"{name} {tensor.dtype}"
            for name, tensor in found.items()
            if tensor.dtype not in DTYPES or tensor.dtype != dtype
        },
        "without numbers of their own": {name for name, tensor in found.items() if _repeats(tensor)},
    }
    if any(problems.values()):
        described = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise ValueError(
            f"{name_or_path}: the weights are not those of {saved or class_name} with this config. {described}. Take "
            "config and weights from one place, whole and unedited."
        )


def refuse_unread(name_or_path: str, missing: Iterable[str], state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError where tensors were not read but made, except for a head that the checkpoint does not have."""
    new = [name for name in missing if name not in (_LM_HEAD, _CLASS_HEAD) or name in state_dict]
    if new:
        raise ValueError(f"{name_or_path}: these tensors were not in the checkpoint: {_listed(new)}.")


def is_quantized(name_or_path: str, config: ImageGPTConfig) -> bool:
    """
    Whether the weights are packed by a quantization that transformers knows.

    Raises:
        ValueError: it doesn't know it, and would take packed weights for plain ones.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return False
    fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if not AutoHfQuantizer.supports_quant_method(fields):
        raise ValueError(
            f"{name_or_path}: `quantization_config` must name a method that transformers has, got "
            f"{fields.get('quant_method')!r}. Take a newer transformers, or the checkpoint that was quantized."
        )
    return True


def _heads(config: ImageGPTConfig, class_name: str) -> tuple[str, ...]:
    is_class_alone = class_name == "ImageGPTForImageClassification" and config.generative_loss_weight == 0
    return (_CLASS_HEAD,) if is_class_alone else _HEADS_OF[class_name]


def _backbone_shapes(config: ImageGPTConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    shapes = {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.n_positions, width),
        "ln_f.weight": (width,),
    }
    projections = {
        "attn.c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (inner, width),
        "mlp.c_proj": (width, inner),
    }
    for block in (f"h.{layer}" for layer in range(config.num_hidden_layers)):
        shapes |= {f"{block}.ln_1.weight": (width,), f"{block}.ln_2.weight": (width,)}
        shapes |= {f"{block}.{name}.weight": shape for name, shape in projections.items()}
        if config.use_bias:
            shapes |= {f"{block}.{name}.bias": shape[:1] for name, shape in projections.items()}
    return shapes


def _head_shape(config: ImageGPTConfig, name: str) -> tuple[int, int]:
    return (config.num_values if name == _LM_HEAD else config.num_labels, config.hidden_size)


def _repeats(tensor: torch.Tensor) -> bool:
    """A pickle may spread few numbers over a tensor of any size, which then takes that memory."""
    return tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _index_variant(file_name: str, variant: str) -> str:
    return file_name.replace(".index.json", f".index.{variant}.json")


__all__ = [
    "PickleRefusedError",
    "is_quantized",
    "read_state_dict",
    "refuse_other_sizes",
    "refuse_other_tensors",
    "refuse_unread",
]
