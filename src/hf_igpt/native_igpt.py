"""
Reading checkpoints of transformers' own ImageGPT (`model_type: imagegpt`, such as openai/imagegpt-small).

Differences to ours: projections have biases and are stored transposed (GPT-2's `Conv1D`), old files carry the causal
mask as a buffer, and classifiers were trained on pixels without a start token in front.
"""

import re
from typing import Any

import torch


# Fields of transformers' config that mean the same in ours.
SHARED_FIELDS = (
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "activation_function",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "layer_norm_epsilon",
    "initializer_range",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "use_cache",
)
# What transformers' config takes where a file leaves a field out and our default differs.
_NATIVE_DEFAULTS = {"n_positions": 1024, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
_NATIVE_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# Fields of every transformers config that keep their meaning.
_KEPT_FIELDS = (
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
)
# Written by every config, or without effect on the numbers.
_NEUTRAL_FIELDS = (
    "_commit_hash",
    "_name_or_path",
    "chunk_size_feed_forward",
    "dtype",
    "is_decoder",
    "model_type",
    "torch_dtype",
    "transformers_version",
)
_REFUSED_FIELDS = {
    "add_cross_attention": "cross-attention",
    "is_encoder_decoder": "an encoder",
    "tie_word_embeddings": "tied embeddings, which make the output head one row too large",
    "layer_types": "windowed attention, which transformers' ImageGPT doesn't have,",
    "sliding_window": "windowed attention, which transformers' ImageGPT doesn't have,",
    "rotary_base": "rotary positions, which transformers' ImageGPT doesn't have,",
}
TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MASK_BUFFER = re.compile(r"\.attn\.(masked_)?bias$")


def native_config_to_igpt(native: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the dictionary of a `model_type: imagegpt` config into the keyword arguments of `ImageGPTConfig`.

    Raises:
        ValueError: a field asks for what our model does not have (cross-attention, tied embeddings, special tokens).
    """
    native = {_NATIVE_NAMES.get(name, name): value for name, value in native.items()}
    for name, what in _REFUSED_FIELDS.items():
        if native.get(name):
            raise ValueError(f"`{name}` of a `model_type: imagegpt` config must be false: {what} is not supported.")
    vocab_size = native.get("vocab_size", 513)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        allowed = (None, vocab_size - 1) if name == "bos_token_id" else (None,)
        if native.get(name) not in allowed:
            raise ValueError(
                f"`{name}` of a `model_type: imagegpt` config must be one of {allowed}, got {native[name]}."
            )
    known = {
        *SHARED_FIELDS,
        *_KEPT_FIELDS,
        *_NEUTRAL_FIELDS,
        *_REFUSED_FIELDS,
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
    translated = {**_NATIVE_DEFAULTS, **{name: native[name] for name in SHARED_FIELDS if name in native}}
    kept = {name: native[name] for name in _KEPT_FIELDS if name in native}
    extra = {name: value for name, value in native.items() if name not in known}
    dtype = {"dtype": value} if (value := native.get("dtype", native.get("torch_dtype"))) is not None else {}
    is_classifier = native.get("architectures") == ["ImageGPTForImageClassification"]
    classifier = {"use_start_token": False, "generative_loss_weight": 0.0} if is_classifier else {}
    return {**extra, **translated, **kept, **dtype, **classifier, "is_causal": True, "use_bias": True}


def native_state_dict_to_igpt(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translates names and layouts: projections transposed, mask buffers of old files dropped."""
    translated = {}
    for name, tensor in state_dict.items():
        if _MASK_BUFFER.search(name):
            continue
        is_transposed = TRANSPOSED.search(name) and tensor.dim() == 2
        translated[name] = tensor.t().contiguous() if is_transposed else tensor
    return translated


__all__ = ["SHARED_FIELDS", "TRANSPOSED", "native_config_to_igpt", "native_state_dict_to_igpt"]
