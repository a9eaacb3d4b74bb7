"""Loading a checkpoint and the tokens that belong to it, for commands that use a trained model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel


def load_checkpoint(
    name_or_path: str,
) -> tuple["ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling", "IGPTImageProcessor", str]:
    """
    A next-pixel or masked model, whichever was saved, its image processor, and a digest of its weights. A folder with
    a manifest is verified first.

    Raises:
        ValueError: the folder is damaged, or palette and model do not fit.
    """
    from hf_igpt import IGPTImageProcessor, ImageGPTConfig
    from hf_igpt.storage import MANIFEST, verify_folder
    from hf_igpt.training.objectives import model_class

    if (Path(name_or_path) / MANIFEST).is_file():
        verify_folder(name_or_path)
    try:
        head = model_class(ImageGPTConfig.from_pretrained(name_or_path))
    except OSError as error:
        if not Path(name_or_path).is_dir():
            raise ValueError(f"{name_or_path} is no checkpoint folder, and no model on the Hub: {error}") from error
        raise
    model = head.from_pretrained(name_or_path).eval()
    processor = IGPTImageProcessor.from_pretrained(name_or_path)
    if processor.num_colors != model.config.num_values or processor.grid != model.config.grid:
        raise ValueError(
            f"{name_or_path}: the palette has {processor.num_colors} colours on a grid of {processor.grid}, but the "
            f"model {model.config.num_values} values on {model.config.grid}. They are not of one checkpoint."
        )
    return model, processor, weights_digest(model)


def weights_digest(model: "ImageGPTPreTrainedModel") -> str:
    """SHA-256 over names and bytes of all weights: what results are keyed by."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_matching_tokens(
    folder: str | os.PathLike, model: "ImageGPTPreTrainedModel", processor: "IGPTImageProcessor"
) -> "DatasetDict":
    """
    Tokenized splits, refused where their palette or grid is not the checkpoint's.

    Raises:
        ValueError: no such folder, damaged data, or another palette, grid or number of values.
    """
    from hf_igpt.data.token_store import check_tokens, load_tokens

    if not Path(folder).is_dir():
        raise ValueError(f"There is no tokenized data in {folder}: give `--tokens`, or run tokenize_dataset first.")
    tokens = load_tokens(folder)
    check_tokens(tokens, processor)
    check_tokens(tokens, model.config)
    return tokens


def beside(name_or_path: str, name: str) -> Path:
    """A path beside a checkpoint folder; for a model on the Hub, below outputs/."""
    path = Path(name_or_path)
    return path.parent / name if path.is_dir() else Path("outputs") / path.name / name
