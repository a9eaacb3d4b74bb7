"""The files of this package that a saved model carries and that run where it is loaded with `trust_remote_code`."""

import hashlib
import os
from pathlib import Path

import hf_igpt


PACKAGE = Path(hf_igpt.__file__).parent
PATTERN = "*_igpt*.py"


def code_files(folder: str | os.PathLike) -> dict[str, str]:
    """
    SHA-256 by name of the code in a saved folder.

    Raises:
        ValueError: a file differs from this package's own, or isn't one of them.
    """
    found = {}
    for path in sorted(Path(folder).glob("*.py")):
        own = PACKAGE / path.name
        if not path.match(PATTERN) or not own.is_file() or own.read_bytes() != path.read_bytes():
            raise ValueError(f"{path} is not this package's {path.name}: code of others is not published. Remove it.")
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
