"""OpenAI's released checkpoints: TensorFlow variables of openai/image-gpt's graph, and what they are in our model."""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_igpt.configuration_igpt import ImageGPTConfig


CENTERS = "kmeans_centers.npy"
# The graph's variables outside and inside a block (openai/image-gpt, src/model.py). Masked models have no `sos`.
_OUTSIDE = ("wpe", "wte", "wtet", "ln_f/g")
_BLOCK = (
    "ln_1/g",
    "attn/q_proj",
    "attn/k_proj",
    "attn/v_proj",
    "attn/c_proj",
    "ln_2/g",
    "mlp/c_fc/w",
    "mlp/c_proj/w",
)
# What a training run's saver writes beside them.
_OPTIMIZER = re.compile(r"(^|/)(global_step|beta[12]_power|[Aa]dam\w*)(_\d+)?(/|$)")
_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$")


def is_tensorflow_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a path is that of a TensorFlow checkpoint, without the ending of its index file."""
    return Path(f"{path}.index").is_file()


def read_variables(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Reads the variables of a checkpoint of openai/image-gpt, named as in its graph without the scope `model/`.

    Args:
        path: of the checkpoint without an ending, such as "model.ckpt-1000000"; shards lie beside its index.

    Raises:
        ValueError: a file is missing or damaged, the variables are not those of this graph, or some are not finite.
        ModuleNotFoundError: TensorFlow, which reads the format, is not installed.
    """
    _check_files(Path(path))
    reader, tensorflow_errors = _open(path)
    shapes = {
        name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items() if not _OPTIMIZER.search(name)
    }
    stray = sorted(name for name in shapes if not name.startswith("model/"))
    if stray:
        raise ValueError(f"{path} is no checkpoint of openai/image-gpt: it has {', '.join(stray[:3])}.")
    shapes = {name.removeprefix("model/"): shape for name, shape in shapes.items()}
    # Before memory is taken for whatever the index claims.
    check_shapes(path, shapes)
    variables = {}
    for name in shapes:
        try:
            variables[name] = reader.get_tensor(f"model/{name}")
        except tensorflow_errors as error:
            raise ValueError(f"{path}: `{name}` can't be read, a file is damaged or cut: {error}") from error
        if variables[name].dtype != np.float32:
            raise ValueError(f"{path}: `{name}` must be float32, got {variables[name].dtype}.")
        if bad := int((~np.isfinite(variables[name])).sum()):
            raise ValueError(f"{path}: `{name}` has {bad} values that are not finite.")
    return variables


