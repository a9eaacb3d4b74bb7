"""Configuration of Image GPT (Chen et al., "Generative Pretraining from Pixels", ICML 2020)."""

import copy
import math
from typing import Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .config_files_igpt import CheckedConfigMixin, named_errors, refuse_foreign_fields, require_int, require_number
from .native_igpt import native_config_to_igpt
from .token_kinds_igpt import KINDS, LEVELS, RGB, TOKEN_KINDS


# Section 3.3 of the paper and the head counts of openai/image-gpt's README; parameters at 32x32 with 512 colours.
# The number of heads of XL was never published: 48 keeps S's head size of 64.
PRESETS: dict[str, dict[str, int]] = {
    "igpt-s": {"num_hidden_layers": 24, "hidden_size": 512, "num_attention_heads": 8},  # 76M
    "igpt-m": {"num_hidden_layers": 36, "hidden_size": 1024, "num_attention_heads": 8},  # 455M
    "igpt-l": {"num_hidden_layers": 48, "hidden_size": 1536, "num_attention_heads": 16},  # 1362M
    "igpt-xl": {"num_hidden_layers": 60, "hidden_size": 3072, "num_attention_heads": 48},  # 6801M
}

# What a process without the package loads from a checkpoint's own code. Always whole, whichever head was saved: where
# an entry is missing, transformers takes its own ImageGPT, whose classes have the same names.
AUTO_MAP = {
    "AutoConfig": "configuration_igpt.ImageGPTConfig",
    "AutoModel": "modeling_igpt.ImageGPTModel",
    "AutoModelForCausalLM": "modeling_igpt.ImageGPTForCausalImageModeling",
    "AutoModelForMaskedImageModeling": "modeling_igpt.ImageGPTForMaskedImageModeling",
    "AutoModelForImageClassification": "modeling_igpt.ImageGPTForImageClassification",
}

# The tasks of `custom_pipelines` that the package registers with transformers.
REGISTERED_PIPELINES = ("image-completion", "igpt-feature-extraction")

# The types of blocks in `layer_types`.
FULL, SLIDING = "full_attention", "sliding_attention"

MAX_GRID_SIDE = 4096
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 17
MAX_VOCABULARY = 1 << 20
MAX_WINDOW = 16 * MAX_GRID_SIDE**2


