"""Rotary positions in two dimensions: against the reference, in every way of running a model, and what is refused."""

import pytest
import reference_igpt
import torch
from test_generation import generators
from tiny_models import (
    assert_checkpointing_changes_nothing,
    assert_gradients_equal,
    random_tokens,
    randomize_,
    reference_weights,
    tiny_causal,
    tiny_config,
    tiny_masked,
    with_start,
)
from transformers import DynamicCache, StaticCache
from transformers.generation import GenerationMixin

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.fast_decoding_igpt import is_plain_model
from hf_igpt.hub.conversion import to_native
from hf_igpt.rotary_igpt import rotate, rotation_of


ROTARY = {"rotary_base": 20.0}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
ROTATION = (20.0, 4)  # of the reference: the base and the grid's width


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("options", "windows"), [({}, None), (WINDOWED, [5, None])])
def test_causal_head_equals_the_reference_in_logits_loss_and_every_gradient(options, windows, backend):
    model = tiny_causal(**ROTARY, **options).train()
    model.set_attn_implementation(backend)
    tokens, weights = random_tokens(model.config), reference_weights(model)
    outputs = model(labels=tokens)
    outputs.loss.backward()
    logits, loss = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], 3, windows, ROTATION)
    loss.backward()
    torch.testing.assert_close(outputs.logits, logits.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(outputs.loss, loss.detach(), atol=1e-12, rtol=0)
    assert_gradients_equal(model, weights, 1e-12)
    without, _ = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], 3, windows)
    assert (without - logits).abs().max() > 0.01


def test_masked_head_equals_the_reference_in_logits_loss_and_every_gradient():
    model = tiny_masked(**ROTARY).train()
    tokens, weights = random_tokens(model.config), reference_weights(model)
    hidden = torch.arange(12).remainder(3).eq(0).expand(2, 12)
    outputs = model(input_ids=tokens, bool_masked_pos=hidden)
    outputs.loss.backward()
    logits, loss = reference_igpt.masked_model(
        tokens, hidden, weights, weights["lm_head.weight"], 3, rotation=ROTATION
    )
    loss.backward()
    torch.testing.assert_close(outputs.logits, logits.detach(), atol=1e-12, rtol=0)
    assert_gradients_equal(model, weights, 1e-11)


def test_products_depend_on_the_way_between_two_pixels_alone():
    config = tiny_config(image_size=[9, 9], **ROTARY)
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 3, 8, dtype=torch.float64)

    def product(first: tuple[int, int], second: tuple[int, int]) -> torch.Tensor:
        turned = []
        for states, (row, column) in ((query, first), (key, second)):
            positions = torch.tensor([[row * 9 + column]])
            turned.append(rotate(states, rotation_of(config, positions, torch.float64)))
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product((1, 2), (3, 1)), product((5, 6), (7, 5)))
    assert (product((1, 2), (3, 1)) - product((1, 2), (1, 3))).abs().min() > 1e-3
    torch.testing.assert_close(product((4, 4), (4, 4)), (query * key).sum(-1))


def test_levels_of_one_colour_are_turned_alike():
    config = tiny_config(num_channels=3, **ROTARY)
    cos, _ = rotation_of(config, torch.arange(36).unsqueeze(0), torch.float64)
    assert cos.shape == (1, 36, 1, 4)
    cells = cos.view(12, 3, 4)
    assert torch.equal(cells, cells[:, :1].expand(-1, 3, -1))
    assert len({tuple(cell[0].tolist()) for cell in cells}) == 12


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 4, 2]])
def test_cached_logits_equal_uncached_ones(kind, chunks):
    model = tiny_causal(**ROTARY)
    ids = with_start(model.config, random_tokens(model.config))
    config = model.config
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=12)
    parts = [model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("options", [{}, WINDOWED, {"num_channels": 3, "token_kind": None}], ids=str)
@pytest.mark.parametrize("given", [1, 6])
def test_every_loop_draws_the_same_images(options, given):
    model = tiny_causal(**ROTARY, **options)
    assert is_plain_model(model)
    ids = with_start(model.config, random_tokens(model.config, batch=3))[:, :given]

    def draw(**more):
        return model.generate(ids, generator=generators(1, 2, 3), **more)

    expected = draw(custom_generate=GenerationMixin._sample)
    assert torch.equal(draw(), expected)
    for forecast in ("fixed_point", "shallow_exit"):
        assert torch.equal(draw(parallel_window=4, forecast=forecast), expected)
    model.transformer.h[1].register_forward_hook(lambda *_: None)
    assert torch.equal(draw(parallel_window=4), expected)


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
def test_compiled_in_one_graph_equals_eager_in_loss_and_gradients(head):
    is_causal = head is ImageGPTForCausalImageModeling
    model = randomize_(head(tiny_config(is_causal=is_causal, **ROTARY))).double().train()
    tokens = random_tokens(model.config)
    inputs = {"labels": tokens} if is_causal else {"input_ids": tokens, "bool_masked_pos": tokens > 4}
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = run(**inputs).loss
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch._dynamo.reset()
    torch.testing.assert_close(found[1], found[0])


def test_gradient_checkpointing_changes_nothing():
    assert_checkpointing_changes_nothing(tiny_causal(**ROTARY).train())


def test_half_precision_and_autocast():
    model = tiny_causal(torch.float32, **ROTARY)
    tokens = random_tokens(model.config)
    expected = model(labels=tokens).loss
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(labels=tokens).loss, expected, rtol=0.05, atol=0)
    torch.testing.assert_close(model.bfloat16()(labels=tokens).loss.float(), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
def test_saving_and_loading_keep_them(tmp_path, head):
    model = randomize_(head(tiny_config(is_causal=head is ImageGPTForCausalImageModeling, **ROTARY))).eval()
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path)
    assert again.config.rotary_base == 20.0 and (tmp_path / "rotary_igpt.py").is_file()
    tokens = random_tokens(model.config)
    torch.testing.assert_close(again.pooled_features(tokens), model.pooled_features(tokens))


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"rotary_base": 0.5}, "`rotary_base` must be"),
        ({"rotary_base": "much"}, "`rotary_base` must be"),
        ({"rotary_base": 100.0, "num_attention_heads": 4}, "needs heads whose size is divisible by 4.* is 6"),
    ],
)
def test_bases_and_heads_that_do_not_fit_are_refused(fields, pattern):
    with pytest.raises(ValueError, match=pattern):
        tiny_config(**fields)


def test_transformers_model_has_none():
    with pytest.raises(ValueError, match="no rotary positions"):
        to_native(tiny_causal(torch.float32, image_size=4, **ROTARY))
    with pytest.raises(ValueError, match="`rotary_base` of a `model_type: imagegpt` config"):
        ImageGPTConfig.from_dict({"model_type": "imagegpt", "rotary_base": 100.0})
