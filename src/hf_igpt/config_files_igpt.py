"""Config files of others: bounds that hold before one is read, and errors that say which one it was."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any


# Twice the palette of most colours. Reading more takes seconds, whatever is wrong with it.
MAX_BYTES = 1 << 24
MAX_DEPTH = 16
# What libraries raise where a file has a list or a word in place of an object, or no end of brackets.
_NO_CONFIG = (AttributeError, KeyError, RecursionError, TypeError)


@contextlib.contextmanager
def named_errors(name_or_path: Any) -> Iterator[None]:
    """Errors about a checkpoint's config are ValueErrors that begin with its name, where that is known."""
    try:
        yield
    except (*_NO_CONFIG, ValueError) as error:
        place = "" if name_or_path is None else f"{name_or_path}: "
        if isinstance(error, _NO_CONFIG):
            raise ValueError(f"{place}the config is no config: {error}") from error
        if str(error).startswith(place):
            raise
        raise ValueError(place + str(error)) from error


def refuse_large(path: str | os.PathLike) -> None:
    """Raises ValueError for a file of more than 16 MiB. One that isn't there is left to the reader."""
    with contextlib.suppress(FileNotFoundError):
        if (size := os.stat(path).st_size) > MAX_BYTES:
            raise ValueError(f"{path} must have at most {MAX_BYTES} bytes, got {size}: that is no config.")


def refuse_deep(name: str, value: Any) -> None:
    """Raises ValueError for a field that is nested deeper than copying and writing it would bear."""
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"`{name}` must not be nested deeper than {MAX_DEPTH} levels.")


def _is_deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth < 0 or any(_is_deeper(item, depth - 1) for item in inner)


__all__ = ["named_errors", "refuse_deep", "refuse_large"]
