"""Features on disk: computed once for a checkpoint, tokens, data and a mask, and read by every probe after that."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.stages import is_finished, write_stage
from hf_igpt.storage import plain, staged_folder, work_lock


if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import Dataset

    from hf_igpt.data.masking import Masking
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel


# Fields of a config that change what weights compute without changing their shapes.
_ARCHITECTURE = (
    "hidden_act",
    "image_size",
    "is_causal",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "use_start_token",
)


@dataclass(frozen=True)
class FeatureSettings:
    """
    What features depend on beside the weights and the images.

    Args:
        token_hash: see `IGPTImageProcessor`.
        normed: see `extract_features`.
        masking: for masked models, what hides tokens.
    """

    token_hash: str
    normed: bool = True
    masking: "Masking | None" = None

    def made_from(self, model: Any, model_sha256: str, tokens: Any, split: str, mask: tuple[int, int]) -> dict:
        """The key of one split's features under one mask."""
        masks = None
        if self.masking is not None:
            masks = {"rate": self.masking.rate, "seed": self.masking.seed, "number": mask[0]}
            # The places that uniform rates hide depend on how many masks an image has; those of a fixed rate don't.
            masks |= {"of": mask[1]} if isinstance(self.masking.rate, str) else {}
        return {
            "model": model_sha256,
            "config": {name: getattr(model.config, name) for name in _ARCHITECTURE},
            "dtype": str(model.dtype),
            "token_hash": self.token_hash,
            "tokens": tokens._fingerprint,
            "split": split,
            "norm": "post" if self.normed else "raw",
            "masks": masks,
            "code": feature_code_version(),
        }


def feature_code_version() -> str:
    """A hash over the modules between tokens and features."""
    from hf_igpt import functional_igpt, modeling_igpt, rotary_igpt
    from hf_igpt.data import masking, randomness
    from hf_igpt.evaluation import features, layers

    digest = hashlib.sha256()
    for module in (modeling_igpt, functional_igpt, rotary_igpt, masking, randomness, features, layers):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def prepare_features(
    folder: str | os.PathLike,
    model: "ImageGPTPreTrainedModel",
    model_sha256: str,
    tokens: "Dataset",
    split: str,
    settings: FeatureSettings,
    state: "PartialState",
    *,
    mask: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """
    Features of every layer of a split, memory-mapped: float32 of shape (images, width) each. Computed by all processes
    together into a folder of their own below `folder`, named after all that they depend on; a finished one is read.

    Args:
        folder: where all features of a run are kept.
        model, tokens, mask, batch_size, progress: as for `extract_features`.
        model_sha256: digest of the weights.
        split: name of the split, for the folder.

    Raises:
        ValueError: as `extract_features`; or the folder holds features made from something else.
    """
    made_from = plain(settings.made_from(model, model_sha256, tokens, split, mask))
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    final = Path(folder) / f"{split}-{key}"
    with work_lock(final) if state.is_main_process else contextlib.nullcontext():
        state.wait_for_everyone()
        done = is_finished(final, made_from)
        state.wait_for_everyone()
        if not done:
            _compute(final, model, tokens, settings, state, made_from, mask, batch_size, progress)
    shape = (len(tokens), model.config.hidden_size)
    return [_read_layer(path, shape) for path in layer_files(final)]


def _read_layer(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        # Mapped, it takes no memory for what a header promises. It never unpickles.
        features = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no array of features: {error}. Remove its folder to compute them anew."
        ) from error
    if features.dtype != np.float32 or features.shape != shape:
        raise ValueError(
            f"{path} must hold float32 of shape {shape}, got {features.dtype} of {features.shape}. Remove its folder "
            "to compute them anew."
        )
    return features


def layer_files(folder: str | os.PathLike) -> list[Path]:
    """The files of a split's features, by layer."""
    return sorted(Path(folder).glob("layer-*.npy"))


def _compute(final, model, tokens, settings, state, made_from, mask, batch_size, progress) -> None:
    from hf_igpt.evaluation.features import extract_features

    is_writer, barrier = state.is_main_process, state.wait_for_everyone
    if is_writer:
        final.parent.mkdir(parents=True, exist_ok=True)
    barrier()
    with staged_folder(final, is_writer=is_writer, barrier=barrier, overwrite=True) as staged:
        shape = (len(tokens), model.config.hidden_size)
        paths = [staged / f"layer-{layer:03d}.npy" for layer in range(model.config.num_hidden_layers + 1)]
        if is_writer:
            for path in paths:
                np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
        barrier()
        out = [np.lib.format.open_memmap(path, mode="r+") for path in paths]
        extract_features(
            model,
            tokens,
            masking=settings.masking,
            mask=mask,
            normed=settings.normed,
            batch_size=batch_size,
            out=out,
            progress=progress,
        )
        for array in out:
            array.flush()
        barrier()
        if is_writer:
            write_stage(staged, made_from)


def export_features(
    path: str | os.PathLike,
    splits: dict[str, list[np.ndarray]],
    labels: dict[str, np.ndarray],
    names: list[str],
    rows_per_group: int = 4096,
) -> None:
    """
    Writes features as one parquet file for use elsewhere: a row for each image with "split", "image" (its row in the
    tokenized split), "label", "class", and "layer_0" ... "layer_L", float32 vectors. Written piece by piece.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hf_igpt.storage import atomic_path

    layers = len(next(iter(splits.values())))
    width = next(iter(splits.values()))[0].shape[1]
    vectors = [pa.field(f"layer_{layer}", pa.list_(pa.float32(), width)) for layer in range(layers)]
    texts = [pa.field("split", pa.string()), pa.field("image", pa.int64())]
    schema = pa.schema([*texts, pa.field("label", pa.int64()), pa.field("class", pa.string()), *vectors])
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for split, arrays in splits.items():
            for start in range(0, len(arrays[0]), rows_per_group):
                chosen = labels[split][start : start + rows_per_group]
                columns = [
                    pa.array([split] * len(chosen), pa.string()),
                    pa.array(np.arange(start, start + len(chosen)), pa.int64()),
                    pa.array(chosen, pa.int64()),
                    pa.array([names[label] for label in chosen], pa.string()),
                ]
                for array in arrays:
                    values = np.ascontiguousarray(array[start : start + rows_per_group]).ravel()
                    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), width))
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
