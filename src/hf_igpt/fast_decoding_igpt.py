"""
Drawing token after token on a CPU, near the speed at which its memory is read.

A step reads the weights and all keys and values once. In a small model masks, a cache that is copied to grow and what
lies between two operations cost more than that. Here all memory is taken once, keys lie transposed so that products
run along the memory, and nothing else is computed. The tokens are those of transformers' loop, up to rounding.

Shapes: B images, T tokens, C width, H heads, D head size, V token values.
"""

import contextlib
import math
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import BaseStreamer, GenerationConfig, MaxLengthCriteria, StoppingCriteriaList

from .configuration_igpt import SLIDING, ImageGPTConfig
from .functional_igpt import QUICK_GELU_SCALE
from .rotary_igpt import Rotation, rotate, rotation_of, split_heads


# Half precision is left to transformers' loop: without units of their own, CPUs multiply it several times slower, and
# logits that are rounded otherwise give other tokens.
_DTYPES = (torch.float32, torch.float64)
_BACKENDS = ("eager", "sdpa")
_LARGE_PAGE = 2**21  # bytes
# Weights are copied for as many steps, which take longer than the copy, and where it takes little memory.
_STEPS_WORTH_A_COPY = 64
_LARGEST_COPY = 2**30  # bytes
_MODEL_ARGUMENTS = {"position_ids", "cache", "past_key_values", "use_cache", "logits_to_keep"}
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")

# From the ids so far (B, T) and the logits of the next token (B, V) to that token (B,).
Choose = Callable[[torch.LongTensor, torch.FloatTensor], torch.LongTensor]


def can_decode(
    model: nn.Module,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    stopping_criteria: StoppingCriteriaList,
    model_kwargs: dict[str, Any],
) -> bool:
    """Whether `decode` does what transformers' loop does with these arguments of `_sample`."""
    return (
        _is_plain_request(generation_config, stopping_criteria)
        and is_plain_model(model)
        and _is_plain_input(model.config, input_ids, generation_config, model_kwargs)
    )


def _is_plain_request(generation_config: GenerationConfig, stopping_criteria: StoppingCriteriaList) -> bool:
    wants_outputs = any(getattr(generation_config, name) for name in _OUTPUTS)
    return (
        generation_config.use_cache is True
        and generation_config.cache_implementation in (None, "dynamic")
        and generation_config.prefill_chunk_size is None
        and generation_config.compile_config is None
        and not generation_config.is_assistant
        and not (generation_config.return_dict_in_generate and wants_outputs)
        and stopping_criteria.max_length is not None
    )


