"""The loop for CPUs: tokens as of transformers' loop, what of `generate` it takes on, and what it leaves."""

import copy
import mmap
import weakref

import pytest
import torch
from test_generation import assert_images, generators, prefix
from tiny_models import tiny_causal
from torch import nn
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer, CompileConfig

from hf_igpt import ImageGPTForCausalImageModeling, causal_generation_igpt, fast_decoding_igpt
from hf_igpt.causal_generation_igpt import CACHE_NAME
from hf_igpt.completion_igpt import draw_hidden, stream_hidden
from hf_igpt.fast_decoding_igpt import LayerMemory, TokenDecoder


MATRICES = ("qkv", "projection", "up", "down")
# A window of 3 tokens: the cache of 12 goes to the front of its memory again and again.
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}


@pytest.fixture
def fast_calls(monkeypatch) -> list:
    """A list that grows with every call of the loop for CPUs."""
    calls = []

    def decode(*arguments):
        calls.append(arguments)
        return original(*arguments)

    original = causal_generation_igpt.decode
    monkeypatch.setattr(causal_generation_igpt, "decode", decode)
    return calls


def stock(model, *args, **kwargs):
    """`generate` with transformers' own loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_generation_igpt, "can_decode", lambda *_: False)
        return model.generate(*args, **kwargs)


SAMPLING = {
    "greedy": {"do_sample": False},
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 3},
    "all": {"temperature": 1.3, "top_k": 6, "top_p": 0.8},
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("options", SAMPLING.values(), ids=SAMPLING)
def test_tokens_and_random_state_are_those_of_the_stock_loop(fast_calls, options, length, batch):
    model = tiny_causal(torch.float32)
    ids = prefix(model, length, batch=batch)

    def draw(generate, **more):
        torch.manual_seed(3)
        return generate(ids, **options, **more), torch.get_rng_state()

    for make in (dict, one_generator, lambda: {"generator": generators(*range(batch))}):
        images, state = draw(model.generate, **make())
        stock_images, stock_state = draw(lambda *args, **kwargs: stock(model, *args, **kwargs), **make())
        assert torch.equal(images, stock_images)
        assert torch.equal(state, stock_state)
        assert_images(images)
        assert torch.equal(images[:, :length], ids)
    assert len(fast_calls) == 3


def one_generator() -> dict:
    return {"generator": torch.Generator().manual_seed(5)}


@pytest.mark.parametrize(
    "config",
    [
        {"use_bias": True},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True, "layer_norm_eps": 0.1},
        {"num_channels": 3, "image_size": [2, 3]},
        {"num_attention_heads": 1, "num_hidden_layers": 1},
        WINDOWED,
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4},
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [1, 4])
def test_logits_are_those_of_the_model(config, given):
    model = tiny_causal(**config)
    ids = prefix(model, model.config.n_positions, batch=3)
    expected = model(input_ids=ids, use_cache=False).logits.detach().float()
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :given], use_cache=True, **{CACHE_NAME: cache})
    windows = [block.attn.window for block in model.transformer.h]
    memories = [LayerMemory(layer.keys, ids.shape[1], w) for layer, w in zip(cache.layers, windows, strict=True)]
    with torch.no_grad():
        for memory, layer in zip(memories, cache.layers, strict=True):
            memory.load(layer)
    decoder = TokenDecoder(model, memories, 3)
    for position in range(given, ids.shape[1]):
        torch.testing.assert_close(decoder.step(ids[:, position], position), expected[:, position])


def test_every_backend_that_it_stands_in_for(fast_calls):
    for backend in ("eager", "sdpa"):
        model = tiny_causal()
        model.set_attn_implementation(backend)
        ids = prefix(model, 3)
        assert torch.equal(model.generate(ids, do_sample=False), stock(model, ids, do_sample=False))
    assert len(fast_calls) == 2


def test_processors_see_the_ids_so_far_and_may_change_logits_in_place(fast_calls):
    model = tiny_causal()

    def ban_last(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.scatter_(1, input_ids[:, -1:].clamp(max=9), -torch.inf)

    images = model.generate(num_return_sequences=8, logits_processor=[ban_last], generator=generators(*range(8)))
    assert len(fast_calls) == 1
    assert (images[:, 1:] != images[:, :-1]).all()


class Rows(BaseStreamer):
    def __init__(self):
        self.parts, self.is_ended = [], False

    def put(self, value: torch.Tensor) -> None:
        self.parts.append(value.clone())

    def end(self) -> None:
        self.is_ended = True


def test_a_streamer_sees_the_tokens_of_all_images_step_by_step(fast_calls):
    model, rows = tiny_causal(), Rows()
    ids = prefix(model, 4, batch=3)
    images = model.generate(ids, streamer=rows)
    assert len(fast_calls) == 1 and rows.is_ended
    assert torch.equal(rows.parts[0], ids)
    assert torch.equal(torch.stack(rows.parts[1:], dim=1), images[:, 4:])


class Enough(StoppingCriteria):
    """Ends an image at a value, and all at a length."""

    def __init__(self, value: int, length: int):
        self.value, self.length = value, length

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs) -> torch.Tensor:
        return (input_ids[:, -1] == self.value) | (input_ids.shape[1] >= self.length)


@pytest.mark.parametrize(
    "options",
    [
        {"stopping_criteria": StoppingCriteriaList([Enough(3, 9)])},
        {"stopping_criteria": StoppingCriteriaList([Enough(3, 99)])},
        {"eos_token_id": 3, "pad_token_id": 0},
        {"max_length": 5},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
def test_stopping_is_that_of_the_stock_loop(fast_calls, options):
    model = tiny_causal()
    for seed in range(4):
        seeds = range(seed, seed + 2)
        images = model.generate(prefix(model, 4), generator=generators(*seeds), **options)
        assert torch.equal(images, stock(model, prefix(model, 4), generator=generators(*seeds), **options))
    assert len(fast_calls) == 4


def continued(model, ids: torch.Tensor, change=lambda cache: cache, **options) -> torch.Tensor:
    """Drawn up to 7 ids, and then from the cache that came with them."""
    start = model.generate(ids, max_length=7, return_dict_in_generate=True, do_sample=False)
    cache = change(start[CACHE_NAME])
    return model.generate(
        start.sequences,
        attention_mask=torch.ones_like(start.sequences),
        do_sample=False,
        **{CACHE_NAME: cache},
        **options,
    )


@pytest.mark.parametrize("windows", [{}, WINDOWED], ids=str)
def test_a_returned_cache_can_be_gone_on_with_by_either_loop(fast_calls, windows):
    model = tiny_causal(**windows)
    ids = prefix(model, 3)
    whole = model.generate(ids, do_sample=False)
    assert torch.equal(whole, stock(model, ids, do_sample=False))
    assert torch.equal(continued(model, ids), whole)
    assert torch.equal(continued(model, ids, output_scores=True, return_dict_in_generate=True).sequences, whole)
    assert len(fast_calls) == 4


def test_a_returned_cache_is_an_ordinary_one(fast_calls):
    model, caches = tiny_causal(), []
    ids = prefix(model, 3)
    whole = model.generate(ids, do_sample=False)

    def shorter(cache: DynamicCache) -> DynamicCache:
        caches.append(cache)
        assert cache.get_seq_length() == 6
        cache.crop(-2)
        return cache

    assert torch.equal(continued(model, ids, shorter), whole)
    assert caches[0].get_seq_length() == 12
    plain = DynamicCache(config=model.config)
    model(input_ids=whole[:, :12], **{CACHE_NAME: plain})
    for layer, expected in zip(caches[0].layers, plain.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, atol=1e-12, rtol=0)
        torch.testing.assert_close(layer.values, expected.values, atol=1e-12, rtol=0)


def test_going_on_copies_nothing():
    model = tiny_causal()
    addresses = []

    def note(cache: DynamicCache) -> DynamicCache:
        addresses.append([layer.keys.data_ptr() for layer in cache.layers])
        return cache

    kept = []
    continued(model, prefix(model, 3), lambda cache: kept.append(note(cache)) or cache)
    note(kept[0])
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize("config", [{}, {"use_bias": True}], ids=str)
@pytest.mark.parametrize(("steps", "largest", "copies"), [(1, 2**30, True), (1, 1, False), (100, 2**30, False)])
def test_weights_are_copied_for_many_steps_of_a_small_model(monkeypatch, config, steps, largest, copies):
    monkeypatch.setattr(fast_decoding_igpt, "_STEPS_WORTH_A_COPY", steps)
    monkeypatch.setattr(fast_decoding_igpt, "_LARGEST_COPY", largest)
    model = tiny_causal(**config)
    ids = prefix(model, 3)
    decoder = TokenDecoder(model, [], 2, 9)
    matrices = [decoder.head, *(getattr(block, name) for block in decoder.blocks for name in MATRICES)]
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    assert all((matrix.data_ptr() in pointers) != copies for matrix in matrices)
    images = model.generate(ids, do_sample=False)
    assert torch.equal(images, stock(model, ids, do_sample=False))
    # The weights of now count, not those of an earlier call.
    model.lm_head.weight.data.neg_()
    others = model.generate(ids, do_sample=False)
    assert torch.equal(others, stock(model, ids, do_sample=False)) and not torch.equal(others, images)


@pytest.mark.parametrize("windows", [{}, WINDOWED], ids=str)
@pytest.mark.parametrize("system", ["gives large pages", "refuses them", "has none"])
def test_memory_in_large_pages(monkeypatch, system, windows):
    model, sizes = tiny_causal(**windows), []
    ids = prefix(model, 3)
    expected = stock(model, ids, do_sample=False)

    class Memory(mmap.mmap):
        def __new__(cls, number, size, **options):
            sizes.append(size)
            return super().__new__(cls, number, size, **options)

        def madvise(self, advice):
            assert advice == mmap.MADV_HUGEPAGE
            if system == "refuses them":
                raise OSError("Invalid argument")
            super().madvise(advice)

    monkeypatch.setattr(fast_decoding_igpt, "_LARGE_PAGE", 1)
    monkeypatch.setattr(mmap, "mmap", Memory)
    if system == "has none":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    start = model.generate(ids, do_sample=False, max_length=7, return_dict_in_generate=True)
    assert torch.equal(continued(model, ids), expected)
    assert torch.equal(model.generate(ids, do_sample=False), expected)
    assert bool(sizes) == (system != "has none")
    copied = copy.deepcopy(start[CACHE_NAME])
    assert torch.equal(copied.layers[0].keys, start[CACHE_NAME].layers[0].keys)


def test_memory_goes_with_the_keys_whose_place_others_take():
    model = tiny_causal()
    cache = model.generate(prefix(model, 3), max_length=7, return_dict_in_generate=True)[CACHE_NAME]
    memories = [weakref.ref(layer.keys.decoding_memory) for layer in cache.layers]
    assert all(memory() is not None for memory in memories)
    model(input_ids=torch.zeros(2, 1, dtype=torch.long), **{CACHE_NAME: cache})
    assert cache.get_seq_length() == 7
    assert all(memory() is None for memory in memories)


@pytest.mark.parametrize("windows", [{}, WINDOWED], ids=str)
def test_images_that_are_streamed_row_by_row_are_begun_once(fast_calls, monkeypatch, windows):
    model, loads = tiny_causal(**windows), []
    load = LayerMemory.load
    monkeypatch.setattr(LayerMemory, "load", lambda memory, layer: loads.append(layer) or load(memory, layer))
    tokens, hidden = torch.zeros(2, 12, dtype=torch.long), torch.ones(2, 12, dtype=torch.bool)
    *_, (streamed, _) = stream_hidden(model, tokens, hidden, [3, 4])
    assert len(fast_calls) == 3 and len(loads) == len(model.transformer.h)
    assert torch.equal(streamed, draw_hidden(model, tokens, hidden, [3, 4]))


def test_windowed_blocks_have_memory_for_two_windows_only():
    model = tiny_causal(**WINDOWED)
    start = model.generate(prefix(model, 3), max_length=9, return_dict_in_generate=True)
    windowed, full = start[CACHE_NAME].layers
    assert windowed.keys.decoding_memory.values.shape == (2, 3, 6, 8)
    assert windowed.keys.shape[2] == 2 and windowed.get_seq_length() == 8
    assert full.keys.shape[2] == full.get_seq_length() == 8


def test_a_cache_without_the_models_windows_is_left_to_the_stock_loop(fast_calls):
    model = tiny_causal(**WINDOWED)
    ids = prefix(model, 3)
    options = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
    images = model.generate(ids, **{CACHE_NAME: DynamicCache()}, **options)
    assert not fast_calls
    assert torch.equal(images, model.generate(ids, **options))


def test_what_comes_from_inference_mode_can_be_gone_on_with_outside():
    model = tiny_causal()
    ids = prefix(model, 3)
    with torch.inference_mode():
        start = model.generate(ids, max_length=7, return_dict_in_generate=True, do_sample=False)
    drawn = start.sequences.clone()
    whole = model.generate(
        drawn, attention_mask=torch.ones_like(drawn), do_sample=False, **{CACHE_NAME: start[CACHE_NAME]}
    )
    assert torch.equal(whole, model.generate(ids, do_sample=False))
    model(labels=whole[:, 1:]).loss.backward()


class Doubled(nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


class Louder(ImageGPTForCausalImageModeling):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits *= 3
        return output


def doubled(model) -> None:
    linear = model.transformer.h[0].mlp.c_fc
    double = Doubled(linear.in_features, linear.out_features, bias=False, dtype=linear.weight.dtype)
    double.load_state_dict(linear.state_dict())
    model.transformer.h[0].mlp.c_fc = double


def replaced_forward(model) -> None:
    layer = model.transformer.h[1].ln_1
    forward = layer.forward
    layer.forward = lambda states: 2 * forward(states)


CHANGES = {
    "hook": lambda model: model.transformer.h[0].attn.register_forward_hook(lambda *a: (3 * a[2][0], a[2][1])),
    "adapter": doubled,
    "offloading": replaced_forward,
    "half precision": lambda model: model.to(torch.bfloat16),
    "subclass": lambda model: setattr(model, "__class__", Louder),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_models_that_compute_something_else_are_left_to_the_stock_loop(fast_calls, change):
    model = tiny_causal(torch.float32)
    assert_images(model.generate(do_sample=False))
    assert len(fast_calls) == 1
    change(model)
    assert_images(model.generate(do_sample=False))
    assert len(fast_calls) == 1


def test_other_activations_and_dropout_are_left_to_the_stock_loop(fast_calls):
    model = tiny_causal(hidden_act="gelu")
    assert torch.equal(model.generate(do_sample=False), stock(model, do_sample=False))
    assert_images(tiny_causal(resid_pdrop=0.5).train().generate())
    model = tiny_causal(resid_pdrop=0.5)
    model.transformer.h[1].dropout.train()
    assert_images(model.generate())
    assert not fast_calls
    assert_images(tiny_causal(resid_pdrop=0.5).generate())
    assert len(fast_calls) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 2},
        {"output_scores": True, "return_dict_in_generate": True},
        {"compile_config": CompileConfig()},
        {"num_beams": 2},
        {"position_ids": torch.tensor([[0, 1, 3, 2]])},
        {"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])},
    ],
    ids=str,
)
def test_other_requests_are_left_to_the_stock_loop(fast_calls, options):
    model = tiny_causal()
    model.generate(prefix(model, 4), do_sample=False, **options)
    assert not fast_calls


def test_autocast_is_left_to_the_stock_loop(fast_calls):
    with torch.autocast("cpu", torch.bfloat16):
        assert_images(tiny_causal(torch.float32).generate())
    assert not fast_calls


def test_a_stop_in_the_middle_leaves_a_cache_that_fits():
    model, cache = tiny_causal(), None
    ids = prefix(model, 3)
    cache = DynamicCache(config=model.config)

    class Stop(Rows):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if len(self.parts) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, streamer=Stop(), **{CACHE_NAME: cache}, attention_mask=torch.ones_like(ids))
    assert cache.get_seq_length() == 6
    assert {layer.keys.shape[2] for layer in cache.layers} == {6}
