"""Files of others: bounds that hold before a config is read, numbers of weights, and errors that say whose it was."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from .saving_igpt import save_over


# Twice the palette of most colours. Reading more takes seconds, whatever is wrong with it.
MAX_BYTES = 1 << 24
MAX_DEPTH = 16
# What libraries raise where a file has a list or a word in place of an object, or no end of brackets.
_NO_CONFIG = (AttributeError, KeyError, RecursionError, TypeError)

MAX_LABELS = 1 << 17
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

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
        # The name itself, or that of a file or folder in it.
        if not place or str(error).startswith((place, os.path.join(name_or_path, ""))):
            raise
        raise ValueError(place + str(error)) from error


def place_of(name_or_path: Any, subfolder: str | None = None) -> str:
    """What errors call a folder or Hub name, with the folder inside it where there is one."""
    return os.path.join(name_or_path, subfolder) if subfolder else str(name_or_path)


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


def check_finite(model: torch.nn.Module, name_or_path: str) -> None:
    """Raises ValueError with the first tensor that has NaN or infinities, and with their number."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (wrong := int((~tensor.isfinite()).sum())):
            raise ValueError(
                f"{name_or_path}: {wrong} of the {tensor.numel()} numbers in {name} are NaN or infinite. Such a model "
                "computes nothing; take an earlier checkpoint."
            )


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
        place = place_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        with named_errors(place):
            config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not isinstance(config_dict, dict):
            raise ValueError(f"{place}: the config must be a JSON object, got {config_dict!r:.50}.")
        if not config_dict:
            raise OSError(f"{place} has no config.json, or an empty one.")
        return config_dict, kwargs

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        refuse_large(json_file)
        return super()._dict_from_json_file(json_file)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; an error about a field names the checkpoint too."""
        place = place_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        with named_errors(place):
            return cls.from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers; a kill leaves the old file or the new one."""
        save = super().save_pretrained
        save_over(lambda folder: save(folder, push_to_hub, **kwargs), save_directory, re.compile(r"config\.json"))

    def validate_inherited(self, kwargs: dict[str, Any]) -> None:
        """
        Raises ValueError for fields that the base config would take without a look, some of them to size what it
        builds at once.
        """
        self._validate_labels(kwargs)
        self._validate_base_types(kwargs)
        types = kwargs.get("layer_types", getattr(self, "layer_types", None))
        if types is not None and not (isinstance(types, list | tuple) and all(isinstance(t, str) for t in types)):
            raise ValueError(f"`layer_types` must be a list of strings, got {types!r}.")
        for name, value in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            named = getattr(torch, value, None) if isinstance(value, str) else value
            if value is not None and named not in DTYPES:
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
                raise ValueError(f"`{name}` must be the name of a dtype of weights, one of {names}, got {value!r}.")
        if not isinstance(kwargs.get("custom_pipelines", {}), dict):
            raise ValueError(f"`custom_pipelines` must be an object, got {kwargs['custom_pipelines']!r}.")
        if kwargs.get("per_layer_config") is not None:
            raise ValueError("`per_layer_config` must be left out: all blocks are alike.")

    def _validate_base_types(self, kwargs: dict[str, Any]) -> None:
        given = {"output_attentions": kwargs.get("output_attentions", False)}
        given |= {name: getattr(self, name) for name in ("output_hidden_states", "return_dict", "is_encoder_decoder")}
        for name, value in given.items():
            if not isinstance(value, bool | None):
                raise ValueError(f"`{name}` must be true or false, got {value!r}.")
        if self.is_encoder_decoder:
            raise ValueError("`is_encoder_decoder` must be false: encoder and decoder are no models apart.")
        names = self.architectures
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"`architectures` must be a list of class names, got {names!r}.")
        quantization = kwargs.get("quantization_config")
        if isinstance(quantization, dict) and not isinstance(quantization.get("quant_method"), str):
            raise ValueError(f"`quantization_config` must name its `quant_method`, got {quantization!r:.100}.")
        if not isinstance(quantization, dict | None) and not hasattr(quantization, "to_dict"):
            raise ValueError(f"`quantization_config` must be an object, got {quantization!r:.100}.")

    def _validate_labels(self, kwargs: dict[str, Any]) -> None:
        if kwargs.get("num_labels") is not None:
            require_int("num_labels", kwargs["num_labels"], 1, MAX_LABELS)
        else:
            kwargs.pop("num_labels", None)
        for name in ("id2label", "label2id"):
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"`{name}` must be an object, got {getattr(self, name)!r}.")
        keys = [0] if self.id2label is None else list(self.id2label)
        is_gapless = {str(key) for key in keys} == {str(number) for number in range(len(keys))}
        if not is_gapless or not 1 <= len(keys) <= MAX_LABELS:
            raise ValueError(
                f"`id2label` must have the classes 0, 1, 2 ... for keys, at most {MAX_LABELS}, got {keys!r:.100}."
            )
        if not all(isinstance(value, int) for value in (self.label2id or {}).values()):
            raise ValueError(f"`label2id` must have integers for values, got {self.label2id!r:.100}.")
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`problem_type` must be one of {', '.join(PROBLEM_TYPES)}, got {self.problem_type!r}.")

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
    "DTYPES",
    "CheckedConfigMixin",
    "check_finite",
    "named_errors",
    "place_of",
    "refuse_foreign_fields",
    "refuse_large",
    "require_int",
    "require_number",
]
