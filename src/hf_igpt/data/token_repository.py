"""Tokens by name: a folder, or a data set on the Hub that `hf-igpt push_to_hub` published."""

import os
from pathlib import Path


# The two folders of such a repository.
TOKENS, PALETTE = "tokens", "palette"


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
            allow_patterns=[f"{TOKENS}/*", f"{PALETTE}/*.json"],
        )
    except (OSError, HFValidationError) as error:
        raise ValueError(f"There is no folder {name}, and no such tokens on the Hub: {error}") from error
    if not (Path(folder) / TOKENS).is_dir():
        raise ValueError(f"{name} is a data set on the Hub, but no tokenized one: give it as `dataset_name`.")
    return Path(folder) / TOKENS


def palette_beside(folder: str | os.PathLike) -> Path:
    """
    The folder of the image processor that made tokens.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder).parent / PALETTE
    if not (path / "preprocessor_config.json").is_file():
        raise ValueError(
            f"There is no palette beside {folder}: give `palette`, the image processor that made the tokens."
        )
    return path