def _is_plain_input(
    config: ImageGPTConfig,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> bool:
    """The whole sequences, hidden nowhere, of which at least the last token isn't in the cache."""
    given = {name for name, value in model_kwargs.items() if value is not None}
    cache = _cache(model_kwargs)
    if not given <= _MODEL_ARGUMENTS or model_kwargs.get("logits_to_keep") != 1 or input_ids.device.type != "cpu":
        return False
    if not _is_plain_cache(cache, config):
        return False
    length, cached = input_ids.shape[1], cache.get_seq_length()
    positions = model_kwargs.get("position_ids")
    if cached >= length or positions is None or getattr(generation_config, "_mask_length", None) != length:
        return False
    return bool((positions[..., cached - length :] == torch.arange(cached, length)).all())


def _is_plain_cache(cache: Cache | None, config: ImageGPTConfig) -> bool:
    """Whether the cache is kept on the CPU as it is, that of a windowed block no longer than the window."""
    if type(cache) is not DynamicCache or cache.offloading:
        return False
    windows = [config.sliding_window if kind == SLIDING else None for kind in config.attention_types]
    if not cache.layers:
        # Made without the config, it will have no windows.
        return not any(windows)
    return len(cache.layers) == len(windows) and all(
        type(layer) is (DynamicSlidingWindowLayer if window else DynamicLayer)
        and getattr(layer, "sliding_window", None) == window
        and not getattr(layer, "record_past", False)
        for layer, window in zip(cache.layers, windows, strict=True)
    )


def is_plain_model(model: nn.Module) -> bool:
    """Whether the model computes what its classes say: no dropout, hook, adapter, quantized or offloaded weight."""
    if model.config._attn_implementation not in _BACKENDS:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or _has_any_global_hook():
        return False
    return (
        model.dtype in _DTYPES
        and all(_is_plain_module(module, model.plain_modules) for module in model.modules())
        and all(
            type(parameter) is nn.Parameter and parameter.device.type == "cpu" and parameter.dtype == model.dtype
            for parameter in model.parameters()
        )
    )


def _is_plain_module(module: nn.Module, plain: frozenset[type[nn.Module]]) -> bool:
    # accelerate's hooks replace `forward` of the instance.
    is_hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    is_plain = type(module) in plain and not is_hooked and module._compiled_call_impl is None
    return is_plain and not module.training


def _cache(model_kwargs: dict[str, Any]) -> Cache | None:
    cache = model_kwargs.get("cache")
    return model_kwargs.get("past_key_values") if cache is None else cache


def decode(
    model: nn.Module,
    input_ids: torch.LongTensor,
    choose: Choose,
    generation_config: GenerationConfig,
    stopping_criteria: StoppingCriteriaList,
    streamer: BaseStreamer | None,
    model_kwargs: dict[str, Any],
) -> tuple[torch.LongTensor, DynamicCache]:
    """
    The loop of `_sample`, for what `can_decode` takes.

    Args:
        model: a next-pixel head.
        input_ids: of shape (B, T), the start token first.
        choose: the next tokens.
        streamer: is given the tokens (B,) of every step.

    Returns:
        Ids of shape (B, at most `max_length`), and the cache, which holds all but the last of them.
    """
    batch, length = input_ids.shape
    longest = max(stopping_criteria.max_length, length + 1)
    ids = input_ids.new_empty(batch, longest)
    ids[:, :length] = input_ids
    is_length_all = all(type(criterion) is MaxLengthCriteria for criterion in stopping_criteria)
    has_end = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    padding = generation_config._pad_token_tensor
    unfinished = torch.ones_like(input_ids[:, 0])
    cache = _cache(model_kwargs)
    # A cache that is returned, or was given, may be gone on with.
    is_kept = generation_config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
    room = model.config.n_positions if is_kept else longest - 1
    decoder, logits = _start(model, input_ids, cache, room, longest - length)
    try:
        while True:
            tokens = choose(ids[:, :length], logits)
            if has_end:
                tokens = tokens * unfinished + padding * (1 - unfinished)
            ids[:, length] = tokens
            length += 1
            if streamer is not None:
                streamer.put(tokens)
            if not is_length_all:
                unfinished = unfinished & ~stopping_criteria(ids[:, :length], None)
            if length == longest or not unfinished.any():
                break
            logits = decoder.step(tokens, length - 1)
    finally:
        for layer, memory in zip(cache.layers, decoder.memories, strict=True):
            memory.show_in(layer)
    if streamer is not None:
        streamer.end()
    return ids[:, :length], cache


def _start(
    model: nn.Module, input_ids: torch.LongTensor, cache: DynamicCache, room: int, steps: int
) -> tuple["TokenDecoder", torch.FloatTensor]:
    """A decoder that has seen all ids, and the logits after the last of them."""
    cached = cache.get_seq_length()
    memories = [getattr(layer.keys, "decoding_memory", None) for layer in cache.layers]
    goes_on = all(
        memory is not None and memory.goes_on_from(layer, room)
        for layer, memory in zip(cache.layers, memories, strict=True)
    )
    if cached == input_ids.shape[1] - 1 and memories and goes_on:
        decoder = TokenDecoder(model, memories, len(input_ids), steps)
        return decoder, decoder.step(input_ids[:, -1], cached)
    positions = torch.arange(cached, input_ids.shape[1]).unsqueeze(0)
    outputs = model(
        input_ids=input_ids[:, cached:],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    windows = [block.attn.window for block in model.transformer.h]
    memories = [LayerMemory(layer.keys, room, window) for layer, window in zip(cache.layers, windows, strict=True)]
    for layer, memory in zip(cache.layers, memories, strict=True):
        memory.load(layer)
        memory.show_in(layer)
    return TokenDecoder(model, memories, len(input_ids), steps), outputs.logits[:, -1].float()


class LayerMemory:
    """
    Keys and values of one layer, with room for those to come: keys of shape (B, H, D, room), values of shape
    (B, H, room, D). A windowed layer has room for two windows; when it is full, what is still seen goes to the front.
    """

    def __init__(self, like: torch.Tensor, room: int, window: int | None = None):
        """
        Args:
            like: keys or values of shape (B, H, any, D).
            room: tokens.
            window: tokens that a token sees, itself among them; by default all.
        """
        batch, heads, _, size = like.shape
        self.is_endless = window is not None and room > 2 * window
        self.room = 2 * window if self.is_endless else room
        self.window = window or self.room
        self.kept = self.room if window is None else window - 1
        self.end = self.seen = 0
        # Rows of a length that divides into pages would compete for the same places in the CPU's caches.
        row = -(-self.room // 16) * 16 + 16
        self.keys = _new_memory(like, batch, heads, size, row)
        self.values = _new_memory(like, batch, heads, self.room, size)
        self._key_rows, self._value_rows = self.keys.flatten(0, 1), self.values.flatten(0, 1)

    def load(self, layer: DynamicLayer) -> None:
        """Takes over what a layer of a cache holds."""
        self.end = min(layer.keys.shape[2], self.kept)
        self.seen = layer.get_seq_length()
        start = layer.keys.shape[2] - self.end
        self.keys[..., : self.end] = layer.keys[:, :, start:].transpose(2, 3)
        self.values[:, :, : self.end] = layer.values[:, :, start:]

    def extended(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Takes the key and value of the next token, of shape (B, H, D).

        Returns:
            All keys that it sees, of shape (B * H, D, T), and their values, of shape (B * H, T, D).
        """
        if self.end == self.room:
            start, self.end = self.end - self.kept, self.kept
            self.keys[..., : self.end] = self.keys[..., start : self.room]
            self.values[:, :, : self.end] = self.values[:, :, start : self.room]
        self.keys.select(3, self.end).copy_(key)
        self.values.select(2, self.end).copy_(value)
        self.end += 1
        self.seen += 1
        start = max(self.end - self.window, 0)
        return self._key_rows[..., start : self.end], self._value_rows[:, start : self.end]

    def show_in(self, layer: DynamicLayer) -> None:
        """Puts the keys and values that a cache keeps into a layer of it, as views."""
        start = max(self.end - self.kept, 0)
        layer.keys = self.keys[..., start : self.end].transpose(2, 3)
        layer.values = self.values[:, :, start : self.end]
        if layer.is_sliding:
            layer.cumulative_length = self.seen
        # Goes with the keys, when something else takes their place.
        layer.keys.decoding_memory = self
        self._shown = layer.values

    def goes_on_from(self, layer: DynamicLayer, room: int) -> bool:
        """Whether the layer is as `show_in` left it, and there is room for as many tokens in all."""
        is_as_left = layer.values is self._shown and layer.get_seq_length() == self.seen
        return is_as_left and (self.is_endless or self.room >= room)


def _new_memory(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """
    Memory for a tensor, in large pages where the system gives them to who asks: a new key is written to as many places
    as it has numbers, each in a page of its own otherwise, and to find a page takes longer than to write.
    """
    size = math.prod(shape) * like.element_size()
    if size < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


class _BlockWeights(NamedTuple):
    """Matrices are transposed, of shape (in, out); the norms' weights are multiplied by the root of the width."""

    norm_1: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    scaling: float
    projection: torch.Tensor
    projection_bias: torch.Tensor | None
    norm_2: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class TokenDecoder:
    """A next-pixel head at work on one token of every image at a time."""

    def __init__(self, model: nn.Module, memories: list[LayerMemory], batch: int, steps: int = 1):
        """
        Args:
            model: a head that `can_decode` takes.
            memories: keys and values of the tokens so far.
            steps: to come.
        """
        transformer, config = model.transformer, model.config
        self.width, self.heads = config.hidden_size, config.num_attention_heads
        self.memories = memories
        self.embeddings, self.positions = transformer.wte.weight, transformer.wpe.weight
        size = model.num_parameters() * model.lm_head.weight.element_size()
        self.copies = steps >= _STEPS_WORTH_A_COPY and size <= _LARGEST_COPY
        self.head = self._transposed(model.lm_head)
        self.blocks = [self._weights(block) for block in transformer.h]
        self.norm_f = self._norm_weight(transformer.ln_f)
        positions = torch.arange(config.n_positions).unsqueeze(0)
        self.rotation = rotation_of(config, positions, self.embeddings.dtype)
        room = max((memory.room for memory in memories), default=0)
        self._take_memory(batch, config.intermediate_size, config.layer_norm_eps, room)

    def _weights(self, block: nn.Module) -> _BlockWeights:
        attention, mlp = block.attn, block.mlp
        return _BlockWeights(
            self._norm_weight(block.ln_1),
            self._transposed(attention.c_attn),
            attention.c_attn.bias,
            attention.scaling,
            self._transposed(attention.c_proj),
            attention.c_proj.bias,
            self._norm_weight(block.ln_2),
            self._transposed(mlp.c_fc),
            mlp.c_fc.bias,
            self._transposed(mlp.c_proj),
            mlp.c_proj.bias,
        )

    def _transposed(self, layer: nn.Linear) -> torch.Tensor:
        # Products of few rows are faster along the rows of the matrix.
        matrix = layer.weight.detach().t()
        return matrix.contiguous() if self.copies else matrix

    def _norm_weight(self, norm: nn.Module) -> torch.Tensor:
        return norm.weight.detach() * self.width**0.5

    def _take_memory(self, batch: int, intermediate_size: int, eps: float, room: int) -> None:
        new = self.embeddings.new_empty
        # The last column makes the Euclidean norm of a row the root of C (mean square + eps).
        self.extended = new(batch, self.width + 1)
        self.extended[:, -1] = (self.width * eps) ** 0.5
        self.hidden = self.extended[:, :-1]
        self.root = new(batch, 1)
        self.normed = new(batch, self.width)
        self.qkv = new(batch, 3 * self.width)
        self.query, self.key, self.value = self.qkv.view(batch, 3, self.heads, -1).unbind(1)
        self.query_copy = torch.empty_like(self.query, memory_format=torch.contiguous_format)
        self.attended = new(batch, self.width)
        rows = batch * self.heads
        self.query_rows, self.attended_rows = self.query_copy.view(rows, 1, -1), self.attended.view(rows, 1, -1)
        self.score_memory = [new(rows * room), new(rows * room)]
        self.score_rows: dict[int, list[torch.Tensor]] = {}
        self.activated = new(batch, intermediate_size)

    def step(self, tokens: torch.LongTensor, position: int) -> torch.FloatTensor:
        """
        Logits of the next tokens in float32, of shape (B, V).

        Args:
            tokens: of shape (B,).
            position: of them, from 0 for the start token.
        """
        self.score_rows.clear()
        with torch.inference_mode():
            torch.add(F.embedding(tokens, self.embeddings), self.positions[position], out=self.hidden)
            rotation = self.rotation and tuple(part[:, position] for part in self.rotation)
            for weights, memory in zip(self.blocks, self.memories, strict=True):
                self._attend(weights, memory, rotation)
                self._transform(weights)
            normed = self._norm(self.norm_f)
        # An ordinary tensor, which may be changed in place.
        with torch.no_grad():
            return torch.mm(normed, self.head).float()

    def _norm(self, weight: torch.Tensor) -> torch.Tensor:
        torch.linalg.vector_norm(self.extended, dim=-1, keepdim=True, out=self.root)
        return torch.div(self.hidden, self.root, out=self.normed).mul_(weight)

    def _attend(self, weights: _BlockWeights, memory: LayerMemory, rotation: Rotation | None) -> None:
        _multiply(self._norm(weights.norm_1), weights.qkv, weights.qkv_bias, 1.0, self.qkv)
        query, key = self.query, self.key
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        keys, values = memory.extended(key, self.value)
        self.query_copy.copy_(query)
        scores, probabilities = self._room_for_scores(keys.shape[2])
        torch.baddbmm(scores, self.query_rows, keys, beta=0, alpha=weights.scaling, out=scores)
        torch.softmax(scores, dim=-1, out=probabilities)
        torch.bmm(probabilities, values, out=self.attended_rows)
        _add_product(self.hidden, self.attended, weights.projection, weights.projection_bias, 1.0)

    def _room_for_scores(self, length: int) -> list[torch.Tensor]:
        """Twice memory of shape (B * H, 1, length), the same for all layers that see as much."""
        if length not in self.score_rows:
            rows = self.query_rows.shape[0]
            self.score_rows[length] = [memory[: rows * length].view(rows, 1, length) for memory in self.score_memory]
        return self.score_rows[length]

    def _transform(self, weights: _BlockWeights) -> None:
        normed = self._norm(weights.norm_2)
        # x * sigmoid(a x) is silu(a x) / a: one operation, with the factors in the products before and after it.
        _multiply(normed, weights.up, weights.up_bias, QUICK_GELU_SCALE, self.activated)
        F.silu(self.activated, inplace=True)
        _add_product(self.hidden, self.activated, weights.down, weights.down_bias, 1 / QUICK_GELU_SCALE)


class SpanDecoder(TokenDecoder):
    """A next-pixel head's blocks at work on some tokens of every image at a time; a cache keeps keys and values."""

    def __init__(self, model: nn.Module, batch: int, length: int):
        """
        Args:
            model: a head that `is_plain_model` takes.
            batch: images.
            length: tokens of each.
        """
        super().__init__(model, [], batch * length)
        self.windows = [block.attn.window for block in model.transformer.h]
        self.qkv_spans = self.qkv.view(batch, length, -1)
        self.attended_spans = self.attended.view(batch, length, self.heads, -1).transpose(1, 2)

    def run(
        self,
        hidden: torch.Tensor,
        masks: dict[int | None, torch.Tensor],
        cache: Cache,
        rotation: Rotation | None,
        layers: range,
    ) -> torch.Tensor:
        """
        Some blocks on hidden states of shape (B, T, C).

        Args:
            masks: by the blocks' windows, True for what is seen, of shape (B, 1, T, keys).
            cache: keeps keys and values; only its `update` is called.
            rotation: of the positions of the states.
        """
        self.hidden.copy_(hidden.flatten(0, 1))
        for layer in layers:
            weights = self.blocks[layer]
            _multiply(self._norm(weights.norm_1), weights.qkv, weights.qkv_bias, 1.0, self.qkv)
            query, key, value = split_heads(self.qkv_spans, self.heads, rotation)
            key, value = cache.update(key, value, layer)
            mask = masks[self.windows[layer]]
            self.attended_spans.copy_(
                F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=weights.scaling)
            )
            _add_product(self.hidden, self.attended, weights.projection, weights.projection_bias, 1.0)
            self._transform(weights)
        return self.hidden.clone().view(hidden.shape)


def _multiply(
    states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, scale: float, out: torch.Tensor
) -> None:
    """`scale * (states @ matrix + bias)`"""
    if bias is not None:
        torch.addmm(bias, states, matrix, beta=scale, alpha=scale, out=out)
    elif scale == 1:
        torch.mm(states, matrix, out=out)
    else:
        torch.addmm(out, states, matrix, beta=0, alpha=scale, out=out)


def _add_product(
    hidden: torch.Tensor, states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> None:
    """Adds `scale * states @ matrix + bias`."""
    hidden.addmm_(states, matrix, alpha=scale)
    if bias is not None:
        hidden.add_(bias)


__all__ = ["Choose", "LayerMemory", "SpanDecoder", "TokenDecoder", "can_decode", "decode", "is_plain_model"]
