"""Loading a checkpoint and the tokens that belong to it, for commands that use a trained model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import DatasetDict

    from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
    from hf_igpt.data.options import LabelledImages
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel


def load_checkpoint(
    name_or_path: str, *, needs_head: bool = True
) -> tuple["ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling", "IGPTImageProcessor", str]:
    """
    A next-pixel or masked model, whichever was saved, its image processor, and a digest of its weights. A folder with
    a manifest is verified first.

    Args:
        needs_head: whether its predictions are wanted, and not its features alone.

    Raises:
        ValueError: as `load_verified`.
    """
    from hf_igpt.training.objectives import model_class
    from hf_igpt.weights import load_verified, weights_digest

    try:
        model, processor = load_verified(name_or_path, model_class, needs_head=needs_head)
    except OSError as error:
        if not Path(name_or_path).is_dir():
            raise ValueError(f"{name_or_path} is no checkpoint folder, and no model on the Hub: {error}") from error
        raise
    return model, processor, weights_digest(model)


def load_matching_tokens(
    folder: str | os.PathLike, model: "ImageGPTPreTrainedModel", processor: "IGPTImageProcessor"
) -> "DatasetDict":
    """
    Tokenized splits of a folder or of the Hub, refused where they don't mean what the checkpoint's do.

    Raises:
        ValueError: no such folder, damaged data, or another kind, palette, VQ-VAE, grid or number of values.
    """
    from hf_igpt.data.token_repository import find_tokens
    from hf_igpt.data.token_store import check_tokens, load_tokens

    tokens = load_tokens(find_tokens(folder))
    check_tokens(tokens, processor)
    check_tokens(tokens, model.config)
    return tokens


def labelled_tokens(
    options: "LabelledImages",
    name_or_path: str,
    model: "ImageGPTPreTrainedModel",
    processor: "IGPTImageProcessor",
    folder: str | os.PathLike,
    state: "PartialState",
) -> "DatasetDict":
    """
    The tokens that the options name: stored ones, or images tokenized with the checkpoint's processor into `folder` by
    all processes together.

    Raises:
        ValueError: as `load_matching_tokens`, `load_images` and `prepare_tokens`.
    """
    options.check_images()
    if options.dataset_name is None:
        tokens = load_matching_tokens(options.tokens or beside(name_or_path, "tokens"), model, processor)
        return _folded(tokens) if options.fold_validation and "validation" in tokens else tokens
    from hf_igpt.data.options import load_source
    from hf_igpt.data.preparation import prepare_tokens

    with state.main_process_first():
        source = load_source(options)
    prepare_tokens(folder, source, processor)
    return load_matching_tokens(folder, model, processor)


def _folded(tokens: "DatasetDict") -> "DatasetDict":
    """The splits with validation behind train in one."""
    from datasets import DatasetDict, concatenate_datasets

    from hf_igpt.data.token_store import tokens_info, write_record

    record = tokens_info(tokens)
    train = concatenate_datasets([tokens["train"], tokens["validation"]])
    write_record(train, record, record.pop("skipped"))
    rest = {name: split for name, split in tokens.items() if name not in ("train", "validation")}
    return DatasetDict({"train": train, **rest})


def checkpoint_record(name_or_path: str, model: "ImageGPTPreTrainedModel", digest: str) -> dict[str, Any]:
    """What results say of the checkpoint they are about. Step and validation loss are those its run wrote down."""
    step, nats = _training_record(Path(name_or_path))
    return {
        "name": name_or_path,
        "sha256": digest,
        "objective": "next_pixel" if model.config.is_causal else "masked",
        "parameters": model.num_parameters(),
        "step": step,
        "validation_nats_per_token": nats,
    }


def _training_record(folder: Path) -> tuple[int | None, float | None]:
    """
    Optimizer steps and validation loss at that step: of a checkpoint from Trainer's state, of a run's model from its
    results. Both have Trainer's own loss, so that the points of a curve are of one quantity.
    """
    from hf_igpt.results import RESULTS, read_results
    from hf_igpt.storage import read_json

    state, results = folder / "trainer_state.json", folder.parent / RESULTS
    if state.is_file():
        content = read_json(state)
        step, history = content.get("global_step"), content.get("log_history", [])
    elif folder.is_dir() and results.is_file():
        content = read_results(results)
        step, history = content["metrics"].get("optimizer_steps"), content.get("log_history", [])
    else:
        return None, None
    losses = [entry["eval_loss"] for entry in history if entry.get("step") == step and "eval_loss" in entry]
    return step, losses[-1] if losses else None


def beside(name_or_path: str, name: str) -> Path:
    """A path beside a checkpoint folder; for a model on the Hub, below outputs/."""
    path = Path(name_or_path)
    return path.parent / name if path.is_dir() else Path("outputs") / path.name / name