def read_centers(path: str | os.PathLike) -> np.ndarray:
    """
    The palette of OpenAI's `kmeans_centers.npy`: float64 of shape (colours, 3) in 0...255, unrounded.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no {path}: give the released {CENTERS} as `--palette`.")
    try:
        # Mapped, it takes no memory for what a header promises. It never unpickles.
        centers = np.lib.format.open_memmap(path, mode="r")
        if centers.ndim != 2 or centers.shape[1] != 3 or centers.dtype.kind != "f":
            raise ValueError(f"it must hold floats of shape (colours, 3), got {centers.dtype} of {centers.shape}")
        centers = np.asarray(centers, dtype=np.float64)
        if not (np.abs(centers) <= 1).all():
            raise ValueError("its values must be from -1 to 1")
    except (EOFError, OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{path} is no palette of openai/image-gpt: {error}") from error
    return 127.5 * (centers + 1)


def variables_to_igpt(variables: dict[str, np.ndarray]) -> tuple[ImageGPTConfig, dict[str, torch.Tensor]]:
    """
    Config and weights of our next-pixel or masked model from the graph's variables. Ours has the start token as the
    last row of the token embeddings; a masked model never reads that row, which is zero.
    """
    layers = _num_layers(variables)
    num_values, width = variables["wte"].shape
    is_causal = "sos" in variables
    config = ImageGPTConfig(
        vocab_size=num_values + 1,
        n_positions=variables["wpe"].shape[0],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=variables["h0/attn/q_proj"].shape[0],
        is_causal=is_causal,
    )
    start = variables["sos"] if is_causal else np.zeros(width, np.float32)
    weights = {
        "transformer.wte.weight": np.concatenate([variables["wte"], start[None]]),
        "transformer.wpe.weight": variables["wpe"],
        "transformer.ln_f.weight": variables["ln_f/g"],
        "lm_head.weight": variables["wtet"],
    }
    for layer in range(layers):
        block = {name: variables[f"h{layer}/{name}"] for name in _BLOCK}
        # (heads, head size, width): queries, keys and values map from the width, the output projection to it.
        projections = [block[f"attn/{name}_proj"].reshape(width, width) for name in "qkv"]
        weights |= {
            f"transformer.h.{layer}.{name}.weight": array
            for name, array in {
                "ln_1": block["ln_1/g"],
                "attn.c_attn": np.concatenate(projections),
                "attn.c_proj": block["attn/c_proj"].reshape(width, width).T,
                "ln_2": block["ln_2/g"],
                "mlp.c_fc": block["mlp/c_fc/w"].T,
                "mlp.c_proj": block["mlp/c_proj/w"].T,
            }.items()
        }
    return config, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}


def _check_files(path: Path) -> None:
    """Raises ValueError for an index without all of its shards."""
    if not is_tensorflow_checkpoint(path):
        raise ValueError(
            f"There is no {path.name}.index in {path.parent}: give the checkpoint's path without an ending."
        )
    shards = {
        int(match[1]): int(match[2])
        for file in path.parent.glob(f"{path.name}.data-*")
        if (match := _SHARD.search(file.name))
    }
    count = max(shards.values(), default=1)
    if missing := [number for number in range(count) if number not in shards]:
        raise ValueError(
            f"{path} lacks {path.name}.data-{missing[0]:05d}-of-{count:05d} ({len(missing)} of {count} shards are "
            "missing). Download all of them."
        )


def _open(path: str | os.PathLike) -> tuple[Any, tuple[type[Exception], ...]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    errors = (tensorflow.errors.OpError, ValueError, RuntimeError, IndexError)
    try:
        return tensorflow.train.load_checkpoint(os.fspath(path)), errors
    except errors as error:
        raise ValueError(f"{path}.index can't be read: {error}") from error


def _num_layers(names: Any) -> int:
    return len({match[1] for name in names if (match := re.match(r"h(\d+)/", name))})


def check_shapes(path: str | os.PathLike, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError where names or shapes are not those of the graph, for the sizes that a few of them state."""
    layers = _num_layers(shapes)
    needed = [*_OUTSIDE, *(f"h{layer}/{name}" for layer in range(max(layers, 1)) for name in _BLOCK)]
    missing = [name for name in needed if name not in shapes]
    extra = sorted(shapes.keys() - {*needed, "sos"})
    if missing or extra:
        raise ValueError(
            f"{path} is no checkpoint of openai/image-gpt: missing {', '.join(missing[:5]) or 'nothing'}; unknown "
            f"{', '.join(extra[:5]) or 'nothing'}."
        )
    (values, width), heads = _two(shapes["wte"]), shapes["h0/attn/q_proj"][0] if shapes["h0/attn/q_proj"] else 0
    positions = _two(shapes["wpe"])[0]
    if not (heads and width and width % heads == 0) or math.isqrt(positions) ** 2 != positions:
        raise ValueError(
            f"{path}: width {width} must be divisible by {heads} heads, and {positions} positions a square image."
        )
    of_block = {
        "ln_1/g": (width,),
        **{f"attn/{name}_proj": (heads, width // heads, width) for name in "qkvc"},
        "ln_2/g": (width,),
        "mlp/c_fc/w": (width, 4 * width),
        "mlp/c_proj/w": (4 * width, width),
    }
    expected = {"wpe": (positions, width), "wte": (values, width), "wtet": (values, width), "ln_f/g": (width,)}
    expected |= {"sos": (width,)} if "sos" in shapes else {}
    expected |= {f"h{layer}/{name}": shape for layer in range(layers) for name, shape in of_block.items()}
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(f"{path}: `{name}` must be of shape {shape} beside the others, got {shapes[name]}.")


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)
