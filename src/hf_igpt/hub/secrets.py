"""The last look at what is about to be uploaded: no secret, no pickle, no link out of the folder."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_igpt.redaction import find_secrets


_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def check_upload(files: Mapping[str, str | os.PathLike], known: Iterable[str] = ()) -> None:
    """
    Checks files that are about to be uploaded, whole.

    Args:
        files: paths here by path in the repository.
        known: secrets to look for besides those of the environment, such as the token in use.

    Raises:
        ValueError: a file holds a secret (its name and kind are said, not the secret), is a pickle or a link.
    """
    known = list(known)
    for name, path in files.items():
        if Path(path).is_symlink():
            raise ValueError(f"{name} is a link: only files are published.")
        if name.endswith(_PICKLES):
            raise ValueError(f"{name} is a pickle, which runs code when it is read: it is not published.")
        if found := find_secrets(Path(path).read_bytes(), known):
            raise ValueError(
                f"{name} holds {found[0]}. Nothing was uploaded. Take it out of the file, and make the secret invalid "
                "if others could have read it."
            )
