"""Windows of attention: what a block sees, the same numbers from every backend and cache, no work for nothing."""

import pytest
import reference_igpt
import torch
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
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_igpt import (
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTForMaskedImageModeling,
    ImageGPTModel,
    windowed_attention_igpt,
)
from hf_igpt.hub.conversion import to_native


HYBRID = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ALL_WINDOWED = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
LAYERS = {"hybrid": HYBRID, "all windowed": ALL_WINDOWED}
# Blocks of the window itself, or of more tokens; the rest of 12 tokens and of 35 after whole blocks differs.
WINDOWS = [2, 3, 5, 11, 12, 40]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that images of a few tokens have whole blocks in the middle."""
    monkeypatch.setattr(windowed_attention_igpt, "MIN_BLOCK", 1)


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


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 128, 130, 200])
def test_blocks_equal_a_mask_for_every_remainder(length, head, backend):
    """35 rows of tokens and more, so that there are several blocks of 64 as well."""
    model = randomize_(head(tiny_config(image_size=[10, 20], **HYBRID, sliding_window=40))).double().eval()
    model.set_attn_implementation(backend)
    tokens = random_tokens(model.config, length=length)
    mask = window_mask(length, 40, model.config.is_causal)
    # A prepared mask is for all layers: the one in the middle gets one of its own.
    masks = {"sliding_attention": mask, "full_attention": window_mask(length, length, model.config.is_causal)}
    expected = model.transformer(input_ids=tokens, attention_mask=masks, use_cache=False).last_hidden_state
    actual = model.transformer(input_ids=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def window_mask(length: int, window: int, is_causal: bool) -> torch.Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < window) if is_causal else distance.abs() <= window
    return seen[None, None]


@pytest.mark.parametrize("is_causal", [True, False])
def test_flex_attention_equals_sdpa_in_value(is_causal):
    """On a CPU flex attention has no backward; compiling its kernel takes long, so it runs uncompiled."""
    model = randomize_(ImageGPTModel(tiny_config(is_causal=is_causal, **HYBRID, sliding_window=5))).eval()
    tokens = random_tokens(model.config)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        sdpa = model(input_ids=tokens, use_cache=False).last_hidden_state
        model.set_attn_implementation("flex_attention")
        flex = model(input_ids=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(flex, sdpa, atol=2e-6, rtol=0)


@pytest.mark.parametrize("is_causal", [True, False])
def test_flash_attention_is_given_the_window_as_it_counts_it(is_causal, monkeypatch):
    """On a CPU there is none. It shows `sliding_window` - 1 tokens on either side, or causal on the left alone."""
    model = randomize_(ImageGPTModel(tiny_config(is_causal=is_causal, **HYBRID, sliding_window=5))).eval()
    tokens = random_tokens(model.config)
    expected = model(input_ids=tokens, use_cache=False).last_hidden_state
    windows = []

    def flash(module, query, key, value, mask, scaling, sliding_window, **kwargs):
        assert mask is None
        windows.append(sliding_window)
        reach = query.shape[2] if sliding_window is None else sliding_window - 1
        distance = torch.arange(query.shape[2])[:, None] - torch.arange(query.shape[2])
        seen = (distance <= reach) & (distance >= (0 if module.is_causal else -reach))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scaling)
        return attended.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "like_flash", flash)
    model.config._attn_implementation = "like_flash"
    actual = model(input_ids=tokens, use_cache=False).last_hidden_state
    assert windows == [5 + (not is_causal), None, 5 + (not is_causal)]
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


class Shapes(TorchDispatchMode):
    """Collects the last two sizes of every operator's outputs."""

    def __init__(self):
        super().__init__()
        self.found: set[tuple[int, int]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                self.found.add((tensor.shape[-2], tensor.shape[-1]))
        return output


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
def test_no_tensor_of_tokens_by_tokens_is_ever_made(head):
    model = randomize_(head(tiny_config(image_size=[10, 20], **HYBRID, sliding_window=40))).train()
    tokens = random_tokens(model.config)
    causal = {"labels": tokens}
    masked = {"input_ids": tokens, "bool_masked_pos": tokens < 5}
    with Shapes() as shapes:
        model(**(causal if model.config.is_causal else masked)).loss.backward()
    assert (200, 200) not in shapes.found
    assert max(min(shape) for shape in shapes.found) < 200
    # A first input to a cache, with nothing hidden.
    with Shapes() as shapes, torch.no_grad():
        model.eval().transformer(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    assert (200, 200) not in shapes.found


def test_padding_hides_tokens_within_the_window():
    model = tiny_causal(**HYBRID, sliding_window=3)
    ids = with_start(model.config, random_tokens(model.config))
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 5) % 10
    before, after = (model(input_ids=rows, attention_mask=mask).logits[:, 5:] for rows in (ids, changed))
    assert torch.equal(before, after)
    assert not torch.equal(before, model(input_ids=ids).logits[:, 5:])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 1, 4, 2], [3, 9]], ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("layers", LAYERS)
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_beyond_the_window(layers, kind, chunks, backend):
    model = tiny_causal(**LAYERS[layers], sliding_window=4)
    model.set_attn_implementation(backend)
    ids = with_start(model.config, random_tokens(model.config))
    cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=12)
    parts = [model(input_ids=part, cache=cache, use_cache=True).logits for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(input_ids=ids, use_cache=False).logits)
    kept = [layer.keys.shape[2] for layer in cache.layers]
    most = {"sliding_attention": 3 if kind == "dynamic" else 4, "full_attention": 12}
    assert kept == [most[layer_type] for layer_type in model.config.layer_types]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"num_beams": 2},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_greedy_images_are_the_same_with_every_cache_and_without(layers, options):
    model = tiny_causal(**LAYERS[layers], sliding_window=4)
    ids = with_start(model.config, random_tokens(model.config))[:, :7][
        : 1 if "prompt_lookup_num_tokens" in options else 2
    ]
    cached = model.generate(ids, do_sample=False, **options)
    plain = model.generate(ids, do_sample=False, use_cache=False, num_beams=options.get("num_beams", 1))
    assert cached.shape == (len(ids), 13)
    assert torch.equal(cached, plain)


