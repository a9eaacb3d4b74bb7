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

# Attention that is part of torch. Any other is a package or, with a slash, a kernel that is fetched and run: whoever
# loads a model may ask for that, the file may not.
_OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
_ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# What transformers reads from a config file to take other files, classes or blocks than this package's.
_FOREIGN_FIELDS = (
    "distributed_config",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "fusion_config",
    "mlp_layer_types",
    "mtp_layer_types",
    "per_layer_config",
    "transformers_weights",
)


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


def refuse_foreign_fields(config_dict: dict[str, Any]) -> None:
    """Raises ValueError for fields of a file that would make loading take code, classes or files not its own."""
    for name, value in config_dict.items():
        if name in _ATTENTION_FIELDS and not (isinstance(value, str | None) and value in _OWN_ATTENTION):
            raise ValueError(
                f"`{name}` in a config file must be one of {', '.join(map(str, _OWN_ATTENTION[1:]))}, got {value!r}: "
                "others are code from elsewhere. Remove the field; to use them, pass `attn_implementation` when you "
                "load the model."
            )
        if name in _FOREIGN_FIELDS and value is not None:
            raise ValueError(
                f"`{name}` must not be in the config file of an Image GPT, got {value!r:.100}. Remove it."
            )
        _refuse_deep(name, value)


def _refuse_deep(name: str, value: Any) -> None:
    """Raises ValueError for a field that is nested deeper than copying and writing it would bear."""
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"`{name}` must not be nested deeper than {MAX_DEPTH} levels.")


def _is_deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth < 0 or any(_is_deeper(item, depth - 1) for item in inner)


__all__ = ["named_errors", "refuse_foreign_fields", "refuse_large"]
