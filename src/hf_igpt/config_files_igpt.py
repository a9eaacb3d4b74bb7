"""Config files of others: bounds that hold before one is read, and errors that say which one it was."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from typing import Any

from .saving_igpt import save_over


# Twice the palette of most colours. Reading more takes seconds, whatever is wrong with it.
MAX_BYTES = 1 << 24
MAX_DEPTH = 16
# What libraries raise where a file has a list or a word in place of an object, or no end of brackets.
_NO_CONFIG = (AttributeError, KeyError, RecursionError, TypeError)

# Attention that is part of torch. Any other is a package or, with a slash, a kernel that is fetched and run: whoever
# loads a model may ask for that, the file may not.
_OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
_ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# Names of a config class that a file may give a value all the same.
_SETTABLE = (
    "_attn_implementation",
    "_experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "torch_dtype",
)
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


def require_int(name: str, value: Any, low: int, high: int) -> None:
    """Raises ValueError for a field that isn't an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"`{name}` must be an integer from {low} to {high}, got {value!r}.")


def require_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError for a field that isn't a number from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"`{name}` must be a number from {low} to {high}, got {value!r}.")


class CheckedConfigMixin:
    """
    What the configs of this package do beside transformers' own: they refuse files that are no config of theirs and
    names that are no field, and a kill while one is saved leaves the old file or the new one.
    """

    # Names besides the fields that may be given because they follow from fields.
    _derived_names: tuple[str, ...] = ()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        As in transformers, which takes a missing file for an empty config.

        Raises:
            OSError: there is no config file.
            ValueError: the file is JSON, but no config.
        """
        with named_errors(pretrained_model_name_or_path):
            config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not isinstance(config_dict, dict):
            raise ValueError(
                f"{pretrained_model_name_or_path}: the config must be a JSON object, got {config_dict!r:.50}."
            )
        if not config_dict:
            raise OSError(f"{pretrained_model_name_or_path} has no config.json, or an empty one.")
        return config_dict, kwargs

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        refuse_large(json_file)
        return super()._dict_from_json_file(json_file)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; an error about a field names the checkpoint too."""
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        with named_errors(pretrained_model_name_or_path):
            return cls.from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers; a kill leaves the old file or the new one."""
        save = super().save_pretrained
        save_over(lambda folder: save(folder, push_to_hub, **kwargs), save_directory, re.compile(r"config\.json"))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None):
        """The config itself. transformers would take a field of a file that is named like a part of other models."""
        return self

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of the fields that this config adds to transformers' base config."""
        return [name for name in cls.__annotations__ if name in cls.__dataclass_fields__]

    def refuse_misspelt_names(self, kwargs: dict[str, Any]) -> None:
        """Raises ValueError for a name that is nearly a field's."""
        known = [*self.field_names(), *self.attribute_map, *self._derived_names]
        for name in kwargs:
            if name in known:
                continue
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close:
                raise ValueError(f"Unknown config field {name!r}. Did you mean {close[0]!r}?")

    def refuse_taken_names(self, kwargs: dict[str, Any]) -> None:
        """Raises ValueError for a name of the class: the base config sets whatever a file has, over methods too."""
        for name in kwargs:
            if hasattr(type(self), name) and name not in (*_SETTABLE, *self._derived_names):
                raise ValueError(f"`{name}` is no config field: the class has a method or property of that name.")


__all__ = [
    "CheckedConfigMixin",
    "named_errors",
    "refuse_foreign_fields",
    "refuse_large",
    "require_int",
    "require_number",
]
