"""Tokens by name: a folder, or a data set on the Hub that `hf-igpt push_to_hub` published."""

import os
from pathlib import Path

from hf_igpt.token_kinds_igpt import PALETTE as PALETTE_TOKENS


# The folders of such a repository; the image processor that made the tokens is in one of the last two.
TOKENS, PALETTE, PROCESSOR = "tokens", "palette", "processor"
PROCESSORS = (PALETTE, PROCESSOR)
PROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILES = ("*.json", "vqvae/*.json", "vqvae/*.safetensors")


def find_tokens(name: str | os.PathLike) -> Path:
    """
    The folder of tokens that a name stands for; those on the Hub are fetched into its cache.

    Args:
        name: a folder, or OWNER/NAME or OWNER/NAME@REVISION of a data set on the Hub.

    Raises:
        ValueError: it is neither, or the repository has no tokens.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    path = Path(name)
    if path.is_dir():
        return path
    repository, _, revision = str(name).partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ValueError(f"There are no tokens in {name}: run tokenize_dataset, or give OWNER/NAME of published ones.")
    try:
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=[f"{TOKENS}/*", *(f"{name}/{files}" for name in PROCESSORS for files in PROCESSOR_FILES)],
        )
    except (OSError, HFValidationError) as error:
        raise ValueError(f"There is no folder {name}, and no such tokens on the Hub: {error}") from error
    if not (Path(folder) / TOKENS).is_dir():
        raise ValueError(f"{name} is a data set on the Hub, but no tokenized one: give it as `dataset_name`.")
    return Path(folder) / TOKENS


def processor_folder(token_kind: str) -> str:
    """The folder of the image processor, beside the tokens that it made."""
    return PALETTE if token_kind == PALETTE_TOKENS else PROCESSOR


def processor_beside(folder: str | os.PathLike) -> Path:
    """
    The folder of the image processor that made tokens: the one for their kind, whatever else lies beside them.

    Raises:
        ValueError: there is none, or the folder holds no tokens.
    """
    from hf_igpt.data.token_store import recorded_kind

    kind = recorded_kind(folder)
    path = Path(folder).parent / processor_folder(kind)
    if not (path / PROCESSOR_FILE).is_file():
        raise ValueError(
            f"The tokens of {folder} are of the kind {kind!r}, and there is no {path / PROCESSOR_FILE}: give "
            "`palette`, the folder of the image processor that made them."
        )
    return path