class ImageGPTConfig(CheckedConfigMixin, PreTrainedConfig):
    r"""
    Configuration of the Image GPT models. The defaults are iGPT-S at 32x32 with a 512-colour palette.

    Args:
        vocab_size (`int`, defaults to 513): token values plus one. The last id is the start of sequence.
        image_size (`int` or `[int, int]`, defaults to 32): side, or height and width, of the token grid.
        num_channels (`int`, defaults to 1): tokens per grid cell: 1 for a palette or codes, 3 for RGB.
        token_kind (`str`, *optional*): what the tokens are: `"palette"`, `"rgb"` or `"vqvae"`, as in the image
            processor. Not given, nothing is known of them.
        hidden_size (`int`, defaults to 512): width of the residual stream (`n_embd`).
        num_hidden_layers (`int`, defaults to 24): number of blocks (`n_layer`).
        num_attention_heads (`int`, defaults to 8): attention heads in a block (`n_head`).
        intermediate_size (`int`, *optional*): width of the MLP (`n_inner`); 4 times `hidden_size` when not given.
        hidden_act (`str`, defaults to `"quick_gelu"`): activation of the MLP (`activation_function`).
        is_causal (`bool`, defaults to `True`): attention direction. `True` for next-pixel models, `False` for masked.
        use_bias (`bool`, defaults to `False`): biases in the projections. The paper's model has none,
            transformers' ImageGPT has them.
        use_start_token (`bool`, defaults to `True`): a next-pixel classifier puts the start token in front of its
            input, as in pretraining. transformers' own classifiers were trained without it.
        pooler_layer (`int`, *optional*): layer whose mean-pooled features the classifier reads, from 0 (the normed
            embeddings) to `num_hidden_layers` (the final norm), which is also the default.
        generative_loss_weight (`float`, defaults to 1.0): weight of the generative loss beside the class loss.
        initializer_range (`float`, defaults to 0.02): scales every random matrix; 0.02 gives the paper's values.
        layer_norm_eps (`float`, defaults to 1e-5): added to the mean square in the norms (`layer_norm_epsilon`).
        embd_pdrop, resid_pdrop, attn_pdrop (`float`, default to 0): dropout after the embeddings, after each
            projection to the residual stream, and on the attention weights. The paper trains without.
        scale_attn_weights (`bool`, defaults to `True`): scale attention logits by the square root of the head size.
        scale_attn_by_inverse_layer_idx (`bool`, defaults to `False`): also divide them by the layer's number.
        reorder_and_upcast_attn (`bool`, defaults to `False`): compute attention in float32 for half-precision models.
        layer_types (`list[str]`, *optional*): for each block `"full_attention"` or `"sliding_attention"`; all full by
            default. Blocks of the second kind see a window of `sliding_window` tokens.
        sliding_window (`int`, *optional*): in next-pixel models the tokens that a position sees, itself included; in
            masked models the tokens that it sees on either side of itself. As in transformers.
        rotary_base (`float`, *optional*): base of the frequencies of rotary positions in two dimensions, beside the
            learned ones; 100 suits grids of up to 64x64. Not given, there are none, as in the paper.
        use_cache (`bool`, defaults to `True`): return keys and values for decoding. Never in training mode.

    GPT-2 names are accepted. `n_positions` is derived from the grid: it may be given where it equals the grid, or
    without `image_size` where it is a square number.

    Raises:
        ValueError: a field is out of range, two fields contradict each other, or a name is a misspelt field.
    """

    model_type = "igpt"
    # Saved with its code; so are the models and the image processor.
    _auto_class = "AutoConfig"
    _derived_names = ("n_positions", "max_position_embeddings")
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
    }

    vocab_size: int = 513
    image_size: int | list[int] | tuple[int, int] | None = None
    num_channels: int = 1
    token_kind: str | None = None
    hidden_size: int = 512
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    hidden_act: str = "quick_gelu"
    is_causal: bool = True
    use_bias: bool = False
    use_start_token: bool = True
    pooler_layer: int | None = None
    generative_loss_weight: float = 1.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    rotary_base: float | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any):
        self._refuse_contradicting_names(kwargs)
        self.refuse_misspelt_names(kwargs)
        self.refuse_taken_names(kwargs)
        self.validate_inherited(kwargs)
        n_positions = [kwargs.pop(name) for name in ("n_positions", "max_position_embeddings") if name in kwargs]
        super().__post_init__(**kwargs)
        for value in n_positions:
            self._derive_grid(value)
        if self.image_size is None:
            self.image_size = 32
        self.validate_fields()

    def validate_fields(self) -> None:
        """Checks every field; models call it again, since fields may be set after construction."""
        self._validate_types()
        self._validate_sizes()
        self._validate_choices()

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "ImageGPTConfig":
        """
        One of the paper's sizes: `igpt-s`, `igpt-m`, `igpt-l`, `igpt-xl` (section 3.3).

        Raises:
            ValueError: unknown preset, or an override that is no field; the message lists the valid ones.
        """
        if preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
        valid = set(cls.field_names()) | set(cls.attribute_map) | {"n_positions", "num_labels", "id2label", "label2id"}
        unknown = sorted(set(overrides) - valid)
        if unknown:
            raise ValueError(f"Unknown config field {unknown[0]!r}. Valid fields: {', '.join(sorted(valid))}.")
        sizes = {name: value for name, value in PRESETS[preset].items() if not _is_overridden(cls, name, overrides)}
        return cls(**sizes, **overrides)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """
        As in transformers; a dictionary with `model_type: imagegpt` is translated first (see `native_igpt.py`).

        Raises:
            ValueError: as the class; for the config of another kind of model; for fields that name code or files.
        """
        # The Auto classes pass the checkpoint's name.
        with named_errors(kwargs.get("name_or_path")):
            refuse_foreign_fields(config_dict)
            model_type = config_dict.get("model_type", cls.model_type)
            if model_type == "imagegpt":
                config_dict = native_config_to_igpt(config_dict)
            elif model_type != cls.model_type:
                raise ValueError(f"`model_type` must be {cls.model_type!r} or 'imagegpt', got {model_type!r}.")
            return super().from_dict(cls._without_registered_pipelines(config_dict), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with the whole `auto_map` and all `custom_pipelines`, whichever head is saved."""
        # Here and not above: the file imports all that pipelines need. It is saved with this one, for its import.
        from .pipeline_igpt import CUSTOM_PIPELINES

        fields = super().to_dict()
        pipelines = fields.get("custom_pipelines", {}) | copy.deepcopy(CUSTOM_PIPELINES)
        return fields | {"auto_map": dict(AUTO_MAP), "custom_pipelines": pipelines}

    @classmethod
    def _without_registered_pipelines(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """
        With the package its own pipelines are used, as its own classes are. transformers would ask for the trust to
        run those of the checkpoint, for it looks at `custom_pipelines` first.
        """
        pipelines = config_dict.get("custom_pipelines")
        is_from_checkpoint = cls.__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME
        if is_from_checkpoint or not isinstance(pipelines, dict):
            return config_dict
        kept = {task: entry for task, entry in pipelines.items() if task not in REGISTERED_PIPELINES}
        return config_dict | {"custom_pipelines": kept}

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return _as_grid(self.image_size)

    @property
    def n_positions(self) -> int:
        """Tokens of one image: height x width x `num_channels`."""
        height, width = self.grid
        return height * width * self.num_channels

    @property
    def max_position_embeddings(self) -> int:
        """The same as `n_positions`, under the name the rest of transformers reads."""
        return self.n_positions

    @property
    def attention_types(self) -> list[str]:
        """The type of every block's attention: `layer_types`, or full attention where that is not given."""
        return [FULL] * self.num_hidden_layers if self.layer_types is None else list(self.layer_types)

    @property
    def num_values(self) -> int:
        """Values a token can take; ids run from 0 to `num_values - 1`."""
        return self.vocab_size - 1

    @property
    def start_token_id(self) -> int:
        """Id of the start of sequence, the last row of the vocabulary."""
        return self.vocab_size - 1

    def _refuse_contradicting_names(self, kwargs: dict[str, Any]) -> None:
        defaults = type(self).__dataclass_fields__
        for alias, name in self.attribute_map.items():
            if alias not in kwargs:
                continue
            value = getattr(self, name)
            if value != defaults[name].default and value != kwargs[alias]:
                raise ValueError(
                    f"`{alias}` and `{name}` are one field, got {alias}={kwargs[alias]!r} and {name}={value!r}. "
                    "Give one of them."
                )

    def _derive_grid(self, n_positions: Any) -> None:
        require_int("n_positions", n_positions, 1, MAX_GRID_SIDE**2)
        if self.image_size is not None:
            _check_grid(self.image_size)
            require_int("num_channels", self.num_channels, 1, 16)
            if n_positions != self.n_positions:
                raise ValueError(
                    f"`n_positions` must equal height x width x num_channels = {self.n_positions}, got {n_positions}. "
                    "Leave it out: it follows from `image_size`."
                )
            return
        side = math.isqrt(n_positions)
        if side * side != n_positions or self.num_channels != 1:
            raise ValueError(
                f"`n_positions` without `image_size` must be a square number and `num_channels` 1, got "
                f"n_positions={n_positions}, num_channels={self.num_channels}. Give `image_size=[height, width]`."
            )
        self.image_size = side

    def _validate_types(self) -> None:
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be true or false, got {getattr(self, name)!r}.")
        for name, (low, high) in _FLOAT_RANGES.items():
            require_number(name, getattr(self, name), low, high)

    def _validate_sizes(self) -> None:
        _check_grid(self.image_size)
        if not isinstance(self.image_size, int):
            self.image_size = list(self.image_size)
        require_int("vocab_size", self.vocab_size, 3, MAX_VOCABULARY)
        require_int("num_channels", self.num_channels, 1, 16)
        require_int("hidden_size", self.hidden_size, 1, MAX_WIDTH)
        require_int("num_hidden_layers", self.num_hidden_layers, 1, MAX_LAYERS)
        require_int("num_attention_heads", self.num_attention_heads, 1, MAX_WIDTH)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                "`hidden_size` must be divisible by `num_attention_heads`, got "
                f"hidden_size={self.hidden_size}, num_attention_heads={self.num_attention_heads}."
            )
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        require_int("intermediate_size", self.intermediate_size, 1, 16 * MAX_WIDTH)
        if self.pooler_layer is not None:
            require_int("pooler_layer", self.pooler_layer, 0, self.num_hidden_layers)

    def _validate_choices(self) -> None:
        if self.bos_token_id is None:
            self.bos_token_id = self.start_token_id
        if self.bos_token_id != self.start_token_id:
            raise ValueError(
                f"`bos_token_id` must be the last id of the vocabulary, {self.start_token_id}, got "
                f"{self.bos_token_id}. Leave it out."
            )
        if self.eos_token_id is not None or self.pad_token_id is not None:
            raise ValueError(
                "`eos_token_id` and `pad_token_id` must be None: an image ends when its grid is full, got "
                f"eos_token_id={self.eos_token_id}, pad_token_id={self.pad_token_id}."
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "`tie_word_embeddings` must be False: the output head has one row fewer than the token embedding."
            )
        self._validate_kind()
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}.")
        self._validate_windows()
        self._validate_rotation()

    def _validate_rotation(self) -> None:
        if self.rotary_base is None:
            return
        require_number("rotary_base", self.rotary_base, 1.0, 1e6)
        head_size = self.hidden_size // self.num_attention_heads
        if head_size % 4:
            raise ValueError(
                "`rotary_base` needs heads whose size is divisible by 4, for pairs that turn by row and by column; "
                f"`hidden_size` / `num_attention_heads` is {head_size}. Change one of them, or leave it out."
            )

    def _validate_kind(self) -> None:
        if self.token_kind is None:
            return
        if self.token_kind not in KINDS:
            raise ValueError(f"`token_kind` must be one of {', '.join(KINDS)}, got {self.token_kind!r}.")
        channels = TOKEN_KINDS[self.token_kind].num_channels
        values = LEVELS if self.token_kind == RGB else self.num_values
        if self.num_channels != channels or self.num_values != values:
            raise ValueError(
                f"`token_kind` {self.token_kind!r} has {channels} tokens a cell of {values} values: `num_channels` "
                f"must be {channels} and `vocab_size` {values + 1}, got {self.num_channels} and {self.vocab_size}."
            )

    def _validate_windows(self) -> None:
        if self.sliding_window is not None:
            # transformers' cache of a window of one token drops none.
            require_int("sliding_window", self.sliding_window, 2, MAX_WINDOW)
        if self.layer_types is None:
            if self.sliding_window is not None:
                raise ValueError(
                    f"`sliding_window` is {self.sliding_window}, but no block has a window. Give `layer_types`, "
                    f"{FULL!r} or {SLIDING!r} for each block, or leave `sliding_window` out."
                )
            return
        self.layer_types = list(self.layer_types)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` must have one entry for each of the {self.num_hidden_layers} blocks "
                f"(`num_hidden_layers`), got {len(self.layer_types)}."
            )
        unknown = [layer_type for layer_type in self.layer_types if layer_type not in (FULL, SLIDING)]
        if unknown:
            raise ValueError(f"`layer_types` must be of {FULL!r} and {SLIDING!r}, got {unknown[0]!r}.")
        if (SLIDING in self.layer_types) != (self.sliding_window is not None):
            raise ValueError(
                f"`layer_types` with {SLIDING!r} and `sliding_window` belong together, got "
                f"{self.layer_types.count(SLIDING)} such blocks and sliding_window={self.sliding_window}. Give the "
                "window in tokens, or full attention only and no window."
            )


_BOOLEANS = (
    "is_causal",
    "use_bias",
    "use_start_token",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "use_cache",
    "tie_word_embeddings",
)
_FLOAT_RANGES = {
    "generative_loss_weight": (0.0, 1e6),
    "initializer_range": (0.0, 1e3),
    "layer_norm_eps": (0.0, 1.0),
    "embd_pdrop": (0.0, 1.0),
    "resid_pdrop": (0.0, 1.0),
    "attn_pdrop": (0.0, 1.0),
}


def _is_overridden(cls: type[ImageGPTConfig], name: str, overrides: dict[str, Any]) -> bool:
    return name in overrides or any(alias in overrides for alias, field in cls.attribute_map.items() if field == name)


def _as_grid(image_size: Any) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def _check_grid(image_size: Any) -> None:
    sides = [image_size] if isinstance(image_size, int) else image_size
    if not isinstance(sides, list | tuple) or len(sides) not in (1, 2) or (len(sides) == 1) != (sides == [image_size]):
        raise ValueError(f"`image_size` must be an integer or [height, width], got {image_size!r}.")
    for side in sides:
        require_int("image_size", side, 1, MAX_GRID_SIDE)


__all__ = ["FULL", "PRESETS", "SLIDING", "ImageGPTConfig"]
