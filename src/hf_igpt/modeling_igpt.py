"""
Image GPT, an autoregressive or masked Transformer over the tokens of an image. Read bottom-up.

It differs from GPT-2 in (lines of openai/image-gpt, src/model.py):
- norms divide by the root mean square, without mean or bias (31-39);
- the activation is x * sigmoid(1.702 x), "quick GELU" (28);
- projections have no biases (transformers' ImageGPT adds them: `use_bias`);
- a learned start vector stands in front and the last token is no input (177-180); here it is the last vocabulary row;
- the output head is not tied to the embedding, has one row per token value and starts at zero (168);
- matrices are initialised as `_init_weights` lists;
- masked models attend in both directions and zero the content embedding of masked tokens (160-162).

Shapes: B images, T tokens in raster order, C width, H heads, D head size, V token values.
"""

import copy
import functools
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ImageClassifierOutput,
    MaskedLMOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .causal_generation_igpt import (
    CACHE_NAME,
    MASKS,
    ImageGenerationMixin,
    one_cache,
    paper_generation_config,
)
from .checkpoint_igpt import (
    is_quantized,
    read_state_dict,
    refuse_other_sizes,
    refuse_other_tensors,
    refuse_unread,
)
from .checks_igpt import check_mask, check_tokens
from .configuration_igpt import FULL, SLIDING, ImageGPTConfig
from .functional_igpt import quick_gelu, recomputed_for_backward, rms_norm
from .generation_igpt import iterative_decode
from .losses_igpt import head_nats, masked_mean, mean_over, share, token_nats
from .native_igpt import native_state_dict_to_igpt
from .rotary_igpt import Rotation, rotation_of, split_heads
from .saving_igpt import SavedOverMixin
from .windowed_attention_igpt import attend_in_blocks


logger = logging.get_logger(__name__)

# What `from_pretrained` takes to find files, for reading a config or weights beside it.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ImageGPTRMSNorm(nn.Module):
    """Divides by the root mean square over the width; statistics are computed in float32 for half-precision input."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, weights in float32 up; returns the weights too, for `output_attentions`."""
    dtype = torch.promote_types(torch.float32, query.dtype)
    attn_weights = torch.matmul(query.to(dtype), key.to(dtype).transpose(2, 3)) * scaling  # (B, H, T, T)
    if attention_mask is not None:
        # The lowest number of float16 is within the range of weights: what is hidden needs the lowest of this type.
        is_bool = attention_mask.dtype == torch.bool
        hidden = ~attention_mask if is_bool else attention_mask == torch.finfo(attention_mask.dtype).min
        attn_weights = attn_weights if is_bool else attn_weights + attention_mask
        attn_weights = attn_weights.masked_fill(hidden, torch.finfo(dtype).min)
    attn_weights = F.softmax(attn_weights, dim=-1).to(query.dtype)
    attn_weights = F.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()  # (B, T, H, D)
    return attn_output, attn_weights