def test_a_classifier_and_features_of_every_layer_work_as_in_the_reference():
    model = randomize_(ImageGPTForImageClassification(tiny_config(**HYBRID, sliding_window=5, num_labels=3))).double()
    tokens, weights = random_tokens(model.config), reference_weights(model.eval())
    _, features = reference_igpt.causal_hidden(tokens[0], weights, 3, windows_of(model))
    for layer, expected in enumerate(features):
        torch.testing.assert_close(model.pooled_features(tokens, layer)[0], expected, atol=1e-12, rtol=0)
    logits = model(input_ids=tokens).logits[0]
    torch.testing.assert_close(logits, weights["score.weight"] @ features[-1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
def test_compiled_in_one_graph_equals_eager_in_loss_and_gradients(head):
    model = randomize_(head(tiny_config(**ALL_WINDOWED, sliding_window=5))).double().train()
    tokens = random_tokens(model.config)
    inputs = {"labels": tokens} if model.config.is_causal else {"input_ids": tokens, "bool_masked_pos": tokens < 5}
    torch._dynamo.reset()
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = call(**inputs).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch._dynamo.reset()
    torch.testing.assert_close(results[1], results[0], atol=1e-12, rtol=0)


def test_exported_for_one_length_or_for_any():
    model = tiny_causal(**HYBRID, sliding_window=5)
    tokens, other = (random_tokens(model.config, seed=seed) for seed in (1, 9))
    exported = torch.export.export(model, (), kwargs={"labels": tokens}).module()
    torch.testing.assert_close(exported(labels=other).logits, model(labels=other).logits)
    ids = with_start(model.config, tokens)
    dynamic = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, "use_cache": None}
    inputs = {"input_ids": ids, "use_cache": False}
    exported = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic).module()
    for some in (ids, ids[:1, :7], ids[:, :3]):
        actual = exported(input_ids=some, use_cache=False).logits
        torch.testing.assert_close(actual, model(input_ids=some, use_cache=False).logits)


@torch.no_grad()
def test_compiled_decoding_with_a_static_cache_is_one_graph_for_all_steps_beyond_the_window():
    model = tiny_causal(layer_types=["sliding_attention", "full_attention"], sliding_window=4)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    ids = with_start(model.config, random_tokens(model.config))
    cache = StaticCache(config=model.config, max_cache_len=12)
    steps = [compiled(input_ids=ids[:, [i]], cache=cache, use_cache=True).logits for i in range(12)]
    torch._dynamo.reset()
    torch.testing.assert_close(torch.cat(steps, dim=1), model(input_ids=ids, use_cache=False).logits)
    # The first call creates the cache's tensors, another one is the first with a full window.
    assert counter.frame_count <= 5


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
def test_saving_and_loading_keep_windows(tmp_path, head):
    model = randomize_(head(tiny_config(**HYBRID, sliding_window=5))).eval()
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path)
    assert again.config.layer_types == HYBRID["layer_types"] and again.config.sliding_window == 5
    tokens = random_tokens(model.config)
    states = [part.transformer(input_ids=tokens, use_cache=False).last_hidden_state for part in (model, again)]
    torch.testing.assert_close(*states)


def test_gradient_checkpointing_changes_nothing():
    assert_checkpointing_changes_nothing(tiny_causal(**HYBRID, sliding_window=5).train())


def test_transformers_model_has_no_windows():
    with pytest.raises(ValueError, match="no windows of attention"):
        to_native(tiny_causal(torch.float32, image_size=4, **HYBRID, sliding_window=5))
    for field, value in (("layer_types", HYBRID["layer_types"]), ("sliding_window", 5)):
        with pytest.raises(ValueError, match=f"`{field}` of a `model_type: imagegpt` config"):
            ImageGPTConfig.from_dict({"model_type": "imagegpt", field: value})
