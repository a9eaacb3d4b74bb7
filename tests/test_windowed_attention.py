"""Windows of attention: what a block sees, the same numbers from every backend and cache, no work for nothing."""

import pytest
import reference_igpt
import torch
from tiny_models import (
    assert_gradients_equal,
    random_tokens,
    randomize_,
    reference_weights,
    tiny_causal,
    tiny_config,
    tiny_masked,
)

from hf_igpt import (
    ImageGPTConfig,
    ImageGPTModel,
    windowed_attention_igpt,
)


HYBRID = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ALL_WINDOWED = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
LAYERS = {"hybrid": HYBRID, "all windowed": ALL_WINDOWED}
# Blocks of the window itself, or of more tokens; the rest of 12 tokens and of 35 after whole blocks differs.
WINDOWS = [2, 3, 5, 11, 12, 40]


@pytest.fixture(autouse=True, params=[1, 4, 64])
def block(request, monkeypatch):
    """Tokens in the smallest block, so that images of a few tokens have whole ones in the middle."""
    monkeypatch.setattr(windowed_attention_igpt, "MIN_BLOCK", request.param)


def one_block(window: int, **overrides) -> ImageGPTConfig:
    windows = {"layer_types": ["sliding_attention"], "sliding_window": window}
    return tiny_config(num_hidden_layers=1, **windows, **overrides)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_causal_position_sees_itself_and_the_window_before_it_and_nothing_else(window, backend):
    model = randomize_(ImageGPTModel(one_block(window, is_causal=True))).eval()
    model.set_attn_implementation(backend)
    assert seen_by_position(model) == [[j for j in range(12) if i - window < j <= i] for i in range(12)]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_position_of_a_masked_model_sees_the_window_on_either_side(window, backend):
    model = randomize_(ImageGPTModel(one_block(window, is_causal=False))).eval()
    model.set_attn_implementation(backend)
    assert seen_by_position(model) == [[j for j in range(12) if abs(i - j) <= window] for i in range(12)]


@torch.no_grad()
def seen_by_position(model) -> list[list[int]]:
    """For each position the positions of which a change moves its features."""
    tokens = random_tokens(model.config, batch=1)
    before = model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    moved = []
    for position in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 5) % model.config.num_values
        moved.append((model(input_ids=changed, use_cache=False).last_hidden_state[0] != before).any(-1))
    return [torch.stack(moved)[:, position].nonzero().flatten().tolist() for position in range(tokens.shape[1])]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [2, 5, 11])
@pytest.mark.parametrize("layers", LAYERS)
def test_causal_head_equals_the_reference_in_logits_loss_and_every_gradient(layers, window, backend):
    model = tiny_causal(**LAYERS[layers], sliding_window=window).train()
    model.set_attn_implementation(backend)
    tokens, weights = random_tokens(model.config), reference_weights(model)
    outputs = model(labels=tokens)
    outputs.loss.backward()
    windows = windows_of(model)
    logits, loss = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], 3, windows)
    loss.backward()
    torch.testing.assert_close(outputs.logits, logits.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(outputs.loss, loss.detach(), atol=1e-12, rtol=0)
    assert_gradients_equal(model, weights, 1e-12)
    whole, _ = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], 3)
    assert (whole - logits).abs().max() > 0.01


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("layers", LAYERS)
def test_masked_head_equals_the_reference_in_logits_loss_and_every_gradient(layers, window, backend):
    model = tiny_masked(**LAYERS[layers], sliding_window=window).train()
    model.set_attn_implementation(backend)
    tokens, weights = random_tokens(model.config), reference_weights(model)
    hidden = torch.arange(12).remainder(3).eq(0).expand(2, 12)
    outputs = model(input_ids=tokens, bool_masked_pos=hidden)
    outputs.loss.backward()
    windows = windows_of(model)
    logits, loss = reference_igpt.masked_model(tokens, hidden, weights, weights["lm_head.weight"], 3, windows)
    loss.backward()
    torch.testing.assert_close(outputs.logits, logits.detach(), atol=1e-12, rtol=0)
    assert_gradients_equal(model, weights, 1e-11)


def windows_of(model) -> list[int | None]:
    sizes = {"sliding_attention": model.config.sliding_window, "full_attention": None}
    return [sizes[layer_type] for layer_type in model.config.layer_types]