def _linear(in_features: int, out_features: int, bias: bool, std: float) -> nn.Linear:
    """A linear layer that carries the standard deviation of its initialisation, read by `_init_weights`."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.init_std = std
    return layer


class ImageGPTAttention(nn.Module):
    """Attention of one block, through transformers' attention interface: one product for queries, keys and values."""

    def __init__(self, config: ImageGPTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.attention_dropout = config.attn_pdrop
        self.is_causal = config.is_causal
        self.window = config.sliding_window if config.attention_types[layer_idx] == SLIDING else None
        width = config.hidden_size
        self.c_attn = _linear(width, 3 * width, config.use_bias, width**-0.5)
        self.c_proj = _linear(width, width, config.use_bias, (width * config.num_hidden_layers) ** -0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, width = hidden_states.shape
        query, key, value = split_heads(self.c_attn(hidden_states), self.num_heads, rotation)  # each (B, H, T, D)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if self.config.reorder_and_upcast_attn:
            dtype = torch.promote_types(torch.float32, query.dtype)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attend = functools.partial(
            attention_interface,
            self,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self._flash_window,
            **kwargs,
        )
        if self._needs_blocks(query, key, attention_mask):
            attn_output = attend_in_blocks(
                lambda *states: attend(*states)[0], query, key, value, self.window, self.is_causal
            )
            attn_weights = None
        else:
            attn_output, attn_weights = attend(query, key, value, attention_mask)
        attn_output = attn_output.reshape(batch, length, width).to(hidden_states.dtype)
        return self.c_proj(attn_output), attn_weights

    @property
    def _flash_window(self) -> int | None:
        """`sliding_window` as flash attention counts it: the token itself and those on one side of it."""
        if self.window is None or self.is_causal:
            return self.window
        return self.window + 1

    def _needs_blocks(self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
        """Whether the backend was left to keep to the window, and can't."""
        if self.window is None or attention_mask is not None or "sdpa" not in self.config._attn_implementation:
            return False
        return query.shape[2] == key.shape[2] > self.window


class ImageGPTMLP(nn.Module):
    """The two projections of a block with the activation between them, which the backward pass may compute again."""

    def __init__(self, config: ImageGPTConfig):
        super().__init__()
        self.c_fc = _linear(config.hidden_size, config.intermediate_size, config.use_bias, 0.02)
        self.act = quick_gelu if config.hidden_act == "quick_gelu" else ACT2FN[config.hidden_act]
        self.c_proj = _linear(config.intermediate_size, config.hidden_size, config.use_bias, 0.02)

    def forward(self, hidden_states: torch.Tensor, recompute: bool) -> torch.Tensor:
        with recomputed_for_backward(self.act, self.c_fc(hidden_states), enabled=recompute) as activated:
            return self.c_proj(activated)


class ImageGPTBlock(GradientCheckpointingLayer):
    """A pre-norm block: attention and MLP, each added to its input (paper, section 2.2)."""

    def __init__(self, config: ImageGPTConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = ImageGPTRMSNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = ImageGPTAttention(config, layer_idx)
        self.ln_2 = ImageGPTRMSNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = ImageGPTMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        **kwargs,
    ) -> torch.Tensor:
        # Gradient checkpointing recomputes the whole block; keeping inputs for parts of it would undo that.
        recompute = not (self.gradient_checkpointing and self.training)
        with recomputed_for_backward(self.ln_1, hidden_states, enabled=recompute) as normed:
            attn_output, _ = self.attn(normed, attention_mask, cache, rotation, **kwargs)
        hidden_states = hidden_states + self.dropout(attn_output)
        with recomputed_for_backward(self.ln_2, hidden_states, enabled=recompute) as normed:
            return hidden_states + self.dropout(self.mlp(normed, recompute))


class ImageGPTPreTrainedModel(SavedOverMixin, PreTrainedModel):
    """Loading, saving and initialisation shared by every Image GPT model."""

    config_class = ImageGPTConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules = ["ImageGPTBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ImageGPTBlock, "attentions": ImageGPTAttention}
    # The direction of attention that a head needs; None follows the config.
    _required_direction: bool | None = None

    def __init__(self, config: ImageGPTConfig, *args, **kwargs):
        config.validate_fields()
        if self._required_direction is not None and config.is_causal != self._required_direction:
            raise ValueError(
                f"{type(self).__name__} needs `is_causal={self._required_direction}`, got a config with "
                f"is_causal={config.is_causal}. Set the field, or use the head that fits this config."
            )
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        The paper's initialisation (openai/image-gpt, src/model.py 20-23, 111-136, 167-181). Standard deviations, all
        scaled by `initializer_range / 0.02`:

        | weight | std |
        |---|---|
        | token embedding, start token | 0.02 |
        | position embedding | 0.01 |
        | query, key, value | 1 / sqrt(width) |
        | attention output | 1 / sqrt(width x layers) |
        | both MLP matrices | 0.02 |
        | output head, class head | 0 |
        """
        scale = self.config.initializer_range / 0.02
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=scale * module.init_std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, ImageGPTRMSNorm):
            init.ones_(module.weight)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, output_loading_info=False, **kwargs
    ):
        """
        As in transformers. Also reads checkpoints of transformers' own ImageGPT (`model_type: imagegpt`) into this
        class, with equal logits; saved again, they have our layout.

        Raises:
            ValueError: the checkpoint was saved with an attention direction that this head cannot have; its config is
                not about its weights; a tensor is missing, unknown, or of another shape or type.
        """
        if pretrained_model_name_or_path is None or {"gguf_file", "state_dict"} & {*kwargs}:
            kwargs["output_loading_info"] = output_loading_info
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        try:
            saved, _ = ImageGPTConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments)
        except OSError:
            # No config of its own: a config given by the caller, an adapter, or an error that transformers words.
            saved = config.to_dict() if isinstance(config, ImageGPTConfig) else {}
        tensors = cls._check_files(pretrained_model_name_or_path, saved, kwargs) if saved else {}
        load = cls._from_native if saved.get("model_type") == "imagegpt" else super().from_pretrained
        try:
            model, info = load(
                pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
            )
        except ValueError as error:
            # A head that refuses its config doesn't know where that is from.
            if type(error) is not ValueError or str(pretrained_model_name_or_path) in str(error):
                raise
            raise ValueError(f"{pretrained_model_name_or_path}: {error}") from error
        refuse_unread(pretrained_model_name_or_path, info["missing_keys"], tensors)
        return (model, info) if output_loading_info else model

    @classmethod
    def _check_files(cls, name_or_path, saved, options) -> dict[str, torch.Tensor]:
        """Refuses a checkpoint before memory is taken for it; gives its tensors without their numbers."""
        if cls._required_direction is not None and saved.get("is_causal", True) != cls._required_direction:
            raise ValueError(
                f"{cls.__name__} needs a checkpoint with `is_causal={cls._required_direction}`, but "
                f"{name_or_path} was saved with is_causal={saved.get('is_causal')}. "
                "Load it with the head it was trained with."
            )
        config = ImageGPTConfig.from_dict(dict(saved), name_or_path=name_or_path)
        files = {name: options[name] for name in (*_HUB_ARGUMENTS, "variant", "use_safetensors") if name in options}
        tensors = read_state_dict(name_or_path, map_location="meta", **files)
        if saved.get("model_type") == "imagegpt":
            tensors = native_state_dict_to_igpt(tensors)
        is_packed = is_quantized(name_or_path, config)
        refuse_other_sizes(name_or_path, config, tensors, is_packed)
        if not is_packed:
            refuse_other_tensors(name_or_path, config, tensors, cls.__name__)
        return tensors

    @classmethod
    def _from_native(
        cls, name_or_path, *model_args, config, variant=None, use_safetensors=None, output_loading_info=False, **kwargs
    ):
        hub_arguments = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        if config is None:
            config, kwargs = ImageGPTConfig.from_pretrained(
                name_or_path, return_unused_kwargs=True, **hub_arguments, **kwargs
            )
        weights = read_state_dict(name_or_path, variant, use_safetensors=use_safetensors, **hub_arguments)
        model, loading_info = super().from_pretrained(
            None,
            *model_args,
            config=config,
            state_dict=native_state_dict_to_igpt(weights),
            output_loading_info=True,
            **kwargs,
        )
        model.config.name_or_path = str(name_or_path)
        return (model, loading_info) if output_loading_info else model

    def resize_token_embeddings(self, *args, **kwargs):
        """Refused: every id is a value of the image processor's tokens, so the vocabulary cannot grow or shrink."""
        raise ValueError(
            "The token embeddings of an Image GPT cannot be resized: every id is a value of its image "
            "processor's tokens. Train a model on other tokens instead."
        )


class ImageGPTModel(ImageGPTPreTrainedModel):
    """The Transformer without a head: token ids in, hidden states after the final norm out."""

    _auto_class = "AutoModel"
    # The heads of the checkpoints that it is loaded from.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^score\."]

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wte.init_std = 0.02
        self.wpe = nn.Embedding(config.n_positions, config.hidden_size)
        self.wpe.init_std = 0.01
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([ImageGPTBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.ln_f = ImageGPTRMSNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self._has_looked_for_start_token = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: token ids of shape (B, T), each in [0, vocab_size). Next-pixel models expect the start token
                first, and warn once where it isn't there: see `encode` and `features` for the tokens of images.
            attention_mask: 1 for tokens to attend to, 0 for others, of shape (B, T); or a prepared 4-D mask, for all
                layers whatever their window; or a prepared mask for each type of layers, by its name.
            position_ids: positions of shape (B, T); by default they count on from the cache.
            past_key_values: keys and values of the tokens before `input_ids`.
            cache: the same, by its name in transformers from 5.24 on.
            inputs_embeds: embeddings of shape (B, T, C) in place of `input_ids`; positions are added to them.
            use_cache: return keys and values; by default `config.use_cache` outside training.
            bool_masked_pos: for masked models, True where a token is hidden, of shape (B, T): its content embedding is
                zero, its position embedding stays (openai/image-gpt, src/model.py 160-162).

        Returns:
            `last_hidden_state` of shape (B, T, C) after the final norm. With `output_hidden_states=True` also the
            input of every block and, last, the final norm's output.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; ids outside the vocabulary; more tokens
                than the grid has; a mask for a next-pixel model, or of another shape or type.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            check_tokens("input_ids", input_ids, self.config, with_start=True)
            if cache is None and past_key_values is None and position_ids is None and not self.training:
                self._look_for_start_token(input_ids)
            inputs_embeds = self.wte(input_ids)
        if bool_masked_pos is not None:
            check_mask(bool_masked_pos, inputs_embeds.shape[:2], self.config)
            inputs_embeds = inputs_embeds.masked_fill(bool_masked_pos.unsqueeze(-1), 0)
        cache = one_cache(cache, past_key_values)
        if use_cache and self.config.is_causal and not self.training and cache is None:
            cache = DynamicCache(config=self.config)
        past_length = cache.get_seq_length() if cache is not None else 0
        length = inputs_embeds.shape[1]
        self._check_length(length, past_length)
        if position_ids is None:
            position_ids = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)

        masks = self._attention_masks(inputs_embeds, attention_mask, cache, past_length)
        hidden_states = self.drop(inputs_embeds + self.wpe(position_ids))
        rotation = rotation_of(self.config, position_ids, hidden_states.dtype)
        for layer_type, block in zip(self.config.attention_types, self.h, strict=True):
            hidden_states = block(hidden_states, masks[layer_type], cache, rotation, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden_states), **{CACHE_NAME: cache})

    def _look_for_start_token(self, input_ids: torch.LongTensor) -> None:
        # Whatever feeds a processor's output to the model forgets it, transformers' feature pipeline for one. On an
        # accelerator a look waits for the device: the first input must do.
        if not (self.config.is_causal and self.config.use_start_token) or torch.compiler.is_compiling():
            return
        if input_ids.device.type == "cpu" or (not self._has_looked_for_start_token and not input_ids.is_meta):
            self._has_looked_for_start_token = True
            warn_without_start_token(input_ids, self.config)

    def _check_length(self, length: int, past_length: int | torch.Tensor) -> None:
        # A static cache counts in a tensor: reading it would break a compiled graph or wait for an accelerator.
        if torch.is_tensor(past_length):
            is_readable = past_length.device.type == "cpu" and not torch.compiler.is_compiling()
            past_length = int(past_length) if is_readable else 0
        total = length + past_length
        if total > self.config.n_positions:
            raise ValueError(
                f"An image of this model has {self.config.n_positions} tokens (grid {self.config.grid}, "
                f"{self.config.num_channels} per cell), got {total}. Resize the image, or load a model of that size."
            )

    def _attention_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
        cache: Cache | None,
        past_length: int | torch.Tensor,
    ) -> dict[str, torch.Tensor | None]:
        """The mask of each type of layers; None where the backend needs none."""
        if isinstance(attention_mask, dict):
            return attention_mask
        return {
            layer_type: None
            if self._skips_mask(layer_type, inputs_embeds.shape[1], attention_mask, cache, past_length)
            else MASKS[layer_type](self.config, inputs_embeds, attention_mask, cache)
            for layer_type in dict.fromkeys(self.config.attention_types)
        }

    def _skips_mask(
        self,
        layer_type: str,
        length: int,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        past_length: int | torch.Tensor,
    ) -> bool:
        # These backends take the direction as a flag. `create_causal_mask` would build a T x T mask while compiling.
        is_sdpa = "sdpa" in self.config._attn_implementation
        takes_flag = is_sdpa or "flash" in self.config._attn_implementation
        if layer_type == FULL or not is_sdpa:
            return attention_mask is None and cache is None and takes_flag
        # Windows of sdpa are attended to in blocks: of a whole sequence of known length, of which nothing is hidden.
        if torch.compiler.is_exporting() and not isinstance(length, int):
            return False
        is_whole = cache is None
        if not is_whole:
            # The first input to a cache, if it's longer than the window: a static cache gives it back padded.
            is_whole = isinstance(past_length, int) and past_length == 0 and length > self.config.sliding_window
        return is_whole and _hides_nothing(attention_mask)

    def encode(self, tokens: torch.LongTensor, **kwargs) -> BaseModelOutputWithPast:
        """
        Runs the backbone on the tokens of whole images as it was pretrained: next-pixel models see the start token
        first and not the last token, so position i is what predicts token i; masked models see the tokens, except
        those that are masked.

        Args:
            tokens: ids of shape (B, T), in raster order, without the start token.
            kwargs: arguments of the backbone, for masked models `bool_masked_pos` among them.
        """
        if self.config.is_causal and self.config.use_start_token:
            start = tokens.new_full((tokens.shape[0], 1), self.config.start_token_id)
            tokens = torch.cat([start, tokens[:, :-1]], dim=1)
        return self(input_ids=tokens, use_cache=False, **kwargs)

    def features(
        self,
        tokens: torch.LongTensor,
        layer: int | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
    ) -> torch.Tensor:
        """
        One layer's features at every position, of shape (B, T, C), of an input as in pretraining: in a next-pixel
        model the features at a position have seen the tokens before it and predict that token.

        Args:
            tokens: ids of shape (B, T), without the start token.
            layer: 0 (the normed embeddings) to `num_hidden_layers` (the final norm); by default
                `config.pooler_layer`, or the final norm where that is not set.
            bool_masked_pos: for masked models, True where a token is hidden, of shape (B, T). Pretrained with hidden
                tokens, they see them in the paper's probes too (section 4.6); by default nothing is hidden.

        Raises:
            ValueError: `layer` out of range, or what the backbone refuses.
        """
        layer = _resolve_layer(self.config, layer)
        needs_hidden_states = layer < self.config.num_hidden_layers
        outputs = self.encode(tokens, output_hidden_states=needs_hidden_states, bool_masked_pos=bool_masked_pos)
        return self._layer_features(outputs, layer)

    def pooled_features(
        self,
        tokens: torch.LongTensor,
        layer: int | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
    ) -> torch.Tensor:
        """Mean over positions of one layer's `features` (paper, section 2.4), of shape (B, C)."""
        return self.features(tokens, layer, bool_masked_pos).mean(dim=1)

    def _pool(self, outputs: BaseModelOutputWithPast, layer: int) -> torch.Tensor:
        return self._layer_features(outputs, layer).mean(dim=1)

    def _layer_features(self, outputs: BaseModelOutputWithPast, layer: int) -> torch.Tensor:
        if layer == self.config.num_hidden_layers:
            return outputs.last_hidden_state
        return self.h[layer].ln_1(outputs.hidden_states[layer])


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, ImageGenerationMixin, GenerationMixin):
    """Next-pixel Image GPT: the likelihood of an image, token by token in raster order, and its sampler."""

    _auto_class = "AutoModelForCausalLM"
    _required_direction = True

    def __init__(self, config: ImageGPTConfig):
        if not config.use_start_token:
            raise ValueError(
                f"{type(self).__name__} needs `use_start_token=True`, got False: every pixel would be given to the "
                "position that predicts it. transformers' classifiers are such checkpoints: load them with "
                "ImageGPTForImageClassification."
            )
        super().__init__(config)
        self.transformer = ImageGPTModel(config)
        self.lm_head = _linear(config.hidden_size, config.num_values, False, 0.0)
        self.post_init()
        self.generation_config = paper_generation_config(config)

    @property
    def plain_modules(self) -> frozenset[type[nn.Module]]:
        """The classes whose work `fast_decoding_igpt.py` does in their place."""
        blocks = (ImageGPTBlock, ImageGPTAttention, ImageGPTMLP, ImageGPTRMSNorm)
        layers = (nn.Embedding, nn.Linear, nn.Dropout, nn.ModuleList)
        return frozenset((ImageGPTForCausalImageModeling, ImageGPTModel, *blocks, *layers))

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Cache | None = None,
        skip_logits: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """
        Teacher forcing, `forward(labels=tokens)`: puts the start token in front and scores every token, the first
        included. Decoding, `forward(input_ids=[start, x_1 ... x_k])`: logits of the next token at every position.

        Args:
            input_ids: ids of shape (B, T) that begin with the start token.
            labels: without `input_ids`, the tokens of whole images, of shape (B, T), each in [0, V). With `input_ids`,
                the shifted loss of transformers' ImageGPT, which cannot score the first token: for parity only.
            num_items_in_batch: labels in all batches of one optimizer step, over all processes, as Trainer counts
                them. The loss is then this batch's share of their mean.
            skip_logits: give the loss alone. The logits of all tokens are then never held, see `head_nats`.

        Returns:
            `loss` in nats per token, `logits` of shape (B, T, V) or None.

        Raises:
            ValueError: labels outside [0, V), the start token among them, more tokens than the grid has, or
                `skip_logits` without labels.
        """
        _check_skipping(skip_logits, labels)
        cache = one_cache(cache, past_key_values)
        if input_ids is None and inputs_embeds is None and labels is not None:
            is_given = any(option is not None for option in (attention_mask, position_ids, cache))
            if is_given or use_cache or not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
                raise ValueError(
                    "`labels` without `input_ids` score whole images: `attention_mask`, `position_ids`, "
                    f"`{CACHE_NAME}`, `use_cache` and `logits_to_keep` must not be given."
                )
            check_tokens("labels", labels, self.config)
            outputs = self.transformer.encode(labels, **kwargs)
            logits, nats = _logits_and_nats(self, outputs.last_hidden_state, labels, skip_logits)
            loss = mean_over(nats, labels, num_items_in_batch)
            return CausalLMOutputWithPast(
                loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
            )

        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = None if skip_logits else self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if input_ids is not None and not torch.compiler.is_compiling():
                warn_without_start_token(input_ids, self.config)
            _check_shape("labels", labels, outputs.last_hidden_state.shape[:2])
            check_tokens("labels", labels[:, 1:], self.config, ignored=-100)
            labels = labels[:, 1:]
            if skip_logits:
                nats = head_nats(self.lm_head, outputs.last_hidden_state[:, :-1], labels, self.config.num_values)
            else:
                nats = token_nats(logits[:, :-1], labels)
            loss = mean_over(nats, labels, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def pooled_features(self, tokens: torch.LongTensor, layer: int | None = None, **kwargs) -> torch.Tensor:
        """See [`ImageGPTModel.pooled_features`]."""
        return self.transformer.pooled_features(tokens, layer, **kwargs)


class ImageGPTForMaskedImageModeling(ImageGPTPreTrainedModel):
    """Masked-pixel Image GPT (the paper's BERT objective, section 2.1): predicts hidden pixels from all others."""

    _auto_class = "AutoModelForMaskedImageModeling"
    _required_direction = False

    def __init__(self, config: ImageGPTConfig):
        # The head decides the direction, and the caller's config stays as it is.
        config = copy.deepcopy(config)
        config.is_causal = False
        super().__init__(config)
        self.transformer = ImageGPTModel(config)
        self.lm_head = _linear(config.hidden_size, config.num_values, False, 0.0)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs,
    ) -> MaskedLMOutput:
        """
        Args:
            input_ids: tokens of whole images, of shape (B, T), each in [0, V), without a start token.
            bool_masked_pos: True where a token is hidden, of shape (B, T); by default nothing is.
            labels: tokens to predict, of shape (B, T), by default `input_ids`. Only masked ones are scored.
            num_items_in_batch: labels in all batches of one optimizer step, over all processes, as Trainer counts
                them. The loss is then this batch's share of their mean.
            skip_logits: give the loss alone. The logits of all tokens are then never held, see `head_nats`.

        Returns:
            `logits` of shape (B, T, V) or None. With a mask or labels `loss`, the mean over an image's masked tokens
            and then over images, in nats per masked token; 0 where nothing is masked.

        Raises:
            ValueError: tokens outside [0, V), more of them than the grid has, a mask of another shape or type, or
                `skip_logits` without mask and labels.
        """
        if input_ids is None:
            raise ValueError("`input_ids` must be given: the tokens of whole images, without the start token.")
        check_tokens("input_ids", input_ids, self.config)
        outputs = self.transformer.encode(input_ids, bool_masked_pos=bool_masked_pos, **kwargs)
        if labels is None and bool_masked_pos is None:
            _check_skipping(skip_logits, labels)
            logits, loss = self.lm_head(outputs.last_hidden_state), None
        else:
            labels = input_ids if labels is None else labels
            check_tokens("labels", labels, self.config)
            _check_shape("labels", labels, input_ids.shape)
            logits, nats = _logits_and_nats(self, outputs.last_hidden_state, labels, skip_logits)
            loss = masked_mean(nats, _mask_or_none_hidden(bool_masked_pos, input_ids)).mean()
            loss = share(loss, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        *,
        num_return_sequences: int = 1,
        **decoding,
    ) -> torch.LongTensor:
        """
        Draws whole images, or the hidden pixels of given ones. Call `.eval()` first, or dropout stays on.

        Args:
            input_ids: tokens of given images, of shape (B, T). What stands under the mask is not read.
            bool_masked_pos: True where a pixel is to be drawn, of shape (B, T).
            num_return_sequences: images to draw, for each of the given ones where there are any.
            decoding: `num_steps`, `order`, `schedule`, `temperature`, `top_k`, `top_p`, `choice_temperature`,
                `generator` (one, or one for each image that is drawn), see [`iterative_decode`]. By default exact
                draws from the model, which take one pass for every pixel.

        Returns:
            Tokens of shape (num_return_sequences, T), or of given images (B * num_return_sequences, T), those of one
            image next to each other.

        Raises:
            ValueError: only one of `input_ids` and `bool_masked_pos`, or what `iterative_decode` refuses.
        """
        if (input_ids is None) != (bool_masked_pos is None):
            raise ValueError(
                "`input_ids` and `bool_masked_pos` belong together: give both to draw the hidden pixels of images, or "
                "neither to draw whole images."
            )
        if num_return_sequences < 1:
            raise ValueError(f"`num_return_sequences` must be at least 1, got {num_return_sequences}.")
        if input_ids is None:
            input_ids = torch.zeros((1, self.config.n_positions), dtype=torch.long, device=self.device)
            bool_masked_pos = torch.ones_like(input_ids, dtype=torch.bool)
        check_mask(bool_masked_pos, input_ids.shape, self.config)
        return iterative_decode(
            self,
            input_ids.repeat_interleave(num_return_sequences, dim=0),
            bool_masked_pos.repeat_interleave(num_return_sequences, dim=0),
            **decoding,
        )

    def pooled_features(self, tokens: torch.LongTensor, layer: int | None = None, **kwargs) -> torch.Tensor:
        """See [`ImageGPTModel.pooled_features`]."""
        return self.transformer.pooled_features(tokens, layer, **kwargs)


@dataclass
class ImageGPTClassifierOutput(ImageClassifierOutput):
    """`loss` is `class_loss` plus `generative_loss_weight` times `generative_loss`, all means over images in nats."""

    class_loss: torch.FloatTensor | None = None
    generative_loss: torch.FloatTensor | None = None


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """A linear classifier on mean-pooled features, trained with the class and the generative loss (paper, 2.3)."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: ImageGPTConfig):
        if config.is_causal and not config.use_start_token and config.generative_loss_weight > 0:
            raise ValueError(
                "`generative_loss_weight` must be 0 where `use_start_token` is False, got "
                f"{config.generative_loss_weight}: every pixel would be given to the position that predicts it."
            )
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ImageGPTModel(config)
        self.score = _linear(config.hidden_size, config.num_labels, False, 0.0)
        if config.generative_loss_weight > 0:
            self.lm_head = _linear(config.hidden_size, config.num_values, False, 0.0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        **kwargs,
    ) -> ImageGPTClassifierOutput:
        """
        Args:
            input_ids: tokens of whole images, of shape (B, T), without the start token.
            bool_masked_pos: for masked models, True where a token is hidden, of shape (B, T). The generative loss is
                over these tokens, so that without a mask it is 0.
            labels: class ids of shape (B,); for other problem types floats of shape (B, num_labels).
            num_items_in_batch: labels in all batches of one optimizer step, over all processes, as Trainer counts
                them. The loss is then this batch's share of their mean.

        Returns:
            `logits` of shape (B, num_labels); with labels `loss` and its two parts, means over images.

        Raises:
            ValueError: token or class ids out of range, or more tokens than the grid has.
        """
        if input_ids is None:
            raise ValueError("`input_ids` must be given: the tokens of whole images, without the start token.")
        check_tokens("input_ids", input_ids, self.config)
        layer = _resolve_layer(self.config, None)
        wants_hidden_states = kwargs.pop("output_hidden_states", self.config.output_hidden_states)
        needs_hidden_states = wants_hidden_states or layer < self.config.num_hidden_layers
        outputs = self.transformer.encode(
            input_ids, output_hidden_states=needs_hidden_states, bool_masked_pos=bool_masked_pos, **kwargs
        )
        logits = self.score(self.transformer._pool(outputs, layer))

        loss = class_loss = generative_loss = None
        if labels is not None:
            self._check_classes(labels)
            loss = class_loss = share(self.loss_function(labels, logits, self.config), labels, num_items_in_batch)
            if self.config.generative_loss_weight > 0:
                generative_loss = self._generative_loss(outputs.last_hidden_state, input_ids, bool_masked_pos)
                generative_loss = share(generative_loss, labels, num_items_in_batch)
                loss = class_loss + self.config.generative_loss_weight * generative_loss
        return ImageGPTClassifierOutput(
            loss=loss,
            class_loss=class_loss,
            generative_loss=generative_loss,
            logits=logits,
            hidden_states=outputs.hidden_states if wants_hidden_states else None,
            attentions=outputs.attentions,
        )

    def pooled_features(self, tokens: torch.LongTensor, layer: int | None = None, **kwargs) -> torch.Tensor:
        """See [`ImageGPTModel.pooled_features`]."""
        return self.transformer.pooled_features(tokens, layer, **kwargs)

    def _generative_loss(
        self, hidden_states: torch.Tensor, tokens: torch.LongTensor, bool_masked_pos: torch.BoolTensor | None
    ) -> torch.Tensor:
        _, nats = _logits_and_nats(self, hidden_states, tokens, skip_logits=True)
        if self.config.is_causal:
            return nats.mean()
        return masked_mean(nats, _mask_or_none_hidden(bool_masked_pos, tokens)).mean()

    def _check_classes(self, labels: torch.Tensor) -> None:
        # As for tokens. Only class ids have a range: the other problem types have numbers for labels.
        is_class = labels.dim() == 1 and not labels.is_floating_point() and self.num_labels > 1
        if not is_class or labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        outside = (labels < 0) | (labels >= self.num_labels)
        if bool(outside.any()):
            image = int(outside.nonzero()[0])
            raise ValueError(
                f"`labels` must be classes in [0, {self.num_labels - 1}], got {int(labels[image])} for image {image}."
            )


def warn_without_start_token(input_ids: torch.LongTensor, config: ImageGPTConfig) -> None:
    """Warns once about an input (B, T) of a next-pixel model that doesn't begin with the start token."""
    if bool((input_ids[:, 0] != config.start_token_id).any()):
        logger.warning_once(
            "`input_ids` do not begin with the start token, so that every position is shifted by one against "
            "pretraining and, with `labels`, the first token is not scored. For features of whole images call "
            "`pooled_features`, `features` or `encode` with their tokens, for their likelihood `model(labels=tokens)`."
        )


def _hides_nothing(attention_mask: torch.Tensor | None) -> bool:
    """Of a 2-D mask that may be read: a graph may not depend on its values."""
    if attention_mask is None:
        return True
    return attention_mask.dim() == 2 and not torch.compiler.is_compiling() and bool(attention_mask.all())


def _check_shape(name: str, tokens: torch.Tensor, shape: torch.Size) -> None:
    if tokens.shape != shape:
        raise ValueError(f"`{name}` must have the shape of the input {list(shape)}, got {list(tokens.shape)}.")


def _check_skipping(skip_logits: bool, labels: torch.LongTensor | None) -> None:
    if skip_logits and labels is None:
        raise ValueError("`skip_logits` leaves only the loss, which needs `labels`. Give them, or ask for logits.")


def _logits_and_nats(
    model: ImageGPTPreTrainedModel, hidden_states: torch.Tensor, labels: torch.LongTensor, skip_logits: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The logits (B, T, V), or None, and the nats (B, T) of labels (B, T)."""
    if skip_logits:
        return None, head_nats(model.lm_head, hidden_states, labels, model.config.num_values)
    logits = model.lm_head(hidden_states)
    return logits, token_nats(logits, labels)


def _mask_or_none_hidden(bool_masked_pos: torch.BoolTensor | None, tokens: torch.LongTensor) -> torch.BoolTensor:
    return torch.zeros_like(tokens, dtype=torch.bool) if bool_masked_pos is None else bool_masked_pos


def _resolve_layer(config: ImageGPTConfig, layer: int | None) -> int:
    if layer is None:
        layer = config.num_hidden_layers if config.pooler_layer is None else config.pooler_layer
    is_whole = isinstance(layer, numbers.Integral) and not isinstance(layer, bool)
    if not is_whole or not 0 <= layer <= config.num_hidden_layers:
        raise ValueError(f"`layer` must be from 0 to {config.num_hidden_layers}, got {layer!r}.")
    return int(layer)


__all__ = [
    "ImageGPTClassifierOutput",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTForMaskedImageModeling",
    "ImageGPTModel",
    "ImageGPTPreTrainedModel",
]
